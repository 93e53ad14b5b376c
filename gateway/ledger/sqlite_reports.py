"""Reports out of the ledger in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span
from gateway.ledger import sums
from gateway.ledger.reports import Booked, Place


class SqliteReports:
    """Keeps the contract Reports, on a database whose tables a SqliteLedger has made."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database

    async def booked(self, spans: Sequence[Span]) -> Mapping[Place, Booked]:
        return await self._database.survey(lambda connection: _booked(connection, spans))


def _booked(connection: sqlite3.Connection, spans: Sequence[Span]) -> Mapping[Place, Booked]:
    found: dict[Place, Booked] = {}
    for number, span in enumerate(spans):
        for path, key_id, model, spent, held in sums.by_key(connection, span):
            found[Party(path, key_id), model, number] = Booked(Money(spent), Money(held))
        for path, key_id, model, unknown, lost in _in_doubt_or_lost(connection, span):
            # It is part of what the sums have, so that they have the place.
            place = Party(path, key_id), model, number
            found[place] = found.get(place, Booked()) + Booked(unknown=Money(unknown), lost=Money(lost))
    return found


def _in_doubt_or_lost(connection: sqlite3.Connection, span: Span) -> Sequence[tuple[str, str, str, int, int]]:
    # Each has an index: few are in it, however many purchases there are.
    return connection.execute(
        """
        SELECT path, key_id, model, SUM(unknown), SUM(lost) FROM (
            SELECT path, key_id, model, quarter, held_micros AS unknown, 0 AS lost FROM purchases
                WHERE state = 'unknown'
            UNION ALL
            SELECT path, key_id, model, quarter, 0, cost_micros FROM purchases WHERE state = 'lost'
        )
        WHERE quarter >= ? AND quarter < COALESCE(?, 1 << 60) GROUP BY path, key_id, model
        """,
        (span.start, span.end),
    ).fetchall()
