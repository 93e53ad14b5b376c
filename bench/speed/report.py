"""What was measured, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.speed import reference
from bench.speed.findings import HALF_RATE, Findings, Row, bars
from bench.speed.load import QUIET_CORES
from bench.speed.parts import Part
from bench.speed.svg import number


@dataclass(frozen=True, slots=True)
class About:
    """What the run was."""

    command: str
    date: str
    machine: str
    pinning: str
    network: str
    minutes: float
    load_averages: Sequence[float]
    """Of the minute before, and of the last minute of the run."""

    versions: Mapping[str, str | None]
    """None for what is not installed."""

    settings: Sequence[str]
    configurations: Mapping[str, tuple[str, str]]
    """Of each peer that took part: what kind of text it is, and the text."""

    whole: bool
    """Whether every bar was meant to be measured: then what was not is a line, too."""

    seconds: float
    repetitions: int


def page(found: Findings, parts: Sequence[Part], about: About, *, plots: Sequence[str]) -> str:
    """`plots` are addresses of pictures, as they are from where the page lies."""
    versions = ", ".join(
        f"{name} {version or '**not installed**'}" for name, version in about.versions.items()
    )
    rows = [*bars(found), *(row for part in parts for row in part.rows)]
    rows = [row for row in rows if about.whole or row.value is not None]
    lines = [
        "# Speed: what was measured",
        "",
        f"Made by `{about.command}` on {about.date} in {about.minutes:.0f} minutes; {about.machine}; {about.pinning}; {about.network}.",
        _WHERE_MORE,
        "",
        f"- Versions: {versions}.",
        f"- {about.repetitions} repetitions of {about.seconds:g} s each, candidates in turn. A ratio is of neighbours in time; medians, of quiet repetitions if there are any.",
        f"- Bodies: {', '.join(f'{name} {size:,} bytes' for name, size in found.answer_bytes.items())}; headers come on top.",
        f"- Load average before and after: {' and '.join(f'{load:.2f}' for load in about.load_averages)}.{_noise(found)}",
        f"- Calibration: {_calibration(found)} rounds of pure Python in a second of processor time.",
        f"- Asked of the upstream while hits were measured: {_passed_on(found)}.",
        *(
            f"- Half of the maximum rate: {found.half_rate:,.0f} requests/s for both."
            for _ in _once(found.half_rate)
        ),
        *(f"- Not measured: {what}" for what in found.missing),
        "",
        "## Beside the bars of issue 4",
        "",
        *_BARS_HEAD,
        *(_bar(row) for row in rows if row.bar),
        "",
        *(f"![{name}]({name})" for name in plots),
        "",
        "## Hits",
        "",
        "| scene | candidate | answers/s (least to most) | MB/s | p50 ms | p99 ms | server CPU us each | of a core: server | load generator | failed | quiet |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_hits(found, scene, candidate) for scene, candidate in found.samples),
        "",
        *_without_a_bar([row for row in rows if not row.bar]),
        *reference.lines(found),
        *_notes(parts),
        "## Configurations",
        "",
        f"The gateway adds to its defaults: {', '.join(f'`{setting}`' for setting in about.settings)}.",
        *_configurations(about.configurations),
    ]
    return "\n".join([*lines, ""])


_WHERE_MORE = """\
How it is measured, and what each row means: [docs/benchmarks.md](../docs/benchmarks.md#speed). How often a video is paid for:
[paid_once/RESULTS.md](paid_once/RESULTS.md)."""


def _once(value: float | None) -> Sequence[float]:
    return [] if value is None else [value]


def _range(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _calibration(found: Findings) -> str:
    return f"{median(found.calibrations):,.0f} ({_range(found.calibrations)})" if found.calibrations else "no"


def _noise(found: Findings) -> str:
    every = [sample for samples in found.samples.values() for sample in samples]
    if not every:
        return ""
    quiet = sum(sample.quiet for sample in every)
    told = f" {quiet} of {len(every)} samples were quiet: everything else on the machine used at most {QUIET_CORES:g} of a core."
    if quiet == len(every):
        return told
    return f"{told} **The machine had other work to do: trust processor time first.**"


def _passed_on(found: Findings) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.passed_on.items()) or "-"


def _bar(row: Row) -> str:
    if row.value is None or row.low is None or row.high is None:
        return f"| {row.what} | {row.bar or '-'} | - | - | {row.note} | |"
    unit = row.unit.strip()
    unit = unit if unit in ("x", "%", "") else f" {unit}"
    spread = f"{_figure(row.low)} to {_figure(row.high)}"
    return f"| {row.what} | {row.bar or '-'} | {_figure(row.value)}{unit} | {spread} | {_verdict(row)} | {row.note} |"


def _without_a_bar(rows: Sequence[Row]) -> Sequence[str]:
    return ["## Told beside them", "", *_BARS_HEAD, *map(_bar, rows), ""] if rows else []


_BARS_HEAD = ("| what | bar | measured | least to most | | remarks |", "|---|---|---|---|---|---|")


def _verdict(row: Row) -> str:
    if row.met is None:
        return "undecided" if row.bar else "-"
    return "met" if row.met else "**not met**"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _hits(found: Findings, scene: str, candidate: str) -> str:
    kept, every = found.kept(scene, candidate), found.samples[scene, candidate]
    rates = [sample.rate for sample in kept]
    cells = [
        scene,
        candidate,
        f"{number(median(rates))} ({_range(rates)})",
        f"{median(sample.megabytes_a_second for sample in kept):,.0f}",
        f"{median(sample.p50_ms for sample in kept):.2f}",
        f"{median(sample.p99_ms for sample in kept):.2f}",
        f"{_figure(median(sample.cpu_microseconds for sample in kept))}",
        f"{median(sample.server_cores for sample in kept):.2f}",
        # It looks without a pause when it keeps to a rate: how busy it is says nothing then.
        "-" if scene == HALF_RATE else f"{median(sample.load_cores for sample in kept):.2f}",
        str(sum(sample.refused + sample.broken for sample in every)),
        f"{sum(sample.quiet for sample in every)}/{len(every)}",
    ]
    return f"| {' | '.join(cells)} |"


def _notes(parts: Sequence[Part]) -> Sequence[str]:
    notes = [f"- {part.name}: {note}" for part in parts for note in part.notes]
    return ["## Notes", "", *notes, ""] if notes else []


def _configurations(configurations: Mapping[str, tuple[str, str]]) -> Sequence[str]:
    lines = []
    for name, (kind, text) in configurations.items():
        lines += [
            "",
            "<details>",
            f"<summary>{name}</summary>",
            "",
            f"```{kind}",
            text.rstrip(),
            "```",
            "",
            "</details>",
        ]
    return lines
