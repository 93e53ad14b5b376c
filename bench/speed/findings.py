"""What was seen, and how it compares with the bars of issue 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.speed.load import Sample

GATEWAY, UNSEEN, TWO_WORKERS = "gateway", "gateway, unseen bytes", "gateway, 2 workers"
NGINX, VARNISH, LITELLM, SENDFILE = "nginx", "Varnish", "LiteLLM", "C sendfile"

VIDEO, SOUND = "3 MB hit", "20 MB hit"
TAIL_1_MIB, TAIL_64_KIB = "Range of 1 MiB", "Range of 64 KiB"
DISCARDED = "3 MB hit, discarded by the client"
"""A client that copies what comes can be full before the server is; one that discards it is not."""

LARGE = (VIDEO, DISCARDED, SOUND, TAIL_1_MIB, TAIL_64_KIB)
HALF_RATE = "1 KB hit at half of the maximum rate"
CONNECTIONS = (16, 64, 256)
FULL_CORES = 0.97
"""From here on a load generator on one core is the limit of what it measures."""


def small(connections: int) -> str:
    """The scene of so many connections."""
    return f"1 KB hit, {connections} connections"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the page: what a module of bench/speed says of one bar, as it comes in JSON."""

    what: str
    bar: str
    """With its unit: `>= 1.2x`; empty where there is none."""

    value: float | None
    """The median; None where it was not measured."""

    unit: str
    low: float | None
    high: float | None
    met: bool | None
    """None where it cannot be said, and for what has no bar; `note` says why."""

    note: str = ""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Row:
        """Raises KeyError and TypeError for what is no row."""
        return cls(**{name: told[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure of ours in theirs, repetition by repetition: neighbours in time had the same neighbours on the machine."""

    values: Sequence[float]
    """Of the repetitions that were quiet for both; of all, if none was."""

    quiet: int
    repetitions: int

    @property
    def noise(self) -> str:
        if self.quiet == self.repetitions:
            return ""
        if not self.quiet:
            return "noisy: no repetition was quiet"
        return f"noisy: {self.quiet} of {self.repetitions} repetitions were quiet"


@dataclass(slots=True)
class Findings:
    """Everything that was seen of hits, by scene and candidate."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    """One a repetition."""

    passed_on: dict[str, int] = field(default_factory=dict)
    """Generations asked of the upstream while hits were measured: 0, or they were no hits."""

    calibrations: list[float] = field(default_factory=list)
    answer_bytes: dict[str, int] = field(default_factory=dict)
    half_rate: float | None = None
    missing: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    def kept(self, scene: str, candidate: str) -> Sequence[Sample]:
        """The quiet samples, if any was; else all."""
        samples = self.samples.get((scene, candidate), [])
        return [sample for sample in samples if sample.quiet] or samples

    def figures(self, scene: str, candidate: str, figure: Callable[[Sample], float]) -> Sequence[float]:
        return [figure(sample) for sample in self.kept(scene, candidate)]

    def ratio(
        self, scene: str, figure: Callable[[Sample], float], *, ours: str = GATEWAY, theirs: str = NGINX
    ) -> Ratio | None:
        """None where one of the two was not measured."""
        pairs = list(
            zip(self.samples.get((scene, ours), []), self.samples.get((scene, theirs), []), strict=False)
        )
        quiet = [(one, other) for one, other in pairs if one.quiet and other.quiet]
        values = [figure(one) / figure(other) for one, other in quiet or pairs if figure(other)]
        return Ratio(values, len(quiet), len(pairs)) if values else None


def bars(found: Findings) -> Sequence[Row]:
    """Beside each bar what was measured; of what was not, that it was not."""
    rows = [
        at_least(f"{small(n)}, exact repeat: requests/s of nginx's", 1.2, found, small(n), _rate)
        for n in CONNECTIONS
    ]
    rows += [
        at_least(
            f"{small(n)}, bytes never seen before: requests/s of nginx's exact repeats",
            0.8, found, small(n), _rate, ours=UNSEEN,
        )
        for n in CONNECTIONS
    ]  # fmt: skip
    rows.append(
        at_least(
            "1 KB hit, 256 connections, two workers: hits per CPU second of the busier one, of a single worker's",
            1.7, found, small(256), _of_full_cores, ours=TWO_WORKERS, theirs=GATEWAY,
        )
    )  # fmt: skip
    for scene in LARGE:
        rows.append(at_least(f"{scene}: bytes/s of nginx's", 1.0, found, scene, _speed))
        rows.append(
            at_least(
                f"{scene}: bytes/s of a bare C sendfile server's", 0.8, found, scene, _speed, theirs=SENDFILE
            )
        )
    rows += [
        at_least(f"{small(16)}: requests/s of LiteLLM's own cached path", 250, found, small(16), _rate, theirs=LITELLM),
        *(at_most(f"{small(n)}: server CPU per hit, of nginx's", 1.0, found, small(n), _cpu) for n in CONNECTIONS),
        at_most("1 KB hit at half of the maximum rate: p99 latency, of nginx's", 1.0, found, HALF_RATE, _p99),
        at_most("1 KB hit at half of the maximum rate: server CPU per hit, of nginx's", 1.0, found, HALF_RATE, _cpu),
        *(at_most(f"{scene}: server CPU per hit, of nginx's", 1.0, found, scene, _cpu) for scene in LARGE),
    ]  # fmt: skip
    return rows


def at_least(
    what: str,
    bar: float,
    found: Findings,
    scene: str,
    figure: Callable[[Sample], float],
    *,
    ours: str = GATEWAY,
    theirs: str = NGINX,
) -> Row:
    """A ratio that has to reach a bar. Where the load generator was theirs' limit, it can be missed, and not met."""
    ratio = found.ratio(scene, figure, ours=ours, theirs=theirs)
    if ratio is None:
        return _not_measured(what, f">= {bar:g}x")
    value = median(ratio.values)
    generator = median(found.figures(scene, theirs, lambda sample: sample.load_cores))
    met, notes = value >= bar, [ratio.noise]
    if met and generator >= FULL_CORES and figure in (_rate, _speed):
        notes.append(f"undecided: the load generator was full with {theirs}")
        return _row(what, f">= {bar:g}x", ratio, None, notes)
    return _row(what, f">= {bar:g}x", ratio, met, notes)


def at_most(what: str, bar: float, found: Findings, scene: str, figure: Callable[[Sample], float]) -> Row:
    ratio = found.ratio(scene, figure)
    if ratio is None:
        return _not_measured(what, f"<= {bar:g}x")
    return _row(what, f"<= {bar:g}x", ratio, median(ratio.values) <= bar, [ratio.noise])


def _row(what: str, bar: str, ratio: Ratio, met: bool | None, notes: Sequence[str]) -> Row:
    low, high = min(ratio.values), max(ratio.values)
    return Row(what, bar, median(ratio.values), "x", low, high, met, "; ".join(filter(None, notes)))


def _not_measured(what: str, bar: str) -> Row:
    return Row(what, bar, None, "x", None, None, None, "not measured")


def _rate(sample: Sample) -> float:
    return sample.rate


def _speed(sample: Sample) -> float:
    return sample.megabytes_a_second


def _cpu(sample: Sample) -> float:
    return sample.cpu_microseconds


def _p99(sample: Sample) -> float:
    return sample.p99_ms


def _of_full_cores(sample: Sample) -> float:
    return sample.rate_of_full_cores
