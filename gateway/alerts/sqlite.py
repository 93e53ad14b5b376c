"""Alerts and their deliveries in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from gateway.alerts.contract import Alert, Delivery, Progress, State
from gateway.database.sqlite import SqliteDatabase

_SCHEMA = (
    """
    CREATE TABLE alerts (
        serial       INTEGER PRIMARY KEY,
        id           TEXT    NOT NULL UNIQUE,
        tenant       TEXT    NOT NULL,
        key_id       TEXT    NOT NULL,
        budget       TEXT    NOT NULL,
        threshold    TEXT    NOT NULL,
        window_start INTEGER NOT NULL,
        same_since   INTEGER NOT NULL,
        raised_at    REAL    NOT NULL,
        message      TEXT    NOT NULL,
        state        TEXT    NOT NULL CHECK (state IN ('pending', 'delivered', 'given up', 'unsent')),
        due_at       REAL    NOT NULL,
        UNIQUE (tenant, key_id, budget, threshold, window_start)
    );
    CREATE INDEX due_alerts ON alerts (due_at) WHERE state = 'pending';
    CREATE TABLE deliveries (
        serial  INTEGER PRIMARY KEY,
        alert   TEXT NOT NULL REFERENCES alerts (id),
        at      REAL NOT NULL,
        seconds REAL NOT NULL,
        status  INTEGER,
        error   TEXT NOT NULL
    );
    CREATE INDEX deliveries_of_an_alert ON deliveries (alert);
    """,
)

_IS_THERE = """EXISTS (
    SELECT 1 FROM alerts WHERE tenant = ? AND key_id = ? AND budget = ? AND threshold = ? AND window_start >= ?
)"""
_HAS_A_SUCCESSOR = """EXISTS (
    SELECT 1 FROM alerts AS later WHERE later.tenant = alerts.tenant AND later.key_id = alerts.key_id
    AND later.budget = alerts.budget AND later.threshold = alerts.threshold AND later.window_start > alerts.window_start
)"""
_FORGOTTEN_AT_ONCE = 500
"""So that forgetting keeps nobody waiting."""

_ALERT = "id, raised_at, tenant, key_id, budget, threshold, window_start, same_since, message"


class SqliteAlerts:
    """Keeps the contract Alerts."""

    def __init__(self, database: SqliteDatabase) -> None:
        database.migrate("alerts", _SCHEMA)
        self._database = database

    async def raise_once(self, alerts: Sequence[Alert], *, to_be_sent: bool) -> Sequence[Alert]:
        state = State.PENDING if to_be_sent else State.UNSENT

        def work(connection: sqlite3.Connection) -> Sequence[Alert]:
            return [alert for alert in alerts if _insert(connection, alert, state)]

        return await self._database.write(work)

    async def due(self, now: float, *, limit: int) -> Sequence[Progress]:
        query = "state = 'pending' AND due_at <= ? ORDER BY due_at LIMIT ?"
        return await self._database.read(lambda connection: _select(connection, query, now, limit))

    async def write_down(self, alert: str, delivery: Delivery, *, again_at: float | None) -> State:
        ended = State.GIVEN_UP if delivery.error else State.DELIVERED
        state = ended if again_at is None else State.PENDING

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO deliveries (alert, at, seconds, status, error) VALUES (?, ?, ?, ?, ?)",
                (alert, delivery.at, delivery.seconds, delivery.status, delivery.error),
            )
            connection.execute(
                "UPDATE alerts SET state = ?, due_at = COALESCE(?, due_at) WHERE id = ? AND state = 'pending'",
                (state.value, again_at, alert),
            )

        await self._database.write(work)
        return state

    async def listed(self, *, tenant: str | None = None, limit: int = 100) -> Sequence[Progress]:
        query = "? IS NULL OR tenant = ? ORDER BY serial DESC LIMIT ?"
        return await self._database.survey(
            lambda connection: _select(connection, query, tenant, tenant, limit)
        )

    async def forget_before(self, moment: float) -> int:
        # Looked for beside everything else; what is pending or the newest is not among it later, either.
        old = await self._database.survey(
            lambda connection: connection.execute(
                f"SELECT id FROM alerts WHERE raised_at < ? AND state != 'pending' AND {_HAS_A_SUCCESSOR}",
                (moment,),
            ).fetchall()
        )
        for start in range(0, len(old), _FORGOTTEN_AT_ONCE):
            await self._database.write(partial(_drop, ids=old[start : start + _FORGOTTEN_AT_ONCE]))
        return len(old)


def _drop(connection: sqlite3.Connection, ids: Sequence[tuple[str]]) -> None:
    connection.executemany("DELETE FROM deliveries WHERE alert = ?", ids)
    connection.executemany("DELETE FROM alerts WHERE id = ?", ids)


def _insert(connection: sqlite3.Connection, alert: Alert, state: State) -> bool:
    """Whether it was new."""
    inserted = connection.execute(
        f"INSERT INTO alerts ({_ALERT}, state, due_at) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT {_IS_THERE}",
        (
            alert.id,
            alert.raised_at,
            alert.tenant,
            alert.key_id,
            alert.budget,
            alert.threshold,
            alert.window_start,
            alert.same_since,
            alert.message,
            state.value,
            alert.raised_at,
            *(alert.tenant, alert.key_id, alert.budget, alert.threshold, alert.same_since),
        ),
    )
    return inserted.rowcount == 1


def _select(connection: sqlite3.Connection, condition: str, *values: object) -> Sequence[Progress]:
    query = f"SELECT {_ALERT}, state, due_at FROM alerts WHERE {condition}"
    return [
        _progress(connection, Alert(*alert), State(state), due_at)
        for *alert, state, due_at in connection.execute(query, values).fetchall()
    ]


def _progress(connection: sqlite3.Connection, alert: Alert, state: State, due_at: float) -> Progress:
    deliveries = connection.execute(
        "SELECT at, seconds, status, error FROM deliveries WHERE alert = ? ORDER BY serial", (alert.id,)
    )
    return Progress(
        alert,
        state,
        due_at if state is State.PENDING else None,
        [Delivery(*delivery) for delivery in deliveries],
    )
