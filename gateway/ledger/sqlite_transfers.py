"""Transfers in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_FLOOR, Decimal

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.identity import PurchaseId
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span, quarter
from gateway.ledger.contract import Discrepancy
from gateway.ledger.reports import Place
from gateway.ledger.transfers import Moved

SCHEMA = """
    CREATE TABLE transfers (
        purchase TEXT    NOT NULL,
        kind     TEXT    NOT NULL CHECK (kind IN ('join', 'hit')),
        path     TEXT    NOT NULL,
        key_id   TEXT    NOT NULL,
        quarter  INTEGER NOT NULL,
        tenant   TEXT    NOT NULL,
        count    INTEGER NOT NULL CHECK (count > 0),
        micros   INTEGER NOT NULL CHECK (micros >= 0),
        PRIMARY KEY (purchase, kind, path, key_id, quarter)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX one_share_a_tenant ON transfers (purchase, tenant) WHERE kind = 'join';
    CREATE INDEX transfers_by_time ON transfers (quarter);
"""
"""A line is what one key owes whoever made the purchase: for having joined it, or for hits within a quarter of an hour."""

_SHARE = """
    (SELECT cost_micros FROM purchases WHERE id = purchase)
        / (SELECT COUNT(*) + 1 FROM transfers AS all_who WHERE all_who.purchase = transfers.purchase AND kind = 'join')"""
"""Who joined owes as much as each of the others; what does not go into whole micro-dollars stays with the payer."""


class SqliteTransfers:
    """Keeps the contract Transfers, on a database whose tables a SqliteLedger has made.

    Where generations are not `split`, whoever joins owes nothing. A hit costs the `hit_price`-th part of what the
    generation cost, rounded down.
    """

    def __init__(self, database: SqliteDatabase, *, split: bool, hit_price: Decimal) -> None:
        self._database = database
        self._split = split
        self._hit_price = hit_price
        self._used: dict[tuple[PurchaseId, Party, int], int] = {}

    async def joined(self, purchase: PurchaseId, party: Party) -> None:
        if self._split:
            await self._database.write(lambda connection: _join(connection, purchase, party))

    def used(self, purchase: PurchaseId, party: Party, at: float, times: int = 1) -> None:
        if self._hit_price:
            place = (purchase, party, quarter(at))
            self._used[place] = self._used.get(place, 0) + times

    async def flush(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._database.write(lambda connection: self._charge_for(connection, used))
        except Exception:
            # And not where nobody waits for it any more: then it is being written all the same.
            for place, times in used.items():
                self._used[place] = self._used.get(place, 0) + times
            raise

    def _charge_for(
        self, connection: sqlite3.Connection, used: Mapping[tuple[PurchaseId, Party, int], int]
    ) -> None:
        for (purchase, party, at), times in used.items():
            found = connection.execute(
                "SELECT tenant, cost_micros FROM purchases WHERE id = ? AND state = 'settled'", (purchase,)
            ).fetchone()
            if found is None or found[0] == party.tenant:
                continue
            price = int((self._hit_price * found[1]).to_integral_value(ROUND_FLOOR))
            connection.execute(
                "INSERT INTO transfers VALUES (?, 'hit', ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (purchase, kind, path, key_id, quarter) DO UPDATE SET "
                "count = count + excluded.count, micros = micros + excluded.micros",
                (purchase, party.path, party.key_id, at, party.tenant, times, price * times),
            )

    async def moved(self, spans: Sequence[Span]) -> Mapping[Place, Moved]:
        await self.flush()
        return await self._database.survey(lambda connection: _moved(connection, spans))


def _join(connection: sqlite3.Connection, purchase: PurchaseId, party: Party) -> None:
    connection.execute(
        "INSERT INTO transfers SELECT id, 'join', ?, ?, quarter, ?, 1, 0 FROM purchases "
        "WHERE id = ? AND state = 'settled' AND tenant != ? ON CONFLICT DO NOTHING",
        (party.path, party.key_id, party.tenant, purchase, party.tenant),
    )
    # Everybody's share is smaller now.
    connection.execute(
        f"UPDATE transfers SET micros = {_SHARE} WHERE purchase = ? AND kind = 'join'", (purchase,)
    )


def _moved(connection: sqlite3.Connection, spans: Sequence[Span]) -> Mapping[Place, Moved]:
    found: dict[Place, Moved] = {}

    def add(party: Party, model: str, number: int, moved: Moved) -> None:
        found[party, model, number] = found.get((party, model, number), Moved()) + moved

    for number, span in enumerate(spans):
        for path, key_id, payers_path, payers_key, model, micros in connection.execute(
            "SELECT owing.path, owing.key_id, paid.path, paid.key_id, model, SUM(micros) "
            "FROM transfers AS owing JOIN purchases AS paid ON paid.id = purchase "
            "WHERE owing.quarter >= ? AND owing.quarter < COALESCE(?, 1 << 60) GROUP BY 1, 2, 3, 4, 5",
            (span.start, span.end),
        ):
            if micros:
                add(Party(path, key_id), model, number, Moved(charged=Money(micros)))
                add(Party(payers_path, payers_key), model, number, Moved(credited=Money(micros)))
    return found


def discrepancies(connection: sqlite3.Connection) -> Iterator[Discrepancy]:
    """Where the journal is not what it has to be: each line of a purchase that was settled, and another tenant's."""
    for purchase, path in connection.execute(
        "SELECT purchase, path FROM transfers WHERE purchase NOT IN (SELECT id FROM purchases WHERE state = 'settled')"
    ):
        yield Discrepancy(f"transfer of {path}", f"purchase {purchase}, for which it is, was not settled")
    for purchase, path in connection.execute(
        "SELECT purchase, owing.path FROM transfers AS owing JOIN purchases AS paid ON paid.id = purchase "
        "WHERE owing.tenant = paid.tenant"
    ):
        yield Discrepancy(f"transfer of {path}", f"it is owed to itself, for purchase {purchase}")
    for purchase, path, micros, share in connection.execute(
        f"SELECT purchase, path, micros, {_SHARE} AS share FROM transfers WHERE kind = 'join' AND micros != share"
    ):
        yield Discrepancy(
            f"transfer of {path}",
            f"{micros} micro-dollars for purchase {purchase}, and an equal share is {share}",
        )
