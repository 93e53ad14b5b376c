"""Whether hits have become dearer since somebody looked: processor time against a piece of pure Python, so that machines compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.speed.findings import GATEWAY, UNSEEN, Findings

FILE = Path(__file__).with_name("reference.json")
_DEARER = 1.25
"""Short runs on busy machines differ by less."""


def rounds_each(found: Findings) -> Mapping[str, float]:
    """What one answer costs, in calibration rounds, by scene: of the gateway alone."""
    rounds_a_microsecond = median(found.calibrations) / 1e6
    return {
        f"{scene}, {name}": rounds_a_microsecond
        * median(found.figures(scene, name, lambda sample: sample.cpu_microseconds))
        for scene, name in found.samples
        if name in (GATEWAY, UNSEEN)
    }


def remember(found: Findings) -> None:
    told = {scene: float(f"{rounds:.4g}") for scene, rounds in rounds_each(found).items()}
    FILE.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def lines(found: Findings) -> Sequence[str]:
    """A table, as Markdown. Informational: nothing fails here."""
    if not FILE.exists() or not found.calibrations:
        return []
    before = json.loads(FILE.read_text(encoding="utf-8"))
    rows = []
    for scene, now in rounds_each(found).items():
        if scene in before:
            ratio = now / before[scene]
            verdict = "**dearer**" if ratio > _DEARER else "cheaper" if ratio < 1 / _DEARER else "as before"
            rows.append(f"| {scene} | {now:.3g} | {before[scene]:.3g} | {ratio:.2f}x | {verdict} |")
    if not rows:
        return []
    head = [
        "## Beside what was remembered",
        "",
        "Processor time of the server for one answer, in rounds of the calibration; `--remember` writes it down anew.",
        "",
        "| scene | now | remembered | ratio | |",
        "|---|---|---|---|---|",
    ]
    return [*head, *rows, ""]
