"""The ledger in SQLite."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.database.json_text import to_text
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import BudgetExceeded
from gateway.domain.generation import Blob, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller
from gateway.domain.window import SECONDS_PER_QUARTER, Span
from gateway.ledger.contract import (
    Balance,
    Bought,
    Claim,
    ClaimLost,
    Discrepancy,
    Held,
    Purchase,
    Sent,
    State,
)

_SECONDS_PER_DAY = 86_400
_QUARTERS_PER_DAY = _SECONDS_PER_DAY // SECONDS_PER_QUARTER

_SCHEMA = (
    """
    CREATE TABLE purchases (
        serial        INTEGER PRIMARY KEY AUTOINCREMENT,
        id            TEXT    NOT NULL UNIQUE,
        fingerprint   TEXT    NOT NULL,
        tenant        TEXT    NOT NULL,
        key_id        TEXT    NOT NULL,
        model         TEXT    NOT NULL,
        parameters    TEXT    NOT NULL,
        seed          INTEGER,
        fresh         INTEGER NOT NULL,
        state         TEXT    NOT NULL
                      CHECK (state IN
                          ('queued', 'sending', 'running', 'unknown', 'settled', 'released', 'lost')),
        held_micros   INTEGER NOT NULL CHECK (held_micros >= 0),
        day           INTEGER NOT NULL,
        owner         TEXT    NOT NULL,
        lease_until   REAL    NOT NULL,
        fence         INTEGER NOT NULL,
        ticket        TEXT,
        reserved_at   REAL    NOT NULL,
        sent_at       REAL,
        bought_at     REAL,
        ended_at      REAL,
        cost_micros   INTEGER CHECK (cost_micros >= 0),
        cost_reported INTEGER,
        generation    TEXT,
        reason        TEXT,
        CHECK (state NOT IN ('running', 'settled') OR ticket IS NOT NULL),
        CHECK ((state IN ('settled', 'lost')) = (cost_micros IS NOT NULL)),
        CHECK ((state = 'settled') = (generation IS NOT NULL)),
        CHECK ((state IN ('settled', 'released', 'lost')) = (ended_at IS NOT NULL))
    );
    CREATE UNIQUE INDEX one_open_purchase_a_fingerprint ON purchases (fingerprint)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX open_purchases ON purchases (tenant, day, held_micros, model)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX unknown_purchases ON purchases (held_micros) WHERE state = 'unknown';
    CREATE INDEX lost_purchases ON purchases (cost_micros) WHERE state = 'lost';
    CREATE INDEX owned_purchases ON purchases (owner)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX tickets ON purchases (ticket) WHERE ticket IS NOT NULL;
    CREATE INDEX newest_purchases ON purchases (fingerprint, serial) WHERE state != 'released';
    CREATE TABLE spending (
        tenant       TEXT    NOT NULL,
        day          INTEGER NOT NULL,
        model        TEXT    NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        purchases    INTEGER NOT NULL,
        PRIMARY KEY (tenant, day, model)
    ) WITHOUT ROWID;
    """,
    # What was asked for is apart from what changes: a change writes its row anew, and an image may be in the parameters.
    # What is left of a budget is read from one row a day, however much was ever bought and however much is open.
    """
    CREATE TABLE purchase_parameters (serial INTEGER PRIMARY KEY, parameters TEXT NOT NULL);
    INSERT INTO purchase_parameters SELECT serial, parameters FROM purchases;
    CREATE TABLE purchases_anew (
        serial        INTEGER PRIMARY KEY AUTOINCREMENT,
        id            TEXT    NOT NULL UNIQUE,
        fingerprint   TEXT    NOT NULL,
        tenant        TEXT    NOT NULL,
        key_id        TEXT    NOT NULL,
        model         TEXT    NOT NULL,
        seed          INTEGER,
        fresh         INTEGER NOT NULL,
        state         TEXT    NOT NULL
                      CHECK (state IN
                          ('queued', 'sending', 'running', 'unknown', 'settled', 'released', 'lost')),
        held_micros   INTEGER NOT NULL CHECK (held_micros >= 0),
        day           INTEGER NOT NULL,
        owner         TEXT    NOT NULL,
        lease_until   REAL    NOT NULL,
        fence         INTEGER NOT NULL,
        ticket        TEXT,
        reserved_at   REAL    NOT NULL,
        sent_at       REAL,
        bought_at     REAL,
        ended_at      REAL,
        cost_micros   INTEGER CHECK (cost_micros >= 0),
        cost_reported INTEGER,
        generation    TEXT,
        reason        TEXT,
        CHECK (state NOT IN ('running', 'settled') OR ticket IS NOT NULL),
        CHECK ((state IN ('settled', 'lost')) = (cost_micros IS NOT NULL)),
        CHECK ((state = 'settled') = (generation IS NOT NULL)),
        CHECK ((state IN ('settled', 'released', 'lost')) = (ended_at IS NOT NULL))
    );
    INSERT INTO purchases_anew
        SELECT serial, id, fingerprint, tenant, key_id, model, seed, fresh, state, held_micros, day, owner,
            lease_until, fence, ticket, reserved_at, sent_at, bought_at, ended_at, cost_micros, cost_reported,
            generation, reason
        FROM purchases;
    DROP TABLE purchases;
    ALTER TABLE purchases_anew RENAME TO purchases;
    CREATE UNIQUE INDEX one_open_purchase_a_fingerprint ON purchases (fingerprint)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX owned_purchases ON purchases (owner)
        WHERE state IN ('queued', 'sending', 'running', 'unknown');
    CREATE INDEX unknown_purchases ON purchases (held_micros) WHERE state = 'unknown';
    CREATE INDEX lost_purchases ON purchases (cost_micros) WHERE state = 'lost';
    CREATE INDEX tickets ON purchases (ticket) WHERE ticket IS NOT NULL;
    CREATE INDEX newest_purchases ON purchases (fingerprint, serial) WHERE state != 'released';

    DROP TABLE spending;
    CREATE TABLE spending (
        tenant       TEXT    NOT NULL,
        model        TEXT    NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        purchases    INTEGER NOT NULL,
        PRIMARY KEY (tenant, model)
    ) WITHOUT ROWID;
    INSERT INTO spending
        SELECT tenant, model, SUM(cost_micros), COUNT(*) FROM purchases
        WHERE cost_micros IS NOT NULL GROUP BY tenant, model;
    CREATE TABLE balances (
        tenant       TEXT    NOT NULL,
        day          INTEGER NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        held_micros  INTEGER NOT NULL CHECK (held_micros >= 0),
        PRIMARY KEY (tenant, day)
    ) WITHOUT ROWID;
    INSERT INTO balances
        SELECT tenant, day, SUM(COALESCE(cost_micros, 0)), SUM(held_micros * (ended_at IS NULL)) FROM purchases
        GROUP BY tenant, day;
    INSERT INTO balances SELECT tenant, -1, SUM(spent_micros), SUM(held_micros) FROM balances GROUP BY tenant;

    CREATE TRIGGER purchase_reserved AFTER INSERT ON purchases WHEN NEW.ended_at IS NULL BEGIN
        INSERT INTO balances
            VALUES (NEW.tenant, NEW.day, 0, NEW.held_micros), (NEW.tenant, -1, 0, NEW.held_micros)
            ON CONFLICT (tenant, day) DO UPDATE SET held_micros = held_micros + excluded.held_micros;
    END;
    CREATE TRIGGER purchase_ended AFTER UPDATE ON purchases
    WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL BEGIN
        UPDATE balances
            SET held_micros = held_micros - NEW.held_micros,
                spent_micros = spent_micros + COALESCE(NEW.cost_micros, 0)
            WHERE tenant = NEW.tenant AND day IN (NEW.day, -1);
        INSERT INTO spending SELECT NEW.tenant, NEW.model, NEW.cost_micros, 1 WHERE NEW.cost_micros IS NOT NULL
            ON CONFLICT (tenant, model) DO UPDATE SET
                spent_micros = spent_micros + excluded.spent_micros, purchases = purchases + 1;
    END;
    """,
)

_ALL = -1
"""SQLite's word for no limit."""

