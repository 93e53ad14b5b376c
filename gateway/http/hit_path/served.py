"""What the hit path has served: plain numbers while it answers, taken to metrics, books and log now and then."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from gateway.domain.clock import Clock
from gateway.domain.generation import CacheStatus
from gateway.domain.identity import PurchaseId
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.requests.contract import Tallies, Tally
from gateway.telemetry.logs import log_for
from gateway.telemetry.metrics import OVERHEAD_BUCKETS, REQUEST_BUCKETS, Metrics

_BOUNDS = sorted({*REQUEST_BUCKETS, *OVERHEAD_BUCKETS})
"""In seconds: fine enough for either histogram."""


_AT_A_TIME = 8
"""Of how many places the counts are handed over before callers have their turn: a tenth of a millisecond."""


@dataclass(slots=True)
class Times:
    """How long hits for one model took that nobody has been told of yet."""

    seconds: float = 0.0
    by_bucket: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))


@dataclass(slots=True)
class Counted:
    """Hits with one key for one model that nobody has been told of yet."""

    times: Times
    """Of all hits for the model."""

    count: int = 0
    saved_micros: int = 0
    seconds: float = 0.0
    sent_bytes: int = 0

    def add(self, saved_micros: int, seconds: float, sent_bytes: int) -> None:
        """One more, which took so long."""
        self.count += 1
        self.saved_micros += saved_micros
        self.seconds += seconds
        self.sent_bytes += sent_bytes
        self.times.by_bucket[bisect_left(_BOUNDS, seconds)] += 1


@dataclass(frozen=True, slots=True)
class CountedByPurchase:
    """Counts in another's place, and notes besides what it was that was given: where hits have a price."""

    counted: Counted
    given: dict[tuple[Party, PurchaseId], int]
    party: Party
    purchase: PurchaseId

    def add(self, saved_micros: int, seconds: float, sent_bytes: int) -> None:
        """One more, which took so long."""
        self.counted.add(saved_micros, seconds, sent_bytes)
        place = (self.party, self.purchase)
        self.given[place] = self.given.get(place, 0) + 1


OnGiven = Callable[[PurchaseId, Party, float, int], None]
"""Told that somebody was given, at some time, what a purchase has made, and how often."""


class Served:
    """Counts answers at the cost of a few additions each."""

    def __init__(
        self,
        metrics: Metrics,
        tallies: Tallies,
        clock: Clock,
        on_use: Callable[[str], None],
        on_given: OnGiven | None,
    ) -> None:
        """Both are told when hits are handed over: `on_use` the id of each key, `on_given`, where hits have a price, more."""
        self._metrics = metrics
        self._tallies = tallies
        self._clock = clock
        self._on_use = on_use
        self._on_given = on_given
        self._given: dict[tuple[Party, PurchaseId], int] = {}
        self._hits: dict[tuple[str, str, str], Counted] = {}
        self._times: dict[str, Times] = {}
        self._fetched = self._fetched_bytes = 0
        self._log = log_for("http")

    def hits(self, party: Party, model: str, purchase: PurchaseId) -> Counted | CountedByPurchase:
        """Where hits with this key for this model, and for what `purchase` has made, are counted."""
        place = (party.path, party.key_id, model)
        counted = self._hits.get(place)
        if counted is None:
            counted = self._hits[place] = Counted(self._times.setdefault(model, Times()))
        if self._on_given is None:
            return counted
        return CountedByPurchase(counted, self._given, party, purchase)

    def fetched(self, sent_bytes: int) -> None:
        """A blob, or a part of one, was fetched by its link."""
        self._fetched += 1
        self._fetched_bytes += sent_bytes

    async def hand_over(self) -> None:
        """Give everything that was counted to those who keep it; it costs no I/O but a line in the log for each.

        A thousand tenants' counts take a while: callers are answered in between.
        """
        for number, ((path, key_id, model), counted) in enumerate(list(self._hits.items())):
            if counted.count:
                self._hand_over(Party(path, key_id), model, counted)
            if number % _AT_A_TIME == _AT_A_TIME - 1:
                await asyncio.sleep(0)
        for model, times in self._times.items():
            by_bound = dict(zip((*_BOUNDS, inf), times.by_bucket, strict=True))
            self._metrics.count_times_of_hits(model, seconds=times.seconds, by_bound=by_bound)
            times.seconds, times.by_bucket = 0.0, [0] * len(times.by_bucket)
        if self._on_given is not None:
            for number, (party, purchase) in enumerate(list(self._given)):
                if times_given := self._given.pop((party, purchase), 0):
                    self._on_given(purchase, party, self._clock(), times_given)
                if number % _AT_A_TIME == _AT_A_TIME - 1:
                    await asyncio.sleep(0)
        if self._fetched:
            self._log.info("fetches", count=self._fetched, bytes=self._fetched_bytes)
            self._fetched = self._fetched_bytes = 0

    def _hand_over(self, party: Party, model: str, counted: Counted) -> None:
        count, seconds, sent_bytes = counted.count, counted.seconds, counted.sent_bytes
        saved = Money(counted.saved_micros)
        counted.count, counted.saved_micros, counted.seconds, counted.sent_bytes = 0, 0, 0.0, 0
        counted.times.seconds += seconds
        self._on_use(party.key_id)
        self._tallies.add(party, model, Tally(hits=count, saved_by_hits=saved), at=self._clock())
        self._metrics.count_hits(party.tenant, model, count)
        self._log.info(
            "hits",
            tenant=party.tenant,
            model=model,
            outcome=CacheStatus.HIT.value,
            count=count,
            seconds=round(seconds, 6),
            bytes=sent_bytes,
            saved_usd=str(saved.usd),
        )
