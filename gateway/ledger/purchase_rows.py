"""Purchases as they lie in their table."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection

from gateway.domain.generation import Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.ledger.contract import Purchase, State

OPEN = "state IN ('queued', 'sending', 'running', 'unknown')"
"""As the partial indexes have it: SQLite knows a condition again by its words."""

_KEPT_APART = frozenset(State) - {State.SETTLED, State.RELEASED}
"""The states that have an index: few purchases are in them, however many there are."""

_COLUMNS = (
    "id, tenant, path, key_id, model, fingerprint, held_micros, seed, fresh, shape, state, reserved_at, ticket, sent_at, ended_at, "
    "cost_micros, generation, reason, "
    "(SELECT parameters FROM purchase_parameters AS asked WHERE asked.serial = purchases.serial)"
)


def newest(connection: sqlite3.Connection, fingerprint: Fingerprint) -> Purchase | None:
    """The newest purchase of a fingerprint that was not released."""
    found = select(
        connection, "fingerprint = ? AND state != 'released' ORDER BY serial DESC LIMIT 1", fingerprint
    )
    return found[0] if found else None


def select(connection: sqlite3.Connection, condition: str, *values: object) -> list[Purchase]:
    """The purchases that meet a condition, in SQL with a `?` for each of `values`."""
    query = f"SELECT {_COLUMNS} FROM purchases WHERE {condition}"
    return [_from_row(*row) for row in connection.execute(query, values)]


def in_any_of(states: Collection[State]) -> str:
    """A condition: the purchase is in one of these states; any purchase, if none is named."""
    if not states:
        return "TRUE"
    if not _KEPT_APART.issuperset(states):
        return f"state IN ({', '.join(repr(state.value) for state in states)})"
    # Each in the index that has it: what is open or lost is found without a walk through what was settled.
    each = (
        f"SELECT serial FROM purchases WHERE state = '{state.value}'{f' AND {OPEN}' if state.is_open else ''}"
        for state in states
    )
    return f"serial IN ({' UNION ALL '.join(each)})"


def _from_row(
    identity: str,
    tenant: str,
    path: str,
    key_id: str,
    model: str,
    fingerprint: str,
    held_micros: int,
    seed: int | None,
    fresh: int,
    shape: str,
    state: str,
    reserved_at: float,
    ticket: str | None,
    sent_at: float | None,
    ended_at: float | None,
    cost_micros: int | None,
    generation: str | None,
    reason: str | None,
    parameters: str,
) -> Purchase:
    return Purchase(
        id=PurchaseId(identity),
        tenant=tenant,
        path=path,
        key_id=key_id,
        request=GenerationRequest(
            model=model,
            parameters=json.loads(parameters),
            fingerprint=Fingerprint(fingerprint),
            price=Money(held_micros),
            seed=seed,
            fresh=bool(fresh),
            shape=shape,
        ),
        state=State(state),
        reserved_at=reserved_at,
        ticket=Ticket(ticket) if ticket else None,
        sent_at=sent_at,
        ended_at=ended_at,
        cost=None if cost_micros is None else Money(cost_micros),
        generation=Generation.from_json(json.loads(generation)) if generation else None,
        reason=reason,
    )
