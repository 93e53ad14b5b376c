"""However much was ever bought: nothing that is asked while the gateway works walks through all of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.identity import RequestId, Ticket
from gateway.domain.money import Money
from gateway.domain.window import Window
from gateway.ledger.contract import Bought, Held, Sent, State
from gateway.ledger.sqlite import SqliteLedger
from gateway.requests.contract import Failed, RequestRecord
from gateway.requests.sqlite import SqliteRequestRecords
from tests.contracts.ledger_books import BLOB, NOON, MovableClock, caller, request

GROWING = ("purchases", "purchase_parameters", "requests", "requested", "sums")
OF_WHAT_IS_OPEN = ("owned_purchases", "unknown_purchases", "lost_purchases", "pending_requests")
"""Indexes over few rows: walking through one of them is no walk through everything."""

BUYER = caller(("100", Window.DAY), ("100", Window.MONTH), ("100", Window.TOTAL))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()


async def test_no_statement_walks_through_what_grows(database: SqliteDatabase) -> None:
    ledger = SqliteLedger(
        database, clock=MovableClock(), owner="one", is_alive=lambda _: True, lease_seconds=15.0
    )
    records = SqliteRequestRecords(database, clock=MovableClock(), owner="one", is_alive=lambda _: False)
    asked: dict[str, None] = {}
    for connection in (database._writer, database._reader):
        connection.set_trace_callback(asked.setdefault)

    await _buy_in_every_way(ledger)
    await _look_at_the_books(ledger)
    await _keep_records(records)

    walks = []
    with closing(sqlite3.connect(database.path)) as other:
        for statement in asked:
            if statement.split(maxsplit=1)[0] in ("SELECT", "INSERT", "UPDATE", "DELETE"):
                plan = [step for *_, step in other.execute(f"EXPLAIN QUERY PLAN {statement}")]
                walks += [(step, statement) for step in plan if _walks(step)]
    assert len(asked) > 30
    assert walks == []


def _walks(step: str) -> bool:
    """As in `SCAN purchases`, and not as in `SEARCH purchases USING INDEX tickets (ticket=?)`."""
    words = step.split()
    return words[0] == "SCAN" and words[1] in GROWING and not {*words} & {*OF_WHAT_IS_OPEN}


async def _buy_in_every_way(ledger: SqliteLedger) -> None:
    held = await ledger.reserve(BUYER, request("settled"), newest_known=None)
    assert isinstance(held, Held)
    bought = await ledger.record_ticket(await ledger.send(held), Ticket("T1"))
    await ledger.settle(bought, cost=None, blobs=[BLOB], seed=None, seconds=None)
    await ledger.release(await _sent(ledger, "released"), "failed")
    lost = await ledger.record_ticket(await _sent(ledger, "lost"), Ticket("T2"))
    await ledger.write_off(lost, cost=Money(1), reason="broken")
    for name in ("found", "not bought", "given up"):
        await ledger.mark_unknown(await _sent(ledger, name), "silence")
    found, not_bought, given_up = await ledger.unknown_purchases()
    assert await ledger.resolve_bought(found.id, Ticket("T3"))
    assert await ledger.resolve_not_bought(not_bought.id, "absent")
    assert await ledger.resolve_lost(given_up.id, None, "gone")
    assert isinstance(await ledger.adopt(found.id), Bought)


async def _sent(ledger: SqliteLedger, name: str) -> Sent:
    sent = await ledger.reserve(BUYER, request(name), newest_known=None, sending=True)
    assert isinstance(sent, Sent)
    return sent


async def _look_at_the_books(ledger: SqliteLedger) -> None:
    await ledger.renew()
    (found,) = await ledger.orphans()
    assert await ledger.purchase(found.id) == await ledger.newest(found.request.fingerprint)
    await ledger.known_tickets([Ticket("T1"), Ticket("T2")])
    await ledger.balances_of(BUYER.holders, with_pace=True)
    await ledger.prospects(BUYER, found.request.model, Money(1))
    for shape in (None, "{}"):
        await ledger.settled(found.request.model, shape, most=200)
    for tenant in (None, "acme"):
        await ledger.spent(tenant)
        await ledger.reserved(tenant)
    await ledger.unknown()
    await ledger.lost()
    await ledger.counts()
    for state in (State.QUEUED, State.SENDING, State.RUNNING, State.UNKNOWN, State.LOST):
        await ledger.purchases(states=(state,), limit=-1)
    await ledger.purchases(states=(State.SENDING, State.UNKNOWN, State.LOST), tenant="acme", limit=-1)


async def _keep_records(records: SqliteRequestRecords) -> None:
    asked = request("settled")
    await records.open(RequestRecord(RequestId("r1"), "acme", "key-1", asked, NOON))
    assert await records.adopt_pending(followed=set()) != []
    await records.conclude(RequestId("r1"), Failed("not_bought", "No."))
    assert await records.find(RequestId("r1"), "acme") is not None
    assert await records.forget_before(NOON + 1) == 1
