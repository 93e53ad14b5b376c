"""The ledger in SQLite."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import BudgetExceeded
from gateway.domain.generation import Blob, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller
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
)

_ALL = -1
"""SQLite's word for no limit."""

_OPEN = "state IN ('queued', 'sending', 'running', 'unknown')"

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
        for budget in caller.tenant.budgets:
            balance = _balance(connection, now, caller.tenant.name, budget)
            if request.price > balance.remaining:
                raise BudgetExceeded(
                    tenant=caller.tenant.name,
                    window=budget.per,
                    limit=budget.limit,
                    spent=balance.spent,
                    reserved=balance.reserved,
                    price=request.price,
                    resets_at=budget.per.resets_at(now),
                )
        self._changes_what_is_left_to(caller.tenant.name)
        purchase = PurchaseId(uuid.uuid4().hex)
        connection.execute(
            "INSERT INTO purchases (id, fingerprint, tenant, key_id, model, parameters, seed, fresh, state, "
            "held_micros, day, owner, lease_until, fence, reserved_at, sent_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
            (
                purchase,
                request.fingerprint,
                caller.tenant.name,
                caller.key_id,
                request.model,
                json.dumps(request.parameters, ensure_ascii=False),
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
        purchase = _purchase(connection, bought.purchase)
        if purchase.generation is not None:
            return purchase.generation
        generation = Generation(
            fingerprint=purchase.request.fingerprint,
            model=purchase.request.model,
            blobs=blobs,
            cost=purchase.request.price if cost is None else cost,
            purchase=purchase.id,
            ticket=bought.ticket,
            made_at=now,
            seconds=seconds,
            seed=purchase.request.seed if seed is None else seed,
        )
        self._advance(
            connection,
            bought,
            "state = 'settled', ended_at = ?, cost_micros = ?, cost_reported = ?, generation = ?",
            (now, generation.cost.micros, cost is not None, json.dumps(generation.to_json())),
        )
        _spend(connection, bought.purchase)
        self._changes_what_is_left_to(purchase.tenant)
        return generation

    async def release(self, claim: Held | Sent | Bought, reason: str) -> None:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> None:
            purchase = _purchase(connection, claim.purchase)
            if purchase.state is not State.RELEASED:
                self._advance(
                    connection, claim, "state = 'released', ended_at = ?, reason = ?", (now, reason)
                )
                self._changes_what_is_left_to(purchase.tenant)

        await self._database.write(work)

    async def mark_unknown(self, claim: Sent | Bought, reason: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            if _purchase(connection, claim.purchase).state is not State.UNKNOWN:
                self._advance(connection, claim, "state = 'unknown', reason = ?", (reason,))

        await self._database.write(work)

    async def write_off(self, bought: Bought, *, cost: Money | None, reason: str) -> None:
        now = self._clock()

        def work(connection: sqlite3.Connection) -> None:
            purchase = _purchase(connection, bought.purchase)
            if purchase.state is State.LOST:
                return
            spent = purchase.request.price if cost is None else cost
            self._advance(
                connection,
                bought,
                "state = 'lost', ended_at = ?, cost_micros = ?, cost_reported = ?, reason = ?",
                (now, spent.micros, cost is not None, reason),
            )
            _spend(connection, bought.purchase)
            self._changes_what_is_left_to(purchase.tenant)

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
            # Thousands may be open and tended to: only what is neither is read whole.
            found = connection.execute(
                f"SELECT id, fingerprint FROM purchases WHERE {_OPEN} AND state != 'unknown' "
                f"AND (lease_until <= ? OR owner IN ({', '.join('?' * len(dead))})) ORDER BY serial",
                (now, *dead),
            ).fetchall()
            return [
                _purchase(connection, identity)
                for identity, fingerprint in found
                if fingerprint not in tended
            ]

        return await self._database.read(work)

    async def adopt(self, purchase: PurchaseId) -> Held | Sent | Bought | None:
        now = self._clock()
        return await self._database.write(lambda connection: self._adopt(connection, now, purchase))

    def _adopt(
        self, connection: sqlite3.Connection, now: float, purchase: PurchaseId
    ) -> Held | Sent | Bought | None:
        rows = _rows(
            connection, f"SELECT * FROM purchases WHERE id = ? AND {_OPEN} AND state != 'unknown'", purchase
        )
        if not rows:
            return None
        row = rows[0]
        in_anothers_good_hands = (
            row["owner"] != self._owner and row["lease_until"] > now and self._is_alive(row["owner"])
        )
        if in_anothers_good_hands:
            return None
        fence = row["fence"] + 1
        connection.execute(
            "UPDATE purchases SET owner = ?, lease_until = ?, fence = ? WHERE id = ?",
            (self._owner, now + self._lease_seconds, fence, purchase),
        )
        match State(row["state"]):
            case State.QUEUED:
                return Held(purchase, fence)
            case State.SENDING:
                return Sent(purchase, fence)
            case _:
                return Bought(purchase, fence, Ticket(row["ticket"]))

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
        query = f"SELECT DISTINCT ticket FROM purchases WHERE ticket IN ({', '.join('?' * len(asked))})"
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
        return await self._resolve(
            purchase,
            "state = 'lost', ended_at = ?, cost_micros = COALESCE(?, held_micros), cost_reported = ?, reason = ?",
            (self._clock(), None if cost is None else cost.micros, cost is not None, reason),
            spends=True,
        )

    async def _resolve(
        self,
        purchase: PurchaseId,
        changes: str,
        values: Sequence[object],
        *,
        spends: bool = False,
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
            if spends:
                _spend(connection, purchase)
            self._changes_what_is_left_to(_purchase(connection, purchase).tenant)
            return True

        return await self._database.write(work)

    # --- Statements

    async def balances(self, tenant: str, budgets: Sequence[Budget]) -> Sequence[Balance]:
        now = self._clock()
        return await self._database.read(
            lambda connection: [_balance(connection, now, tenant, budget) for budget in budgets]
        )

    async def spent(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        return await self._sums("spent_micros", "spending", "TRUE", tenant)

    async def reserved(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        return await self._sums("held_micros", "purchases", _OPEN, tenant)

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
        wanted = [state.value for state in states or State]
        query = (
            f"SELECT * FROM purchases WHERE state IN ({', '.join('?' * len(wanted))}) "
            "AND (? IS NULL OR tenant = ?) ORDER BY serial DESC LIMIT ?"
        )
        return await self._database.read(
            lambda connection: [
                _from_row(row) for row in _rows(connection, query, *wanted, tenant, tenant, limit)
            ]
        )

    async def purchase(self, purchase: PurchaseId) -> Purchase | None:
        def work(connection: sqlite3.Connection) -> Purchase | None:
            rows = _rows(connection, "SELECT * FROM purchases WHERE id = ?", purchase)
            return _from_row(rows[0]) if rows else None

        return await self._database.read(work)

    # --- Audit

    async def verify(self) -> Sequence[Discrepancy]:
        return await self._database.read(_discrepancies)

    async def backup(self, destination: Path) -> None:
        await self._database.backup(destination)

    async def _sums(
        self, column: str, table: str, condition: str, tenant: str | None
    ) -> Mapping[tuple[str, str], Money]:
        query = (
            f"SELECT tenant, model, SUM({column}) FROM {table} "
            f"WHERE {condition} AND (? IS NULL OR tenant = ?) GROUP BY tenant, model"
        )
        return await self._database.read(
            lambda connection: {
                (tenant, model): Money(micros)
                for tenant, model, micros in connection.execute(query, (tenant, tenant))
            }
        )


def _spend(connection: sqlite3.Connection, purchase: PurchaseId) -> None:
    # Money counts in the window in which it was reserved, whenever the upstream gets round to it.
    connection.execute(
        "INSERT INTO spending SELECT tenant, day, model, cost_micros, 1 FROM purchases WHERE id = ? "
        "ON CONFLICT (tenant, day, model) DO UPDATE SET "
        "spent_micros = spent_micros + excluded.spent_micros, purchases = purchases + 1",
        (purchase,),
    )


def _discrepancies(connection: sqlite3.Connection) -> Sequence[Discrepancy]:
    found = []
    (integrity,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if integrity != "ok":
        found.append(Discrepancy("the database file", integrity))
    derived = """
        SELECT tenant, day, model, SUM(cost_micros) AS spent, COUNT(*) AS bought FROM purchases
        WHERE state IN ('settled', 'lost') GROUP BY tenant, day, model
    """
    # Both ways round: a sum without its purchases is as wrong as purchases without their sum.
    for query in (
        f"""
        SELECT d.tenant, d.day, d.model, s.spent_micros, d.spent, s.purchases, d.bought FROM ({derived}) AS d
        LEFT JOIN spending AS s ON (s.tenant, s.day, s.model) = (d.tenant, d.day, d.model)
        WHERE s.spent_micros IS NOT d.spent OR s.purchases IS NOT d.bought
        """,
        f"""
        SELECT s.tenant, s.day, s.model, s.spent_micros, NULL, s.purchases, 0 FROM spending AS s
        LEFT JOIN ({derived}) AS d ON (s.tenant, s.day, s.model) = (d.tenant, d.day, d.model)
        WHERE d.tenant IS NULL
        """,
    ):
        for tenant, day, model, booked, owed, booked_count, count in connection.execute(query):
            date = datetime.fromtimestamp(day * _SECONDS_PER_DAY, UTC).date()
            found.append(
                Discrepancy(
                    f"spending of {tenant} for {model} on {date}",
                    f"booked are {booked} micro-dollars for {booked_count} purchases, and the purchases come to "
                    f"{owed} for {count}",
                )
            )
    for identity, fingerprint, kept in connection.execute(
        "SELECT id, fingerprint, generation FROM purchases WHERE state = 'settled'"
    ):
        if json.loads(kept).get("fingerprint") != fingerprint:
            found.append(Discrepancy(f"purchase {identity}", "its generation is another request's"))
    for ticket, count in connection.execute(
        "SELECT ticket, COUNT(*) FROM purchases WHERE ticket IS NOT NULL GROUP BY ticket HAVING COUNT(*) > 1"
    ):
        found.append(Discrepancy(f"ticket {ticket}", f"{count} purchases have it"))
    return found


def _balance(connection: sqlite3.Connection, now: float, tenant: str, budget: Budget) -> Balance:
    first_day = _first_day(budget.per.start(now))
    (spent,) = connection.execute(
        "SELECT COALESCE(SUM(spent_micros), 0) FROM spending WHERE tenant = ? AND day >= ?",
        (tenant, first_day),
    ).fetchone()
    (reserved,) = connection.execute(
        f"SELECT COALESCE(SUM(held_micros), 0) FROM purchases WHERE tenant = ? AND day >= ? AND {_OPEN}",
        (tenant, first_day),
    ).fetchone()
    return Balance(budget, Money(spent), Money(reserved))


def _first_day(start: datetime | None) -> int:
    return int(start.timestamp() // _SECONDS_PER_DAY) if start else 0


def _newest(connection: sqlite3.Connection, fingerprint: Fingerprint) -> Purchase | None:
    rows = _rows(
        connection,
        "SELECT * FROM purchases WHERE fingerprint = ? AND state != 'released' ORDER BY serial DESC LIMIT 1",
        fingerprint,
    )
    return _from_row(rows[0]) if rows else None


def _purchase(connection: sqlite3.Connection, purchase: PurchaseId) -> Purchase:
    return _from_row(_rows(connection, "SELECT * FROM purchases WHERE id = ?", purchase)[0])


def _rows(connection: sqlite3.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    cursor = connection.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _from_row(row: Mapping[str, Any]) -> Purchase:
    return Purchase(
        id=PurchaseId(row["id"]),
        tenant=row["tenant"],
        key_id=row["key_id"],
        request=GenerationRequest(
            model=row["model"],
            parameters=json.loads(row["parameters"]),
            fingerprint=Fingerprint(row["fingerprint"]),
            price=Money(row["held_micros"]),
            seed=row["seed"],
            fresh=bool(row["fresh"]),
        ),
        state=State(row["state"]),
        reserved_at=row["reserved_at"],
        ticket=Ticket(row["ticket"]) if row["ticket"] else None,
        sent_at=row["sent_at"],
        ended_at=row["ended_at"],
        cost=None if row["cost_micros"] is None else Money(row["cost_micros"]),
        generation=Generation.from_json(json.loads(row["generation"])) if row["generation"] else None,
        reason=row["reason"],
    )
