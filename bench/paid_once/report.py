"""What was seen, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.paid_once.scenes import CALLERS, SLOW_UPSTREAM_SECONDS, UPSTREAM_SECONDS, USD_EACH, Seen


@dataclass(frozen=True, slots=True)
class Row:
    setup: str
    scene: str
    seen: Seen | None
    """None where it could not be seen; `remark` says why."""

    remark: str = ""


def page(
    rows: Sequence[Row],
    *,
    scale: float,
    command: str,
    date: str,
    machine: str,
    versions: Mapping[str, str | None],
    configuration: Sequence[tuple[str, Sequence[str]]],
) -> str:
    """`versions` names every candidate, and None for what is not installed."""
    made = f"Made by `{command}` on {date}; {machine}."
    lengths = " and ".join(_seconds(length * scale) for length in (UPSTREAM_SECONDS, SLOW_UPSTREAM_SECONDS))
    lines = [
        "# Paid once: what was counted",
        "",
        f"{made} What each line means is in [docs/benchmarks.md](../../docs/benchmarks.md).",
        "",
        f"{CALLERS} callers; the upstream takes {lengths} (the slow one); a payment is ${USD_EACH}.",
    ]
    if scale != 1:
        lines += ["", _SCALED.format(scale=scale)]
    lines += ["", "## Candidates", "", "| candidate | version |", "|---|---|"]
    lines += [f"| {name} | {version or '**not installed**'} |" for name, version in versions.items()]
    lines += [
        "",
        "## Counted",
        "",
        "| set-up | scene | paid upstream calls | dollars | delivered | answers | client times |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    lines += ["", "## Configurations", "", "What each set-up adds to the least that it needs:", ""]
    lines += [
        f"- {name}: {', '.join(f'`{one}`' for one in settings) or 'nothing'}"
        for name, settings in configuration
    ]
    return "\n".join([*lines, ""])


_SCALED = """\
**Everything at {scale:g} of its length**: the upstream's time and, written into their configurations, the time-outs of all candidates.
`--full` takes the real lengths and leaves defaults alone."""


def _line(row: Row) -> str:
    remark = " ".join(row.remark.split()).replace("|", "/")
    if row.seen is None:
        cells = ["-", "-", "-", remark, "-"]
    else:
        seen = row.seen
        cells = [
            f"**{seen.bill.calls}**",
            "-" if seen.bill.usd is None else f"${seen.bill.usd:.3f}",
            f"{seen.delivered} of {len(seen.answers)}",
            seen.statuses + (f"; {remark}" if remark else ""),
            _times(seen),
        ]
    return f"| {row.setup} | {row.scene} | {' | '.join(cells)} |"


def _times(seen: Seen) -> str:
    times = sorted(answer.seconds for answer in seen.answers)
    first, last = _seconds(times[0]), _seconds(times[-1])
    return first if first == last else f"{first} to {last}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
