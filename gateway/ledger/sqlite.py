"""The ledger in SQLite."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal

from gateway.database.json_text import to_text
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.balance import Balance, Prospect
from gateway.domain.clock import Clock
from gateway.domain.estimate import Settled
from gateway.domain.generation import Blob, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Holder
from gateway.domain.window import quarter
from gateway.ledger import budgets, evidence, examination, purchase_rows, sums
from gateway.ledger.contract import (
    Bought,
    Claim,
    ClaimLost,
    Discrepancy,
    Held,
    Purchase,
    Sent,
    State,
)
from gateway.ledger.purchase_rows import OPEN
from gateway.ledger.sqlite_tables import SCHEMA

InForce = Callable[[sqlite3.Connection, Caller], Caller]
"""The caller as the transaction has it: its key, its tenant, and all budgets above it. Raises KeyEnded."""

_ALL = -1
"""SQLite's word for no limit."""

_FEW_HOLDERS = 16
"""As many as stand above one caller. For those of everybody, purchases would wait."""

_RELEASED = "state = 'released', ended_at = ?, reason = ?"
_LOST = "state = 'lost', ended_at = ?, cost_micros = COALESCE(?, held_micros), cost_reported = ?, reason = ?"

_STATES: Mapping[type[Claim], State] = {Held: State.QUEUED, Sent: State.SENDING, Bought: State.RUNNING}
"""Where a purchase is while the claim is good: with an outgrown one, money could be given back for what is bought."""


