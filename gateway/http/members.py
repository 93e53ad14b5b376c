"""What several answers have, and commands print: a budget as it stands, a report."""

from __future__ import annotations

from gateway.accounting import formats
from gateway.accounting.usage import Report
from gateway.domain.balance import Balance
from gateway.domain.generation import Json
from gateway.domain.json_forms import money, utc


def budget(balance: Balance, now: float, *, in_full: bool) -> dict[str, Json]:
    """A budget as it stands; what is left of it alone, where not `in_full`."""
    said = balance.budget
    return {
        "name": said.label,
        "of": balance.holder.name,
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
        budgets=[budget(balance, made.made_at, in_full=True) for balance in made.budgets],
    )
