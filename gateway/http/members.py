"""What several answers have, and commands print: money, moments, a budget as it stands, a report."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.accounting import formats
from gateway.accounting.usage import Report
from gateway.domain.balance import Balance
from gateway.domain.generation import Json
from gateway.domain.money import Money


def money(name: str, amount: Money) -> dict[str, Json]:
    """An amount twice: for people in dollars, and exactly."""
    return {f"{name}_usd": amount.usd_number, f"{name}_micros": amount.micros}


def utc(moment: datetime | float | None) -> str | None:
    """A moment to the second, in ISO 8601; None where there is none."""
    if isinstance(moment, float | int):
        moment = datetime.fromtimestamp(moment, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def day(moment: float | None) -> str | None:
    """The date in UTC: what is known from everybody's purchases is told no more exactly than that."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def budget(balance: Balance, now: float, *, of: str, in_full: bool) -> dict[str, Json]:
    """A budget of `of` as it stands; what is left of it alone, where not `in_full`."""
    said = balance.budget
    return {
        "name": said.label,
        "of": of,
        "per": said.per.label,
        "models": None if said.models is None else [*sorted(said.models)],
        "resets_at": utc(said.per.resets_at(now)),
        "runs_out_at": utc(balance.runs_out_at(now)),
        **(money("limit", balance.limit) if in_full else {}),
        **(money("spent", balance.spent) if in_full else {}),
        **(money("reserved", balance.reserved) if in_full else {}),
        **money("remaining", balance.remaining),
    }


def report(made: Report) -> dict[str, Json]:
    """A report, its budgets as everywhere else."""
    return formats.to_json(
        made,
        budgets=[
            budget(balance, made.made_at, of=balance.holder.name if balance.holder else "", in_full=True)
            for balance in made.budgets
        ],
    )