_ALL_DAYS = -1
"""The day of a balance over everything ever bought."""

_LAST_DAY = 1 << 60

_OPEN = "state IN ('queued', 'sending', 'running', 'unknown')"
"""As the partial indexes have it: SQLite knows a condition again by its words."""

_KEPT_APART = frozenset(State) - {State.SETTLED, State.RELEASED}
"""The states that have an index: few purchases are in them, however many there are."""

_LOST = "state = 'lost', ended_at = ?, cost_micros = COALESCE(?, held_micros), cost_reported = ?, reason = ?"

_PURCHASE = (
    "id, tenant, key_id, model, fingerprint, held_micros, seed, fresh, state, reserved_at, ticket, sent_at, ended_at, "
    "cost_micros, generation, reason, "
    "(SELECT parameters FROM purchase_parameters AS asked WHERE asked.serial = purchases.serial)"
)

_STATES: Mapping[type[Claim], State] = {Held: State.QUEUED, Sent: State.SENDING, Bought: State.RUNNING}
"""Where a purchase is while the claim is good: with an outgrown one, money could be given back for what is bought."""


class SqliteLedger:
    """Keeps the contracts Ledger, Custody, Resolution, Statements and Audit.

    `owner` names this process in the journal; `is_alive` answers whether the process behind another owner's name
    still lives, so that what the dead left is adopted at once and not when their leases run out.
    """

    def __init__(
        self,
        database: SqliteDatabase,
        *,
        clock: Clock,
        owner: str,
        is_alive: Callable[[str], bool],
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._clock = clock
        self._owner = owner
        self._is_alive = is_alive
        self._lease_seconds = lease_seconds
        database.migrate("ledger", _SCHEMA)

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
        newest = _newest(connection, request.fingerprint)
        if newest is not None and (newest.id != newest_known or newest.state.is_open):
            return newest
        tenant = caller.tenant.name
        for balance in _balances(connection, now, tenant, caller.tenant.budgets):
            if request.price > balance.remaining:
                raise BudgetExceeded(
                    tenant=tenant,
                    window=balance.budget.per,
                    limit=balance.budget.limit,
                    spent=balance.spent,
                    reserved=balance.reserved,
                    price=request.price,
                    resets_at=balance.budget.per.resets_at(now),
                )
        purchase = _new_id(now)
        inserted = connection.execute(
            "INSERT INTO purchases (id, fingerprint, tenant, key_id, model, seed, fresh, state, held_micros, day, "
            "owner, lease_until, fence, reserved_at, sent_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
            (
                purchase,
                request.fingerprint,
                tenant,
                caller.key_id,
                request.model,
                request.seed,
                request.fresh,
                (State.SENDING if sending else State.QUEUED).value,
                request.price.micros,
                int(now // _SECONDS_PER_DAY),
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
        self._changes_what_is_left_to(tenant)
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
        tenant, model, fingerprint, held_micros, asked_seed, kept = connection.execute(
            "SELECT tenant, model, fingerprint, held_micros, seed, generation FROM purchases WHERE id = ?",
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
        self._advance(
            connection,
            bought,
            "state = 'settled', ended_at = ?, cost_micros = ?, cost_reported = ?, generation = ?",
            (now, generation.cost.micros, cost is not None, to_text(generation.to_json())),
        )
        self._changes_what_is_left_to(tenant)
        return generation

    async def release(self, claim: Held | Sent | Bought, reason: str) -> None:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> None:
            tenant, state = _tenant_and_state(connection, claim.purchase)
            if state is not State.RELEASED:
                self._advance(
                    connection, claim, "state = 'released', ended_at = ?, reason = ?", (now, reason)
                )
                self._changes_what_is_left_to(tenant)

        await self._database.write(work)

    async def mark_unknown(self, claim: Sent | Bought, reason: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            _, state = _tenant_and_state(connection, claim.purchase)
            if state is not State.UNKNOWN:
                self._advance(connection, claim, "state = 'unknown', reason = ?", (reason,))

        await self._database.write(work)

    async def write_off(self, bought: Bought, *, cost: Money | None, reason: str) -> None:
        values = (self._clock(), None if cost is None else cost.micros, cost is not None, reason)

        def work(connection: sqlite3.Connection) -> None:
            tenant, state = _tenant_and_state(connection, bought.purchase)
            if state is not State.LOST:
                self._advance(connection, bought, _LOST, values)
                self._changes_what_is_left_to(tenant)

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

    def _changes_what_is_left_to(self, tenant: str) -> None:
        self._database.changes(f"tenant:{tenant}")

    # --- Custody

    async def newest(self, fingerprint: Fingerprint) -> Purchase | None:
        return await self._database.read(lambda connection: _newest(connection, fingerprint))

    async def orphans(self, *, tended: AbstractSet[Fingerprint] = frozenset()) -> Sequence[Purchase]:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> Sequence[Purchase]:
            owners = connection.execute(f"SELECT DISTINCT owner FROM purchases WHERE {_OPEN}").fetchall()
            dead = [owner for (owner,) in owners if owner == self._owner or not self._is_alive(owner)]
            # Thousands may be open and tended to: only what is neither is read whole. Sorted here, since SQLite would
            # rather walk through everything ever bought than sort what is open.
            found = connection.execute(
                f"SELECT serial, id, fingerprint FROM purchases WHERE {_OPEN} AND state != 'unknown' "
                f"AND (lease_until <= ? OR owner IN ({_marks(dead)}))",
                (now, *dead),
            ).fetchall()
            return [
                _purchase(connection, identity)
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
            f"SELECT owner, lease_until, fence, state, ticket FROM purchases WHERE id = ? AND {_OPEN} "
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
                f"UPDATE purchases SET lease_until = ? WHERE owner = ? AND {_OPEN}", (until, self._owner)
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
            unless=("EXISTS (SELECT 1 FROM purchases WHERE ticket = ? AND id != ?)", (ticket, purchase)),
        )

    async def resolve_not_bought(self, purchase: PurchaseId, reason: str) -> bool:
        return await self._resolve(
            purchase, "state = 'released', ended_at = ?, reason = ?", (self._clock(), reason)
        )

    async def resolve_lost(self, purchase: PurchaseId, cost: Money | None, reason: str) -> bool:
        values = (self._clock(), None if cost is None else cost.micros, cost is not None, reason)
        return await self._resolve(purchase, _LOST, values)

    async def _resolve(
        self,
        purchase: PurchaseId,
        changes: str,
        values: Sequence[object],
        *,
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
            tenant, _ = _tenant_and_state(connection, purchase)
            self._changes_what_is_left_to(tenant)
            return True

        return await self._database.write(work)

    # --- Statements

    async def balances(self, tenant: str, budgets: Sequence[Budget]) -> Sequence[Balance]:
        now = self._clock()
        return await self._database.read(lambda connection: _balances(connection, now, tenant, budgets))

    async def spent(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        query = "SELECT tenant, model, spent_micros FROM spending WHERE {}"
        return await self._by_tenant_and_model(query, tenant)

    async def reserved(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        query = f"SELECT tenant, model, SUM(held_micros) FROM purchases WHERE {_OPEN} AND {{}} GROUP BY tenant, model"
        return await self._by_tenant_and_model(query, tenant)

    async def _by_tenant_and_model(self, query: str, tenant: str | None) -> Mapping[tuple[str, str], Money]:
        condition, values = ("TRUE", ()) if tenant is None else ("tenant = ?", (tenant,))
        return await self._database.read(
            lambda connection: {
                (its, model): Money(micros)
                for its, model, micros in connection.execute(query.format(condition), values)
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
        query = f"SELECT state, COUNT(*) FROM purchases WHERE {_OPEN} GROUP BY state"
        return await self._database.read(
            lambda connection: {State(state): count for state, count in connection.execute(query)}
        )

    async def purchases(
        self, *, states: Collection[State] = (), tenant: str | None = None, limit: int = 100
    ) -> Sequence[Purchase]:
        condition = _in_any_of(states) + ("" if tenant is None else " AND tenant = ?")
        values = (limit,) if tenant is None else (tenant, limit)
        return await self._database.read(
            lambda connection: _select(connection, f"{condition} ORDER BY serial DESC LIMIT ?", *values)
        )

    async def purchase(self, purchase: PurchaseId) -> Purchase | None:
        def work(connection: sqlite3.Connection) -> Purchase | None:
            found = _select(connection, "id = ?", purchase)
            return found[0] if found else None

        return await self._database.read(work)

    # --- Audit

    async def verify(self) -> Sequence[Discrepancy]:
        return await self._database.read(_discrepancies)

    async def backup(self, destination: Path) -> None:
        await self._database.backup(destination)


def _discrepancies(connection: sqlite3.Connection) -> Sequence[Discrepancy]:
    found = []
    (integrity,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if integrity != "ok":
        found.append(Discrepancy("the database file", integrity))
    for tenant, model, booked, owed in _unequal(
        connection,
        "SELECT tenant, model, spent_micros, purchases FROM spending",
        "SELECT tenant, model, SUM(cost_micros), COUNT(*) FROM purchases WHERE state IN ('settled', 'lost') "
        "GROUP BY tenant, model",
    ):
        found.append(
            Discrepancy(
                f"spending of {tenant} for {model}",
                f"booked are {booked[0]} micro-dollars for {booked[1]} purchases, and the purchases come to "
                f"{owed[0]} for {owed[1]}",
            )
        )
    sums = f"SUM(COALESCE(cost_micros, 0)), SUM(CASE WHEN {_OPEN} THEN held_micros ELSE 0 END)"
    for tenant, day, booked, owed in _unequal(
        connection,
        "SELECT tenant, day, spent_micros, held_micros FROM balances",
        f"SELECT tenant, day, {sums} FROM purchases GROUP BY tenant, day "
        f"UNION ALL SELECT tenant, {_ALL_DAYS}, {sums} FROM purchases GROUP BY tenant",
    ):
        when = "in all" if day == _ALL_DAYS else datetime.fromtimestamp(day * _SECONDS_PER_DAY, UTC).date()
        found.append(
            Discrepancy(
                f"balance of {tenant}, {when}",
                f"booked are {booked[0]} micro-dollars spent and {booked[1]} held, and the purchases come to "
                f"{owed[0]} and {owed[1]}",
            )
        )
    for identity, fingerprint, cost_micros, kept in connection.execute(
        "SELECT id, fingerprint, cost_micros, generation FROM purchases WHERE state = 'settled'"
    ):
        generation = json.loads(kept)
        if generation.get("fingerprint") != fingerprint:
            found.append(Discrepancy(f"purchase {identity}", "its generation is another request's"))
        if generation.get("cost_micros") != cost_micros:
            found.append(Discrepancy(f"purchase {identity}", "its generation cost something else"))
    for (identity,) in connection.execute(
        "SELECT id FROM purchases WHERE serial NOT IN (SELECT serial FROM purchase_parameters)"
    ):
        found.append(Discrepancy(f"purchase {identity}", "what was asked for is not there"))
    for ticket, count in connection.execute(
        "SELECT ticket, COUNT(*) FROM purchases WHERE ticket IS NOT NULL GROUP BY ticket HAVING COUNT(*) > 1"
    ):
        found.append(Discrepancy(f"ticket {ticket}", f"{count} purchases have it"))
    return found


def _unequal(
    connection: sqlite3.Connection, booked: str, owed: str
) -> Iterator[tuple[Any, Any, tuple[Any, Any], tuple[Any, Any]]]:
    """Where two tables of two names and two numbers differ, or where either has a row that the other has not."""
    ours, theirs = (
        {(first, second): (number, other) for first, second, number, other in connection.execute(query)}
        for query in (booked, owed)
    )
    nothing = (None, 0)
    for place in sorted({*ours, *theirs}):
        if ours.get(place) != theirs.get(place):
            yield *place, ours.get(place, nothing), theirs.get(place, nothing)


def _balances(
    connection: sqlite3.Connection, now: float, tenant: str, budgets: Sequence[Budget]
) -> Sequence[Balance]:
    balances = []
    for budget in budgets:
        span = budget.per.span(now) or Span()
        first, last = (span.start // _QUARTERS_PER_DAY, _LAST_DAY) if span.end else (_ALL_DAYS, _ALL_DAYS)
        spent, reserved = connection.execute(
            "SELECT COALESCE(SUM(spent_micros), 0), COALESCE(SUM(held_micros), 0) FROM balances "
            "WHERE tenant = ? AND day BETWEEN ? AND ?",
            (tenant, first, last),
        ).fetchone()
        balances.append(Balance(budget, Money(spent), Money(reserved)))
    return balances


def _newest(connection: sqlite3.Connection, fingerprint: Fingerprint) -> Purchase | None:
    found = _select(
        connection, "fingerprint = ? AND state != 'released' ORDER BY serial DESC LIMIT 1", fingerprint
    )
    return found[0] if found else None


def _purchase(connection: sqlite3.Connection, purchase: PurchaseId) -> Purchase:
    return _select(connection, "id = ?", purchase)[0]


def _tenant_and_state(connection: sqlite3.Connection, purchase: PurchaseId) -> tuple[str, State]:
    tenant, state = connection.execute(
        "SELECT tenant, state FROM purchases WHERE id = ?", (purchase,)
    ).fetchone()
    return tenant, State(state)


def _new_id(now: float) -> PurchaseId:
    # Ids that grow with time lie side by side in their index: a million of them cost no more than the first.
    return PurchaseId(f"{int(now * 1000):012x}{secrets.token_hex(10)}")


def _in_any_of(states: Collection[State]) -> str:
    if not states:
        return "TRUE"
    if not _KEPT_APART.issuperset(states):
        return f"state IN ({', '.join(repr(state.value) for state in states)})"
    # Each in the index that has it: what is open or lost is found without a walk through what was settled.
    each = (
        f"SELECT serial FROM purchases WHERE state = '{state.value}'{f' AND {_OPEN}' if state.is_open else ''}"
        for state in states
    )
    return f"serial IN ({' UNION ALL '.join(each)})"


def _marks(values: Sequence[object]) -> str:
    """So many question marks."""
    return ", ".join("?" * len(values))


def _select(connection: sqlite3.Connection, condition: str, *values: object) -> list[Purchase]:
    query = f"SELECT {_PURCHASE} FROM purchases WHERE {condition}"
    return [_from_row(*row) for row in connection.execute(query, values)]


def _from_row(
    identity: str,
    tenant: str,
    key_id: str,
    model: str,
    fingerprint: str,
    held_micros: int,
    seed: int | None,
    fresh: int,
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
        key_id=key_id,
        request=GenerationRequest(
            model=model,
            parameters=json.loads(parameters),
            fingerprint=Fingerprint(fingerprint),
            price=Money(held_micros),
            seed=seed,
            fresh=bool(fresh),
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
