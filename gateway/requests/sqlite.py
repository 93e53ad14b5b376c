"""Requests and tallies in SQLite."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from gateway.database.json_text import to_text
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.generation import CacheStatus, Generation, GenerationRequest, Json
from gateway.domain.identity import Fingerprint, PurchaseId, RequestId
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span, quarter
from gateway.requests.contract import Completed, Failed, Outcome, RequestRecord, Tally

_SCHEMA = (
    """
    CREATE TABLE requests (
        id           TEXT NOT NULL PRIMARY KEY,
        tenant       TEXT NOT NULL,
        key_id       TEXT NOT NULL,
        request      TEXT NOT NULL,
        submitted_at REAL NOT NULL,
        purchase     TEXT,
        owner        TEXT NOT NULL,
        concluded_at REAL,
        outcome      TEXT,
        CHECK ((concluded_at IS NULL) = (outcome IS NULL))
    ) WITHOUT ROWID;
    CREATE INDEX pending_requests ON requests (owner, submitted_at) WHERE outcome IS NULL;
    CREATE INDEX concluded_requests ON requests (submitted_at) WHERE outcome IS NOT NULL;
    CREATE TABLE tallies (
        tenant                  TEXT    NOT NULL,
        model                   TEXT    NOT NULL,
        hits                    INTEGER NOT NULL,
        misses                  INTEGER NOT NULL,
        collapsed               INTEGER NOT NULL,
        bypasses                INTEGER NOT NULL,
        saved_by_hits_micros    INTEGER NOT NULL,
        saved_by_joining_micros INTEGER NOT NULL,
        PRIMARY KEY (tenant, model)
    ) WITHOUT ROWID;
    """,
    # What was asked for is apart from what changes: a change writes its row anew, and an image may be in the request. Rows
    # lie in the order in which they came: ids are random, and what is written at the same time would lie far apart.
    # `outcome` ends the index of what is pending so that nothing but the index is read.
    """
    CREATE TABLE requested (serial INTEGER PRIMARY KEY, request TEXT NOT NULL);
    CREATE TABLE requests_anew (
        serial       INTEGER PRIMARY KEY,
        id           TEXT NOT NULL UNIQUE,
        tenant       TEXT NOT NULL,
        key_id       TEXT NOT NULL,
        submitted_at REAL NOT NULL,
        purchase     TEXT,
        owner        TEXT NOT NULL,
        concluded_at REAL,
        outcome      TEXT,
        CHECK ((concluded_at IS NULL) = (outcome IS NULL))
    );
    INSERT INTO requests_anew (id, tenant, key_id, submitted_at, purchase, owner, concluded_at, outcome)
        SELECT id, tenant, key_id, submitted_at, purchase, owner, concluded_at, outcome FROM requests
        ORDER BY submitted_at;
    INSERT INTO requested
        SELECT anew.serial, requests.request FROM requests JOIN requests_anew AS anew USING (id) ORDER BY anew.serial;
    DROP TABLE requests;
    ALTER TABLE requests_anew RENAME TO requests;
    CREATE INDEX pending_requests ON requests (owner, submitted_at, id, outcome) WHERE outcome IS NULL;
    CREATE INDEX concluded_requests ON requests (submitted_at) WHERE outcome IS NOT NULL;
    """,
    # By quarter of an hour and key, for reports. What was counted until now is nobody's key's, and of no time.
    """
    CREATE TABLE tallies_by_quarter (
        quarter                 INTEGER NOT NULL,
        path                    TEXT    NOT NULL,
        key_id                  TEXT    NOT NULL,
        model                   TEXT    NOT NULL,
        hits                    INTEGER NOT NULL,
        misses                  INTEGER NOT NULL,
        collapsed               INTEGER NOT NULL,
        bypasses                INTEGER NOT NULL,
        saved_by_hits_micros    INTEGER NOT NULL,
        saved_by_joining_micros INTEGER NOT NULL,
        PRIMARY KEY (quarter, path, key_id, model)
    ) WITHOUT ROWID;
    INSERT INTO tallies_by_quarter
        SELECT 0, tenant, '', model, hits, misses, collapsed, bypasses, saved_by_hits_micros, saved_by_joining_micros
        FROM tallies;
    """,
)

_COUNTS = "hits, misses, collapsed, bypasses, saved_by_hits_micros, saved_by_joining_micros"

_ADDED = ", ".join(f"{count} = {count} + excluded.{count}" for count in _COUNTS.split(", "))

_REST_SECONDS_A_ROW = 0.004
"""A row takes some twenty microseconds to write down: so much of the time, one part in two hundred, goes into that at most."""

_LONGEST_REST_SECONDS = 4.0

_FORGOTTEN_AT_ONCE = 500
"""So that forgetting keeps nobody waiting."""


class SqliteRequestRecords:
    """Keeps the contract RequestRecords."""

    def __init__(
        self, database: SqliteDatabase, *, clock: Clock, owner: str, is_alive: Callable[[str], bool]
    ) -> None:
        """`owner` names this process; `is_alive` answers whether the process behind another name still lives."""
        self._database = database
        self._clock = clock
        self._owner = owner
        self._is_alive = is_alive
        database.migrate("requests", _SCHEMA)

    async def open(self, record: RequestRecord, *, patient: bool = False) -> None:
        row = (
            record.id,
            record.tenant,
            record.key_id,
            record.submitted_at,
            record.purchase,
            self._owner,
            record.concluded_at,
            _outcome_to_text(record.outcome) if record.outcome else None,
        )

        def work(connection: sqlite3.Connection) -> None:
            inserted = connection.execute(
                "INSERT INTO requests (id, tenant, key_id, submitted_at, purchase, owner, concluded_at, outcome) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            connection.execute(
                "INSERT INTO requested VALUES (?, ?)",
                (inserted.lastrowid, to_text(_request_to_json(record.request))),
            )

        await self._database.write(work, patient=patient)

    async def conclude(self, request: RequestId, outcome: Outcome, *, at: float | None = None) -> None:
        values = (self._clock() if at is None else at, _outcome_to_text(outcome), request)
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE requests SET concluded_at = ?, outcome = ? WHERE id = ? AND outcome IS NULL", values
            ),
            patient=True,
        )

    async def find(self, request: RequestId, tenant: str) -> RequestRecord | None:
        found = await self._select("id = ? AND tenant = ?", request, tenant)
        return found[0] if found else None

    async def adopt_pending(self, *, followed: AbstractSet[RequestId]) -> Sequence[RequestRecord]:
        owners = await self._database.read(
            lambda connection: connection.execute(
                "SELECT DISTINCT owner FROM requests WHERE outcome IS NULL"
            ).fetchall()
        )
        dead = [(self._owner, owner) for (owner,) in owners if not self._is_alive(owner)]
        if dead:
            await self._database.write(
                lambda connection: connection.executemany(
                    "UPDATE requests SET owner = ? WHERE owner = ? AND outcome IS NULL", dead
                )
            )
        ours = await self._database.read(
            lambda connection: connection.execute(
                "SELECT id FROM requests WHERE outcome IS NULL AND owner = ? ORDER BY submitted_at, id",
                (self._owner,),
            ).fetchall()
        )
        loose = [identity for (identity,) in ours if identity not in followed]
        found = [await self._select("id = ? AND outcome IS NULL", identity) for identity in loose]
        return [record for records in found for record in records]

    async def forget_before(self, moment: float) -> int:
        def work(connection: sqlite3.Connection) -> int:
            old = connection.execute(
                "SELECT serial FROM requests WHERE outcome IS NOT NULL AND submitted_at < ? LIMIT ?",
                (moment, _FORGOTTEN_AT_ONCE),
            ).fetchall()
            connection.executemany("DELETE FROM requested WHERE serial = ?", old)
            connection.executemany("DELETE FROM requests WHERE serial = ?", old)
            return len(old)

        forgotten = 0
        while more := await self._database.write(work):
            forgotten += more
        return forgotten

    async def _select(self, condition: str, *values: object) -> Sequence[RequestRecord]:
        query = (
            "SELECT id, tenant, key_id, request, submitted_at, purchase, concluded_at, outcome "
            f"FROM requests JOIN requested USING (serial) WHERE {condition}"
        )
        return await self._database.read(
            lambda connection: [_record(*row) for row in connection.execute(query, values)]
        )


class SqliteTallies:
    """Keeps the contract Tallies: counted in memory, written down by `flush`."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._counted: dict[tuple[int, Party, str], Tally] = {}
        self._feeders: list[Callable[[], Awaitable[None]]] = []
        self._rests_until = 0.0
        database.migrate("requests", _SCHEMA)

    def count(self, party: Party, model: str, status: CacheStatus, saved: Money, *, at: float) -> None:
        match status:
            case CacheStatus.HIT:
                more = Tally(hits=1, saved_by_hits=saved)
            case CacheStatus.COLLAPSED:
                more = Tally(collapsed=1, saved_by_joining=saved)
            case CacheStatus.MISS:
                more = Tally(misses=1)
            case CacheStatus.BYPASS:
                more = Tally(bypasses=1)
        self.add(party, model, more, at=at)

    def add(self, party: Party, model: str, more: Tally, *, at: float) -> None:
        place = (quarter(at), party, model)
        self._counted[place] = self._counted.get(place, Tally()) + more

    def feed_from(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        """Have `hand_over` called, which adds what was counted elsewhere, whenever counts are written down or read."""
        self._feeders.append(hand_over)

    async def keep_up(self) -> None:
        """To be called each second: `flush`, every five seconds at least, and each second where few have asked.

        Where thousands have, it takes long enough that those who ask meanwhile would be answered later for it.
        """
        if asyncio.get_running_loop().time() >= self._rests_until:
            await self.flush()

    async def flush(self) -> None:
        for hand_over in self._feeders:
            await hand_over()
        counted, self._counted = self._counted, {}
        rest_seconds = min(_LONGEST_REST_SECONDS, len(counted) * _REST_SECONDS_A_ROW)
        self._rests_until = asyncio.get_running_loop().time() + rest_seconds
        if not counted:
            return
        try:
            await self._database.write(lambda connection: _add(connection, counted))
        except Exception:
            # And not where nobody waits for it any more: then it is being written all the same.
            for place, tally in counted.items():
                self._counted[place] = self._counted.get(place, Tally()) + tally
            raise

    async def totals(self, tenant: str | None = None) -> Mapping[tuple[str, str], Tally]:
        await self.flush()
        query = f"SELECT tenant, model, {_COUNTS} FROM tallies WHERE ? IS NULL OR tenant = ?"
        return await self._database.read(
            lambda connection: {
                (tenant, model): _tally(*counts)
                for tenant, model, *counts in connection.execute(query, (tenant, tenant))
            }
        )

    async def by_key(self, spans: Sequence[Span]) -> Mapping[tuple[Party, str, int], Tally]:
        await self.flush()
        sums = ", ".join(f"SUM({count})" for count in _COUNTS.split(", "))
        query = (
            f"SELECT path, key_id, model, {sums} FROM tallies_by_quarter "
            "WHERE quarter >= ? AND quarter < COALESCE(?, 1 << 60) GROUP BY path, key_id, model"
        )
        return await self._database.survey(
            lambda connection: {
                (Party(path, key_id), model, number): _tally(*counts)
                for number, span in enumerate(spans)
                for path, key_id, model, *counts in connection.execute(query, (span.start, span.end))
            }
        )


def _add(connection: sqlite3.Connection, counted: Mapping[tuple[int, Party, str], Tally]) -> None:
    # Row by row: a list of them all would be made in one go, and whoever waits for the interpreter would wait for that.
    connection.executemany(
        f"INSERT INTO tallies VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, model) DO UPDATE SET {_ADDED}",
        ((party.tenant, model, *_counts(tally)) for (_, party, model), tally in counted.items()),
    )
    connection.executemany(
        "INSERT INTO tallies_by_quarter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        f"ON CONFLICT (quarter, path, key_id, model) DO UPDATE SET {_ADDED}",
        (
            (at, party.path, party.key_id, model, *_counts(tally))
            for (at, party, model), tally in counted.items()
        ),
    )


def _counts(tally: Tally) -> tuple[int, ...]:
    """As `_COUNTS` has them."""
    return (
        tally.hits,
        tally.misses,
        tally.collapsed,
        tally.bypasses,
        tally.saved_by_hits.micros,
        tally.saved_by_joining.micros,
    )


def _tally(hits: int, misses: int, collapsed: int, bypasses: int, by_hits: int, by_joining: int) -> Tally:
    return Tally(hits, misses, collapsed, bypasses, Money(by_hits), Money(by_joining))


def _record(
    identity: str,
    tenant: str,
    key_id: str,
    request: str,
    submitted_at: float,
    purchase: str | None,
    concluded_at: float | None,
    outcome: str | None,
) -> RequestRecord:
    return RequestRecord(
        id=RequestId(identity),
        tenant=tenant,
        key_id=key_id,
        request=_request_from_json(json.loads(request)),
        submitted_at=submitted_at,
        purchase=PurchaseId(purchase) if purchase else None,
        concluded_at=concluded_at,
        outcome=_outcome_from_text(outcome) if outcome else None,
    )


def _request_to_json(request: GenerationRequest) -> Json:
    return {
        "model": request.model,
        "parameters": dict(request.parameters),
        "fingerprint": request.fingerprint,
        "price_micros": request.price.micros,
        "seed": request.seed,
        "fresh": request.fresh,
        "shape": request.shape,
    }


def _request_from_json(row: Mapping[str, Any]) -> GenerationRequest:
    return GenerationRequest(
        model=row["model"],
        parameters=row["parameters"],
        fingerprint=Fingerprint(row["fingerprint"]),
        price=Money(row["price_micros"]),
        seed=row["seed"],
        fresh=row["fresh"],
        shape=row.get("shape", ""),  # older gateways did not write it down
    )


def _outcome_to_text(outcome: Outcome) -> str:
    match outcome:
        case Failed():
            return to_text(
                {"code": outcome.code, "message": outcome.message, "details": dict(outcome.details)}
            )
        case Completed():
            return to_text(
                {
                    "generation": outcome.generation.to_json(),
                    "charged_micros": outcome.charged.micros,
                    "status": outcome.status.value,
                }
            )


def _outcome_from_text(text: str) -> Outcome:
    row = json.loads(text)
    if "code" in row:
        return Failed(row["code"], row["message"], row["details"])
    return Completed(
        Generation.from_json(row["generation"]),
        charged=Money(row["charged_micros"]),
        status=CacheStatus(row["status"]),
    )
