"""`gateway usage`"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Literal

from cyclopts import App, Parameter

from gateway.accounting import focus, formats
from gateway.accounting.asking import asked
from gateway.accounting.usage import AMOUNTS, COUNTS, Figures, Report
from gateway.app.chargeback import opened_usage, upstream_name
from gateway.app.opening import SYSTEM_CLOCK
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.cli.tables import aligned, minute
from gateway.domain.balance import Balance
from gateway.http import members
from gateway.settings import Settings

Form = Literal["table", "csv", "json", "focus"]

usage = App(name="usage", help="Say who has used how much, and when each budget runs out.")


@usage.default
def report(
    *,
    by: str | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    to: str | None = None,
    zone: str | None = None,
    tenant: str | None = None,
    as_: Annotated[Form, Parameter(name="--as")] = "table",
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Say who has used how much, and when each budget runs out. A gateway may be running on the ledger.

    Parameters
    ----------
    by
        What lines are told apart by: of organisation, team, key, model and day, with commas. Without it, one line
        for everything, and every budget with the time at which it runs out.
    from_
        The first day, as 2026-11-01; by default the first of the month.
    to
        The last day, as 2026-11-30; by default today.
    zone
        The time zone in which days begin; by default UTC.
    tenant
        One tenant, and all below it, wherever they stood.
    as_
        A table for people, CSV, JSON, or the columns of FOCUS 1.2 as CSV.
    """
    told = {"by": by, "from": from_, "to": to, "zone": zone, "tenant": tenant}
    given = {name: value for name, value in told.items() if value is not None}
    settings = options.settings()
    sys.stdout.write(asyncio.run(_made(settings, given, as_)))


async def _made(settings: Settings, given: dict[str, str], form: Form) -> str:
    about = asked(given, SYSTEM_CLOCK())
    if form == "focus":
        about = focus.focused(about)
    async with opened_usage(settings) as reports:
        made = await reports.report(about)
    match form:
        case "focus":
            return focus.to_focus(made, upstream=upstream_name(settings))
        case "csv":
            return formats.to_csv(made)
        case "json":
            return json.dumps(members.report(made), indent=2, ensure_ascii=False) + "\n"
        case "table":
            return "".join(f"{line}\n" for line in _table(made))


def _table(made: Report) -> Iterator[str]:
    about = made.asked
    whose = f" of {about.tenant}" if about.tenant else ""
    yield f"Usage{whose} from {about.first_day} to {about.last_day} ({about.zone})"
    yield ""
    names = [by.value for by in about.by]
    figures = [*AMOUNTS, *COUNTS]
    rows = [[*(name or "-" for name in line.group), *_cells(line.figures)] for line in made.lines]
    total = [*("total" if number == 0 else "" for number in range(len(names))), *_cells(made.total)]
    yield from aligned(_heads(*names, *figures), [*rows, total], right=_heads(*figures))
    if made.budgets:
        yield ""
        figures = ["limit", "spent", "reserved", "remaining", "resets", "runs out"]
        yield from aligned(
            _heads("budget", "of", *figures),
            [_budget(balance, made.made_at) for balance in made.budgets],
            right=_heads(*figures),
        )


def _heads(*names: str) -> list[str]:
    return [name.replace("_", " ").upper() for name in names]


def _cells(figures: Figures) -> list[str]:
    return [
        *(str(of(figures)) for of in AMOUNTS.values()),
        *(str(of(figures)) for of in COUNTS.values()),
    ]


def _budget(balance: Balance, now: float) -> list[str]:
    return [
        balance.budget.label,
        balance.holder.name,
        *(str(amount) for amount in (balance.limit, balance.spent, balance.reserved, balance.remaining)),
        minute(balance.budget.per.resets_at(now)),
        minute(balance.runs_out_at(now)),
    ]
