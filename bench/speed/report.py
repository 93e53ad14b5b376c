"""What was measured, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.speed.load import QUIET_CORES, Sample
from bench.speed.waiting import Waited

SMALL_16 = "small hit, 16 connections"
SMALL_64 = "small hit, 64 connections"
SMALL_1 = "small hit, 1 connection"
VIDEO = "video hit, 16 connections"
RANGE = "Range of 64 KiB, 16 connections"
ONE_REQUEST = "all ask the same"
MANY_REQUESTS = "each asks something else"
GATEWAY, NGINX = "gateway", "nginx"
_A_WHOLE_CORE = 0.9


@dataclass(slots=True)
class Findings:
    """Everything that was seen, by scene and candidate."""

    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)
    passed_on: dict[str, int] = field(default_factory=dict)
    """Generations asked of the upstream while hits were measured: 0, or they were no hits."""

    start_seconds: dict[str, list[float]] = field(default_factory=dict)
    idle_bytes: dict[str, list[int]] = field(default_factory=dict)
    waited: dict[tuple[str, str], Waited] = field(default_factory=dict)
    calibrations: list[float] = field(default_factory=list)
    answer_bytes: dict[str, int] = field(default_factory=dict)
    """How large the answers' bodies are: small and video."""

    missing: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    def kept(self, scene: str, candidate: str) -> Sequence[Sample]:
        """The quiet samples, if any was; else all."""
        samples = self.samples.get((scene, candidate), [])
        return [sample for sample in samples if sample.quiet] or samples

    def rate(self, scene: str, candidate: str) -> float | None:
        return _median([sample.rate for sample in self.kept(scene, candidate)])

    def cpu(self, scene: str, candidate: str) -> float | None:
        return _median([sample.cpu_seconds_per_thousand for sample in self.kept(scene, candidate)])

    def times_nginx(self, scene: str, candidate: str = GATEWAY, of: str = NGINX) -> float | None:
        ours, theirs = self.rate(scene, candidate), self.rate(scene, of)
        return ours / theirs if ours is not None and theirs else None

    def cpu_of_nginx(self, scene: str) -> float | None:
        ours, theirs = self.cpu(scene, GATEWAY), self.cpu(scene, NGINX)
        return ours / theirs if ours is not None and theirs else None


@dataclass(frozen=True, slots=True)
class About:
    """What the run was."""

    command: str
    date: str
    machine: str
    pinning: str
    congestion: str
    load_averages: Sequence[float]
    """Of the minute before, and of the last minute of the run."""

    versions: Mapping[str, str | None]
    """None for what is not installed."""

    settings: Sequence[str]
    nginx: str
    seconds: float
    repetitions: int


def page(found: Findings, about: About) -> str:
    versions = ", ".join(
        f"{name} {version or '**not installed**'}" for name, version in about.versions.items()
    )
    calibration = median(found.calibrations)
    lines = [
        "# Speed: what was measured",
        "",
        f"Made by `{about.command}` on {about.date}; {about.machine}; TCP {about.congestion}; {about.pinning}.",
        "What each column means is in [docs/benchmarks.md](../../docs/benchmarks.md#speed).",
        "",
        f"- Versions: {versions}.",
        f"- {about.repetitions} repetitions of {about.seconds:g} s each, candidates in turn; medians, of quiet samples if there are any.",
        f"- Sizes: {', '.join(f'{name} {size:,} bytes' for name, size in found.answer_bytes.items())} (bodies; headers come on top).",
        f"- Load average before and after: {' and '.join(f'{load:.2f}' for load in about.load_averages)}.{_noise(found)}",
        f"- Calibration: {calibration:,.0f} rounds of pure Python in a second of processor time ({_range(found.calibrations)}).",
        f"- Generations asked of the upstream while hits were measured: {_passed_on(found)}.",
        *(f"- Not measured: {what}" for what in found.missing),
        "",
        "## Beside the bars of issue 4",
        "",
        "| what | bar | measured | |",
        "|---|---|---|---|",
        *_bars(found),
        "",
        _NOT_YET,
        "",
        "## Hits",
        "",
        "| scene | candidate | requests/s (least to most) | MB/s | p50 ms | p99 ms | server CPU s per 1,000 | of a core | hits per calibration round | failed | quiet |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_hits(found, scene, candidate, calibration) for scene, candidate in found.samples),
        "",
        "## Start and memory",
        "",
        "| candidate | process to first hit (least to most) | idle |",
        "|---|---|---|",
        *(_start(found, candidate) for candidate in found.start_seconds),
        "",
        "| callers wait | candidate | answered | asked of the upstream | memory each | of a core meanwhile |",
        "|---|---|---|---|---|---|",
        *(_waited(scene, candidate, waited) for (scene, candidate), waited in found.waited.items()),
        "",
        "## Configurations",
        "",
        f"The gateway adds to its defaults: {', '.join(f'`{setting}`' for setting in about.settings)}. nginx:",
        "",
        "```nginx",
        about.nginx.rstrip(),
        "```",
    ]
    return "\n".join([*lines, ""])


_NOT_YET = """\
This harness does not measure yet, of issue 4: 256 connections, 20 MB, a C server, LiteLLM, p99 at half of the maximum rate, what a miss adds,
10,000 generations in flight, 500 slow downloads, the ledger alone, a million entries, process to first purchase."""


