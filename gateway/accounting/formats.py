"""Reports as programs read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from gateway.accounting.usage import AMOUNTS, COUNTS, Figures, Report
from gateway.domain.generation import Json
from gateway.domain.json_forms import money
from gateway.domain.money import Money


def to_json(report: Report, *, budgets: Sequence[Json]) -> dict[str, Json]:
    """A report as JSON; `budgets` are its budgets, as JSON has them."""
    asked = report.asked
    names = [by.value for by in asked.by]
    lines: list[Json] = [
        {**dict(zip(names, line.group, strict=True)), **_members(line.figures)} for line in report.lines
    ]
    of_nobody_in_particular: dict[str, Json] = {} if asked.by else {"budgets": [*budgets]}
    return {
        "from": str(asked.first_day),
        "to": str(asked.last_day),
        "zone": asked.zone,
        "tenant": asked.tenant,
        "by": [*names],
        **({"lines": lines} if asked.by else {}),
        "total": _members(report.total),
        **of_nobody_in_particular,
    }


def to_csv(report: Report) -> str:
    """A report as CSV: dollars with six digits, which is exact, and no line for the total."""
    amounts, counts = [f"{name}_usd" for name in AMOUNTS], [*COUNTS]
    header = [*(by.value for by in report.asked.by), *amounts, *counts]
    lines = [(line.group, line.figures) for line in report.lines] if report.asked.by else [((), report.total)]
    return written(header, ([*group, *_cells(figures)] for group, figures in lines))


def written(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def dollars(amount: Money) -> str:
    """Exactly: `0.416000`."""
    return f"{amount.usd:.6f}"


def _members(figures: Figures) -> dict[str, Json]:
    amounts: dict[str, Json] = {}
    for name, of in AMOUNTS.items():
        amounts |= money(name, of(figures))
    return {**amounts, **{name: of(figures) for name, of in COUNTS.items()}}


def _cells(figures: Figures) -> list[object]:
    return [*(dollars(of(figures)) for of in AMOUNTS.values()), *(of(figures) for of in COUNTS.values())]
