"""What several answers have, and commands print alike: budgets, reports, keys, alerts, the audit log."""

from __future__ import annotations

import json

from gateway.accounting import formats
from gateway.accounting.usage import Report
from gateway.alerts.contract import Progress
from gateway.domain.balance import Balance
from gateway.domain.generation import Json
from gateway.domain.json_forms import money, utc
from gateway.domain.tenant import Role
from gateway.tenants.contract import AuditEntry, Key
from gateway.tenants.declarations import terms_to_json


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


def key(known: Key) -> dict[str, Json]:
    """All that is known of a key, which is not the key itself."""
    nothing_said: dict[str, Json] = {
        "role": Role.CALLER.value,
        "models": None,
        "budgets": [],
        "rate": None,
        "expires_at": None,
    }
    return {
        "id": known.id,
        "tenant": known.tenant,
        "name": known.name,
        "hint": known.hint,
        **nothing_said,
        **terms_to_json(known.terms),
        "created_at": utc(known.created_at),
        "last_used_at": utc(known.last_used_at),
        "revoked_at": utc(known.revoked_at),
        "replaced_by": known.replaced_by,
        "is_declared": known.is_declared,
    }


def audit_entry(entry: AuditEntry) -> dict[str, Json]:
    """A line of the audit log."""
    return {
        "serial": entry.serial,
        "at": utc(entry.at),
        "who": entry.who,
        "action": entry.action,
        "what": entry.what,
        "before": entry.before,
        "after": entry.after,
    }


def alert(progress: Progress) -> dict[str, Json]:
    """An alert, the message that says it, and every try to send that."""
    raised = progress.alert
    message: Json = json.loads(raised.message)
    return {
        "id": raised.id,
        "raised_at": utc(raised.raised_at),
        "tenant": raised.tenant,
        "key_id": raised.key_id or None,
        "budget": raised.budget,
        "threshold": raised.threshold,
        "state": progress.state.value,
        "due_at": utc(progress.due_at),
        "message": message,
        "deliveries": [
            {
                "at": utc(delivery.at),
                "seconds": round(delivery.seconds, 6),
                "status": delivery.status,
                "error": delivery.error or None,
            }
            for delivery in progress.deliveries
        ],
    }
