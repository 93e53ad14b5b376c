"""Every metric there is, with its help text. docs/metrics.md lists the same, and a test compares them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from gateway.domain.money import Money

# A hit takes a millisecond and a generation minutes: the same buckets have to show both.
REQUEST_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 90.0, 120.0, 180.0,
    300.0, 600.0, 900.0, 1800.0,
)  # fmt: skip
OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_UPSTREAM_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0, 75.0, 90.0, 105.0, 120.0, 150.0, 180.0, 240.0,
                     300.0, 450.0, 600.0, 900.0, 1800.0, 3600.0)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BudgetReading:
    """One budget as the books have it."""

    tenant: str
    window: str
    limit: Money
    remaining: Money
    runs_out_at: float | None = None
    """At the present pace; None: not in sight."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the books and the stores say at the moment of a scrape."""

    spent: Mapping[tuple[str, str], Money] = field(default_factory=dict)
    """By tenant and model."""

    saved: Mapping[tuple[str, str, str], Money] = field(default_factory=dict)
    """By tenant, model and `hit` or `collapsed`."""

    reserved: Mapping[str, Money] = field(default_factory=dict)
    """By tenant."""

    unknown: Money = Money.ZERO
    """Held for purchases of which nobody can say whether they were made."""

    paid_and_lost: Money = Money.ZERO
    """Spent, and nothing came of it that can be used."""

    budgets: Iterable[BudgetReading] = ()
    cache_entries: int = 0
    blob_bytes: int = 0
    in_flight: int = 0
    waiting: int = 0