class SqliteLedger:
    """Keeps the contracts Ledger, Custody, Resolution, Statements, Evidence and Audit.

    `owner` names this process in the journal; `is_alive` answers whether the process behind another owner's name
    still lives, so that what the dead left is adopted at once and not when their leases run out. `in_force` answers, in
    the transaction that reserves, what the caller is by then; without it, what it was when it asked.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        *,
        clock: Clock,
        owner: str,
        is_alive: Callable[[str], bool],
        lease_seconds: float,
        in_force: InForce = lambda _connection, caller: caller,
    ) -> None:
        self._database = database
        self._clock = clock
        self._owner = owner
        self._is_alive = is_alive
        self._lease_seconds = lease_seconds
        self._in_force = in_force
        database.migrate("ledger", SCHEMA)

    # --- Ledger

    async def reserve(
        self,
        caller: Caller,
        request: GenerationRequest,
        *,
        newest_known: PurchaseId | None,
        sending: bool = False,
    ) -> Held | Sent | Purchase:
        now = self._clock()
        return await self._database.write(
            lambda connection: self._reserve(connection, now, caller, request, newest_known, sending=sending)
        )

    def _reserve(
        self,
        connection: sqlite3.Connection,
        now: float,
        caller: Caller,
        request: GenerationRequest,
        newest_known: PurchaseId | None,
        *,
        sending: bool,
    ) -> Held | Sent | Purchase:
        newest = purchase_rows.newest(connection, request.fingerprint)
        if newest is not None and (newest.id != newest_known or newest.state.is_open):
            return newest
        caller = self._in_force(connection, caller)
        refusal = budgets.refusal(connection, now, caller, request.model, request.price)
        if refusal is not None:
            raise refusal
        purchase, path = _new_id(now), caller.tenant.path
        inserted = connection.execute(
            "INSERT INTO purchases (id, fingerprint, tenant, path, key_id, model, seed, fresh, shape, state, "
            "held_micros, owner, lease_until, fence, reserved_at, sent_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
            (
                purchase,
                request.fingerprint,
                caller.tenant.name,
                path,
                caller.key_id,
                request.model,
                request.seed,
                request.fresh,
                request.shape,
                (State.SENDING if sending else State.QUEUED).value,
                request.price.micros,
                self._owner,
                now + self._lease_seconds,
                now,
                now if sending else None,
            ),
        )
        connection.execute(
            "INSERT INTO purchase_parameters VALUES (?, ?)",
            (inserted.lastrowid, to_text(dict(request.parameters))),
        )
        series = sums.series_of(connection, path, caller.key_id, request.model)
        sums.hold(connection, series, quarter(now), request.price.micros)
        self._changes_what_is_left_along(path)
        return Sent(purchase, 1) if sending else Held(purchase, 1)

    async def send(self, held: Held) -> Sent:
        now = self._clock()
        await self._database.write(
            lambda connection: self._advance(connection, held, "state = 'sending', sent_at = ?", (now,))
        )
        return Sent(held.purchase, held.fence)

    async def record_ticket(self, sent: Sent, ticket: Ticket) -> Bought:
        now = self._clock()
        await self._database.write(
            lambda connection: self._advance(
                connection, sent, "state = 'running', ticket = ?, bought_at = ?", (ticket, now)
            )
        )
        return Bought(sent.purchase, sent.fence, ticket)

    async def settle(
        self,
        bought: Bought,
        *,
        cost: Money | None,
        blobs: Sequence[Blob],
        seed: int | None,
        seconds: float | None,
    ) -> Generation:
        now = self._clock()
        return await self._database.write(
            lambda connection: self._settle(connection, now, bought, cost, tuple(blobs), seed, seconds)
        )

    def _settle(
        self,
        connection: sqlite3.Connection,
        now: float,
        bought: Bought,
        cost: Money | None,
        blobs: tuple[Blob, ...],
        seed: int | None,
        seconds: float | None,
    ) -> Generation:
        model, fingerprint, held_micros, asked_seed, kept = connection.execute(
            "SELECT model, fingerprint, held_micros, seed, generation FROM purchases WHERE id = ?",
            (bought.purchase,),
        ).fetchone()
        if kept is not None:
            return Generation.from_json(json.loads(kept))
        generation = Generation(
            fingerprint=fingerprint,
            model=model,
            blobs=blobs,
            cost=Money(held_micros) if cost is None else cost,
            purchase=bought.purchase,
            ticket=bought.ticket,
            made_at=now,
            seconds=seconds,
            seed=asked_seed if seed is None else seed,
        )
        self._end(
            connection,
            bought,
            "state = 'settled', ended_at = ?, cost_micros = ?, cost_reported = ?, generation = ?",
            (now, generation.cost.micros, cost is not None, to_text(generation.to_json())),
        )
        return generation

    async def release(self, claim: Held | Sent | Bought, reason: str) -> None:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> None:
            if _state(connection, claim.purchase) is not State.RELEASED:
                self._end(connection, claim, _RELEASED, (now, reason))

        await self._database.write(work)

    async def mark_unknown(self, claim: Sent | Bought, reason: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if _state(connection, claim.purchase) is not State.UNKNOWN:
                self._advance(connection, claim, "state = 'unknown', reason = ?", (reason,))

        await self._database.write(work)

    async def write_off(self, bought: Bought, *, cost: Money | None, reason: str) -> None:
        values = (self._clock(), None if cost is None else cost.micros, cost is not None, reason)

        def work(connection: sqlite3.Connection) -> None:
            if _state(connection, bought.purchase) is not State.LOST:
                self._end(connection, bought, _LOST, values)

        await self._database.write(work)

    def _advance(
        self, connection: sqlite3.Connection, claim: Claim, changes: str, values: Sequence[object]
    ) -> None:
        """Change an open purchase, if the claim is still good: nobody has adopted it, and it is where the claim says."""
        changed = connection.execute(
            f"UPDATE purchases SET {changes} WHERE id = ? AND fence = ? AND owner = ? AND state = ?",
            (*values, claim.purchase, claim.fence, self._owner, _STATES[type(claim)].value),
        )
        if changed.rowcount != 1:
            raise ClaimLost(f"purchase {claim.purchase} is no longer ours to change")

    def _end(
        self, connection: sqlite3.Connection, claim: Claim, changes: str, values: Sequence[object]
    ) -> None:
        """As `_advance`, for changes that end the purchase."""
        self._advance(connection, claim, changes, values)
        self._count_the_end_of(connection, claim.purchase)

    def _count_the_end_of(self, connection: sqlite3.Connection, purchase: PurchaseId) -> None:
        """What was held for the purchase is held no more; what it cost is spent. Counted where it was reserved, and then."""
        path, key_id, model, reserved_in, held_micros, spent_micros = connection.execute(
            "SELECT path, key_id, model, quarter, held_micros, COALESCE(cost_micros, 0) FROM purchases WHERE id = ?",
            (purchase,),
        ).fetchone()
        series = sums.series_of(connection, path, key_id, model)
        sums.end(connection, series, reserved_in, held_micros=held_micros, spent_micros=spent_micros)
        self._changes_what_is_left_along(path)

    def _changes_what_is_left_along(self, path: str) -> None:
        for tenant in path.split("/"):
            self._database.changes(f"tenant:{tenant}")

    # --- Custody

    async def newest(self, fingerprint: Fingerprint) -> Purchase | None:
        return await self._database.read(lambda connection: purchase_rows.newest(connection, fingerprint))

    async def orphans(self, *, tended: AbstractSet[Fingerprint] = frozenset()) -> Sequence[Purchase]:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> Sequence[Purchase]:
            owners = connection.execute(f"SELECT DISTINCT owner FROM purchases WHERE {OPEN}").fetchall()
            dead = [owner for (owner,) in owners if owner == self._owner or not self._is_alive(owner)]
            # Thousands may be open and tended to: only what is neither is read whole. Sorted here, since SQLite would
            # rather walk through everything ever bought than sort what is open.
            found = connection.execute(
                f"SELECT serial, id, fingerprint FROM purchases WHERE {OPEN} AND state != 'unknown' "
                f"AND (lease_until <= ? OR owner IN ({_marks(dead)}))",
                (now, *dead),
            ).fetchall()
            return [
                purchase_rows.select(connection, "id = ?", identity)[0]
                for _, identity, fingerprint in sorted(found)
                if fingerprint not in tended
            ]

        return await self._database.read(work)

    async def adopt(self, purchase: PurchaseId) -> Held | Sent | Bought | None:
        now = self._clock()
        return await self._database.write(lambda connection: self._adopt(connection, now, purchase))

    def _adopt(
        self, connection: sqlite3.Connection, now: float, purchase: PurchaseId
    ) -> Held | Sent | Bought | None:
        found = connection.execute(
            f"SELECT owner, lease_until, fence, state, ticket FROM purchases WHERE id = ? AND {OPEN} "
            "AND state != 'unknown'",
            (purchase,),
        ).fetchone()
        if found is None:
            return None
        owner, lease_until, fence, state, ticket = found
        in_anothers_good_hands = owner != self._owner and lease_until > now and self._is_alive(owner)
        if in_anothers_good_hands:
            return None
        fence += 1
        connection.execute(
            "UPDATE purchases SET owner = ?, lease_until = ?, fence = ? WHERE id = ?",
            (self._owner, now + self._lease_seconds, fence, purchase),
        )
        match State(state):
            case State.QUEUED:
                return Held(purchase, fence)
            case State.SENDING:
                return Sent(purchase, fence)
            case _:
                return Bought(purchase, fence, Ticket(ticket))

    async def renew(self) -> None:
        until = self._clock() + self._lease_seconds

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                f"UPDATE purchases SET lease_until = ? WHERE owner = ? AND {OPEN}", (until, self._owner)
            )

        await self._database.write(work)

    # --- Resolution

    async def unknown_purchases(self) -> Sequence[Purchase]:
        return (await self.purchases(states=(State.UNKNOWN,), limit=_ALL))[::-1]

    async def known_tickets(self, tickets: Collection[Ticket]) -> AbstractSet[Ticket]:
        asked = list(tickets)
        query = f"SELECT DISTINCT ticket FROM purchases WHERE ticket IN ({_marks(asked)})"
        return await self._database.read(
            lambda connection: {Ticket(ticket) for (ticket,) in connection.execute(query, asked)}
        )

    async def resolve_bought(self, purchase: PurchaseId, ticket: Ticket) -> bool:
        # Whoever adopts it collects it: the lease has run out by now, or is ended here. A ticket is one purchase's.
        return await self._resolve(
            purchase,
            "state = 'running', ticket = ?, bought_at = COALESCE(bought_at, ?), lease_until = 0, fence = fence + 1",
            (ticket, self._clock()),
            ends=False,
            unless=("EXISTS (SELECT 1 FROM purchases WHERE ticket = ? AND id != ?)", (ticket, purchase)),
        )

    async def resolve_not_bought(self, purchase: PurchaseId, reason: str) -> bool:
        return await self._resolve(purchase, _RELEASED, (self._clock(), reason), ends=True)

    async def resolve_lost(self, purchase: PurchaseId, cost: Money | None, reason: str) -> bool:
        values = (self._clock(), None if cost is None else cost.micros, cost is not None, reason)
        return await self._resolve(purchase, _LOST, values, ends=True)

    async def _resolve(
        self,
        purchase: PurchaseId,
        changes: str,
        values: Sequence[object],
        *,
        ends: bool,
        unless: tuple[str, Sequence[object]] = ("FALSE", ()),
    ) -> bool:
        obstacle, its_values = unless

        def work(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                f"UPDATE purchases SET {changes} WHERE id = ? AND state = 'unknown' AND NOT {obstacle}",
                (*values, purchase, *its_values),
            )
            if changed.rowcount == 0:
                return False
            if ends:
                self._count_the_end_of(connection, purchase)
            return True

        return await self._database.write(work)

    # --- Statements

    async def balances_of(self, holders: Sequence[Holder], *, with_pace: bool = False) -> Sequence[Balance]:
        now = self._clock()
        read = self._database.read if len(holders) <= _FEW_HOLDERS else self._database.survey
        return await read(
            lambda connection: [
                budgets.with_pace(connection, now, balance) if with_pace else balance
                for holder in holders
                for balance in budgets.balances(connection, now, holder)
            ]
        )

    async def prospects(self, caller: Caller, model: str, price: Money) -> Sequence[Prospect]:
        now = self._clock()
        return await self._database.read(
            lambda connection: [*budgets.prospects(connection, now, caller, model, price)]
        )

    async def spent(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        return await self._by_tenant_and_model("spent_micros", tenant)

    async def reserved(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        return await self._by_tenant_and_model("held_micros", tenant)

    async def _by_tenant_and_model(
        self, which: Literal["spent_micros", "held_micros"], tenant: str | None
    ) -> Mapping[tuple[str, str], Money]:
        return await self._database.read(
            lambda connection: {
                (its, model): Money(micros)
                for its, model, micros in sums.by_tenant_and_model(connection, which, tenant)
            }
        )

    async def unknown(self) -> Money:
        def work(connection: sqlite3.Connection) -> Money:
            query = "SELECT COALESCE(SUM(held_micros), 0) FROM purchases WHERE state = 'unknown'"
            return Money(connection.execute(query).fetchone()[0])

        return await self._database.read(work)

    async def lost(self) -> Money:
        def work(connection: sqlite3.Connection) -> Money:
            query = "SELECT COALESCE(SUM(cost_micros), 0) FROM purchases WHERE state = 'lost'"
            return Money(connection.execute(query).fetchone()[0])

        return await self._database.read(work)

    async def counts(self) -> Mapping[State, int]:
        query = f"SELECT state, COUNT(*) FROM purchases WHERE {OPEN} GROUP BY state"
        return await self._database.read(
            lambda connection: {State(state): count for state, count in connection.execute(query)}
        )

    async def purchases(
        self, *, states: Collection[State] = (), tenant: str | None = None, limit: int = 100
    ) -> Sequence[Purchase]:
        condition = purchase_rows.in_any_of(states) + ("" if tenant is None else " AND tenant = ?")
        values = (limit,) if tenant is None else (tenant, limit)
        return await self._database.read(
            lambda connection: purchase_rows.select(
                connection, f"{condition} ORDER BY serial DESC LIMIT ?", *values
            )
        )

    async def purchase(self, purchase: PurchaseId) -> Purchase | None:
        def work(connection: sqlite3.Connection) -> Purchase | None:
            found = purchase_rows.select(connection, "id = ?", purchase)
            return found[0] if found else None

        return await self._database.read(work)

    # --- Evidence

    async def settled(self, model: str, shape: str | None, *, most: int) -> Sequence[Settled]:
        return await self._database.read(lambda connection: evidence.settled(connection, model, shape, most))

    # --- Audit

    async def verify(self) -> Sequence[Discrepancy]:
        return await self._database.survey(examination.discrepancies)

    async def backup(self, destination: Path) -> None:
        await self._database.backup(destination)


def _state(connection: sqlite3.Connection, purchase: PurchaseId) -> State:
    (state,) = connection.execute("SELECT state FROM purchases WHERE id = ?", (purchase,)).fetchone()
    return State(state)


def _new_id(now: float) -> PurchaseId:
    # Ids that grow with time lie side by side in their index: a million of them cost no more than the first.
    return PurchaseId(f"{int(now * 1000):012x}{secrets.token_hex(10)}")


def _marks(values: Sequence[object]) -> str:
    """So many question marks."""
    return ", ".join("?" * len(values))