def _range(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _noise(found: Findings) -> str:
    every = [sample for samples in found.samples.values() for sample in samples]
    if not every:
        return ""
    quiet = sum(sample.quiet for sample in every)
    told = f" {quiet} of {len(every)} samples were quiet: everything else on the machine used at most {QUIET_CORES:g} of a core."
    if quiet == len(every):
        return told
    told += " **The machine had other work to do: trust the CPU column first.**"
    loud = [
        f"{scene} ({name})"
        for (scene, name), samples in found.samples.items()
        if not any(sample.quiet for sample in samples)
    ]
    return f"{told} No sample was quiet of: {'; '.join(loud)}." if loud else told


def _passed_on(found: Findings) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.passed_on.items()) or "-"


def _bars(found: Findings) -> Sequence[str]:
    scaled = found.times_nginx(SMALL_64, f"{GATEWAY}, 2 workers", of=GATEWAY)
    start = _median(found.start_seconds.get(GATEWAY, []))
    each = found.waited.get((MANY_REQUESTS, GATEWAY))
    same = found.waited.get((ONE_REQUEST, GATEWAY))
    waiting = each or same
    return [
        _rate_bar("small hit, 16 connections, requests/s of nginx's", 1.2, found, SMALL_16),
        _rate_bar("small hit, 64 connections, requests/s of nginx's", 1.2, found, SMALL_64),
        _rate_bar(
            "small hit whose bytes are new: there is no short cut yet, so every hit is parsed, and this is the row for 16",
            0.8,
            found,
            SMALL_16,
        ),
        _bar("small hit, 64 connections, two workers of one's", 1.7, scaled, "x"),
        _bar(
            "server CPU per small hit, 16 connections, of nginx's",
            1.0,
            found.cpu_of_nginx(SMALL_16),
            "x",
            most=True,
        ),
        _rate_bar("video hit, 16 connections, bytes/s of nginx's", 1.0, found, VIDEO),
        _bar("server CPU per video hit, of nginx's", 1.0, found.cpu_of_nginx(VIDEO), "x", most=True),
        _rate_bar("Range requests, 16 connections, requests/s of nginx's", 1.0, found, RANGE),
        _bar("server CPU per Range request, of nginx's", 1.0, found.cpu_of_nginx(RANGE), "x", most=True),
        _bar("process to first hit", 0.5, start, " s", most=True),
        _bar(
            f"memory per generation in flight (the bar is for 10,000; here {each.callers:,})"
            if each
            else "memory per generation in flight",
            30.0,
            each.bytes_each / 1000 if each else None,
            " KB",
            most=True,
        ),
        _bar(
            f"of a core while callers wait (the bar is for 5,000; here {waiting.callers:,})"
            if waiting
            else "of a core while callers wait",
            5.0,
            100 * waiting.cores if waiting else None,
            " %",
            most=True,
        ),
    ]


def _rate_bar(what: str, bar: float, found: Findings, scene: str) -> str:
    """What did not use its core could have done more: against such an nginx a bar can be missed, and not met."""
    ratio = found.times_nginx(scene)
    cores = _median([sample.server_cores for sample in found.kept(scene, NGINX)])
    if ratio is None or cores is None or ratio < bar or cores >= _A_WHOLE_CORE:
        return _bar(what, bar, ratio, "x")
    return f"| {what} | >= {bar:g}x | {ratio:.3g}x | undecided: nginx used {cores:.2f} of its core, the load generator was the limit |"


def _bar(what: str, bar: float, measured: float | None, unit: str, *, most: bool = False) -> str:
    sign = "<=" if most else ">="
    if measured is None:
        return f"| {what} | {sign} {bar:g}{unit} | - | not measured |"
    met = measured <= bar if most else measured >= bar
    return f"| {what} | {sign} {bar:g}{unit} | {measured:.3g}{unit} | {'met' if met else '**not met yet**'} |"


def _hits(found: Findings, scene: str, candidate: str, calibration: float) -> str:
    kept = found.kept(scene, candidate)
    every = found.samples[scene, candidate]
    rates = [sample.rate for sample in kept]
    cpu = median(sample.cpu_seconds_per_thousand for sample in kept)
    cells = [
        scene,
        candidate,
        f"{median(rates):,.0f} ({_range(rates)})",
        f"{median(sample.megabytes_a_second for sample in kept):,.0f}",
        f"{median(sample.p50_ms for sample in kept):.2f}",
        f"{median(sample.p99_ms for sample in kept):.2f}",
        f"{cpu:.4f}",
        f"{median(sample.server_cores for sample in kept):.2f}",
        f"{1000 / cpu / calibration:.3g}" if cpu else "-",
        str(sum(sample.refused + sample.broken for sample in every)),
        f"{sum(sample.quiet for sample in every)}/{len(every)}",
    ]
    return f"| {' | '.join(cells)} |"


def _start(found: Findings, candidate: str) -> str:
    seconds = found.start_seconds[candidate]
    idle = found.idle_bytes[candidate]
    return (
        f"| {candidate} | {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) "
        f"| {median(idle) / 1e6:.1f} MB |"
    )


def _waited(scene: str, candidate: str, waited: Waited) -> str:
    early = f" ({waited.early} too early)" if waited.early else ""
    return (
        f"| {waited.callers:,}; {scene} | {candidate} | {waited.answered:,}{early} | {waited.asked_upstream:,} "
        f"| {waited.bytes_each / 1000:.1f} KB | {waited.cores:.3f} |"
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