class Metrics(Collector):
    """What is counted as it happens, and what is read from the books when somebody looks.

    Money is read and not counted: a counter that lives in a process forgets at every restart, the ledger does not.
    Where several processes serve one port, what each has counted lies in `shared_directory`, and whichever is asked
    answers for all of them (prometheus_client's multiprocess mode: the directory has to be in the environment, as
    PROMETHEUS_MULTIPROC_DIR, before that library is imported).
    """

    def __init__(self, *, shared_directory: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self._shared_directory = shared_directory
        self._reading = Reading()
        self._counted: dict[tuple[str, ...], int] = {}
        self.requests = Counter(
            "gateway_requests",
            "Requests for a generation, by how they were answered.",
            ("tenant", "model", "outcome"),
            registry=self.registry,
        )
        self.refusals = Counter(
            "gateway_refusals",
            "Requests for a generation that a limit refused: a budget (406), or how often a key may ask (429).",
            ("tenant", "reason"),
            registry=self.registry,
        )
        self.alerts = Counter(
            "gateway_alerts",
            "Alerts that were raised: a budget of a tenant, or of one of its keys, has come to a threshold.",
            ("tenant", "window", "threshold"),
            registry=self.registry,
        )
        self.webhook_deliveries = Counter(
            "gateway_webhook_deliveries",
            "Tries to send an alert, by how they ended.",
            ("outcome",),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "gateway_request_seconds",
            "Time from a request's first byte to its answer's last, upstream waiting included.",
            ("model", "outcome"),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.overhead_seconds = Histogram(
            "gateway_overhead_seconds",
            "The gateway's own share of that time: waiting for the upstream is left out.",
            ("outcome",),
            buckets=OVERHEAD_BUCKETS,
            registry=self.registry,
        )
        self.upstream_seconds = Histogram(
            "gateway_upstream_seconds",
            "Time from sending a purchase to having its media whole, or to its failure.",
            ("model", "outcome"),
            buckets=_UPSTREAM_BUCKETS,
            registry=self.registry,
        )
        self.upstream_requests = Counter(
            "gateway_upstream_requests",
            "HTTP requests made to the upstream, by operation and status.",
            ("operation", "status"),
            registry=self.registry,
        )
        self.upstream_credits = Gauge(
            "gateway_upstream_credits_usd",
            "The upstream account's own balance, when it was last asked for.",
            multiprocess_mode="mostrecent",
            registry=self.registry,
        )
        self.upstream_drift = Gauge(
            "gateway_upstream_drift_usd",
            "Money that left the upstream account without our books, since this gateway first looked.",
            multiprocess_mode="mostrecent",
            registry=self.registry,
        )
        self.foreign_spend = Gauge(
            "gateway_upstream_foreign_spend_usd",
            "What calls of others cost the upstream account within the last day, by its own history.",
            multiprocess_mode="mostrecent",
            registry=self.registry,
        )
        self._evictions = Counter(
            "gateway_cache_evictions",
            "Blobs dropped to stay within storage.max_bytes.",
            registry=self.registry,
        )
        self._corrupt = Counter(
            "gateway_cache_corrupt",
            "What was found broken or missing, and not served.",
            ("kind",),
            registry=self.registry,
        )
        self.registry.register(self)

    def exposition(self, reading: Reading) -> bytes:
        """All of it as text, with what the books say now."""
        self._reading = reading
        if self._shared_directory is None:
            return generate_latest(self.registry)
        everybodys = CollectorRegistry()
        MultiProcessCollector(everybodys, self._shared_directory)  # type: ignore[no-untyped-call]  # it has no types
        everybodys.register(self)
        return generate_latest(everybodys)

    def count_hits(self, tenant: str, model: str, count: int) -> None:
        """Hits that were counted elsewhere. Their times are told of all tenants together (`count_times_of_hits`)."""
        self.requests.labels(tenant, model, "hit").inc(count)

    def count_times_of_hits(self, model: str, *, seconds: float, by_bound: Mapping[float, int]) -> None:
        """The sum of their times, and how many took up to each bound."""
        _observe(self.request_seconds.labels(model, "hit"), by_bound, seconds)
        _observe(self.overhead_seconds.labels("hit"), by_bound, seconds)

    def count_stores(self, *, evictions: int, corrupt: Mapping[str, int]) -> None:
        """What the stores of this process have counted since it began; what is new of it is added."""
        self._evictions.inc(self._new(("evictions",), evictions))
        for kind, count in corrupt.items():
            self._corrupt.labels(kind).inc(self._new(("corrupt", kind), count))

    def _new(self, what: tuple[str, ...], count: int) -> int:
        new = count - self._counted.get(what, 0)
        self._counted[what] = count
        return new

    def collect(self) -> Iterable[Metric]:
        """The families that come out of the books."""
        reading = self._reading
        spend = CounterMetricFamily(
            "gateway_spend_usd",
            "Money spent at the upstream, as settled in the ledger.",
            labels=("tenant", "model"),
        )
        for (tenant, model), amount in reading.spent.items():
            spend.add_metric((tenant, model), amount.usd_number)
        yield spend
        saved = CounterMetricFamily(
            "gateway_saved_usd",
            "Money not spent, because a generation was there already (hit) or under way (collapsed).",
            labels=("tenant", "model", "by"),
        )
        for (tenant, model, by), amount in reading.saved.items():
            saved.add_metric((tenant, model, by), amount.usd_number)
        yield saved
        reserved = GaugeMetricFamily(
            "gateway_reserved_usd", "Money held for purchases that have not ended.", labels=("tenant",)
        )
        for tenant, amount in reading.reserved.items():
            reserved.add_metric((tenant,), amount.usd_number)
        yield reserved
        yield GaugeMetricFamily(
            "gateway_unknown_usd",
            "The part of what is held of which nobody can say whether anything was bought.",
            value=reading.unknown.usd_number,
        )
        yield CounterMetricFamily(
            "gateway_paid_and_lost_usd",
            "The part of what was spent of which nothing came that could be used.",
            value=reading.paid_and_lost.usd_number,
        )
        limits = GaugeMetricFamily(
            "gateway_budget_limit_usd", "The limit of a tenant's budget.", labels=("tenant", "window")
        )
        remaining = GaugeMetricFamily(
            "gateway_budget_remaining_usd",
            "What is left of it: the limit less what is spent and held.",
            labels=("tenant", "window"),
        )
        runs_out = GaugeMetricFamily(
            "gateway_budget_runs_out_timestamp_seconds",
            "When nothing is left of it, at the present pace; not there where that is not in sight.",
            labels=("tenant", "window"),
        )
        for budget in reading.budgets:
            place = (budget.tenant, budget.window)
            limits.add_metric(place, budget.limit.usd_number)
            remaining.add_metric(place, budget.remaining.usd_number)
            if budget.runs_out_at is not None:
                runs_out.add_metric(place, budget.runs_out_at)
        yield limits
        yield remaining
        yield runs_out
        yield GaugeMetricFamily(
            "gateway_cache_bytes", "Bytes of media in the blob store.", value=reading.blob_bytes
        )
        yield GaugeMetricFamily(
            "gateway_cache_entries", "Generations that the cache remembers.", value=reading.cache_entries
        )
        yield GaugeMetricFamily(
            "gateway_in_flight_generations", "Generations being made now.", value=reading.in_flight
        )
        yield GaugeMetricFamily(
            "gateway_waiting_generations",
            "Generations that wait for a slot at the upstream.",
            value=reading.waiting,
        )


def _observe(histogram: Histogram, by_bound: Mapping[float, int], seconds: float) -> None:
    """Many observations at once, for which prometheus_client has no public way: one call a hit would cost as much again."""
    histogram._sum.inc(seconds)  # noqa: SLF001 -- as said
    for bound, count in by_bound.items():
        if count:
            histogram._buckets[bisect_left(histogram._upper_bounds, bound)].inc(count)  # noqa: SLF001 -- as said
