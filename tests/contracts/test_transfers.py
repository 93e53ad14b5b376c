"""What the contract Transfers promises, sentence by sentence; random histories are in test_reports.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span, Window, quarter
from gateway.ledger.contract import Sent
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_transfers import SqliteTransfers
from gateway.ledger.transfers import Moved
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock, caller, request

PAYER = caller(("1", Window.DAY))
MODEL = "ltx-2-19b-t2v"
EVER = [Span()]


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()


@pytest.fixture
def ledger(database: SqliteDatabase, clock: MovableClock) -> SqliteLedger:
    return SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0)


@pytest.fixture
def transfers(database: SqliteDatabase, ledger: SqliteLedger) -> SqliteTransfers:
    assert ledger is not None  # who has made the tables
    return SqliteTransfers(database, split=True, hit_price=Decimal("0.1"))


async def bought(ledger: SqliteLedger, micros: int, name: str = "a cat") -> PurchaseId:
    wanted = request(name, price=str(Money(micros).usd))
    sent = await ledger.reserve(PAYER, wanted, newest_known=None, sending=True)
    assert isinstance(sent, Sent)
    claim = await ledger.record_ticket(sent, Ticket(f"ticket of {name}"))
    await ledger.settle(claim, cost=Money(micros), blobs=[BLOB], seed=1, seconds=1.0)
    return claim.purchase


def party(tenant: str, key: str = "k") -> Party:
    return Party(tenant, key)


async def test_who_joined_owes_equal_shares_and_the_payer_keeps_what_is_left_over(
    ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    cost = 416_003
    purchase = await bought(ledger, cost)
    for joined in range(1, 51):
        await transfers.joined(purchase, party(f"tenant{joined}"))
        moved = await transfers.moved(EVER)

        share = Money(cost // (joined + 1))
        assert [moved[party(f"tenant{each}"), MODEL, 0] for each in range(1, joined + 1)] == (
            [Moved(charged=share)] * joined
        )
        assert moved[PAYER.party, MODEL, 0] == Moved(credited=share * joined)
        kept = Money(cost) - share * joined
        assert share <= kept <= share + Money(joined)
    assert await ledger.verify() == []


async def test_a_tenant_owes_one_share_however_many_keys_and_requests_it_joined_with(
    ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    purchase = await bought(ledger, 100)
    for who in (party("film"), party("film", "other"), party("zenith/film"), party("film")):
        await transfers.joined(purchase, who)

    assert await transfers.moved(EVER) == {
        (party("film"), MODEL, 0): Moved(charged=Money(50)),
        (PAYER.party, MODEL, 0): Moved(credited=Money(50)),
    }


async def test_nobody_owes_itself_not_with_another_key_nor_from_another_place(
    ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    purchase = await bought(ledger, 100)
    for own in (party("acme"), party("acme", "other"), party("zenith/acme")):
        await transfers.joined(purchase, own)
        transfers.used(purchase, own, NOON, 5)

    assert await transfers.moved(EVER) == {}


async def test_a_join_counts_when_the_purchase_does_and_a_hit_when_it_is_one(
    ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    purchase = await bought(ledger, 100)
    await transfers.joined(purchase, party("film"))
    transfers.used(purchase, party("film"), NOON + DAY_SECONDS)
    begins = quarter(NOON)
    spans = [Span(0, begins), Span(begins, begins + 1), Span(begins + 1, begins + 96), Span(begins + 96)]

    assert await transfers.moved(spans) == {
        (party("film"), MODEL, 1): Moved(charged=Money(50)),
        (PAYER.party, MODEL, 1): Moved(credited=Money(50)),
        (party("film"), MODEL, 3): Moved(charged=Money(10)),
        (PAYER.party, MODEL, 3): Moved(credited=Money(10)),
    }


async def test_a_hit_costs_its_fraction_of_what_was_paid_rounded_down_each_time(
    ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    purchase, given = await bought(ledger, 109), await bought(ledger, 0, "a gift")
    for _ in range(3):
        transfers.used(purchase, party("film"), NOON)
    transfers.used(given, party("film"), NOON, 100)
    await transfers.flush()
    transfers.used(purchase, party("film"), NOON, 4)

    assert await transfers.moved(EVER) == {
        (party("film"), MODEL, 0): Moved(charged=Money(70)),
        (PAYER.party, MODEL, 0): Moved(credited=Money(70)),
    }


async def test_a_price_in_decimals_is_taken_as_it_is_written(
    database: SqliteDatabase, ledger: SqliteLedger
) -> None:
    # In floating point three tenths of ten are a little less than three.
    third = SqliteTransfers(database, split=False, hit_price=Decimal("0.3"))
    third.used(await bought(ledger, 10), party("film"), NOON)

    assert (await third.moved(EVER))[party("film"), MODEL, 0] == Moved(charged=Money(3))


async def test_without_the_settings_nothing_is_owed_nor_written(
    database: SqliteDatabase, ledger: SqliteLedger
) -> None:
    free = SqliteTransfers(database, split=False, hit_price=Decimal(0))
    purchase = await bought(ledger, 100)
    await free.joined(purchase, party("film"))
    free.used(purchase, party("film"), NOON)

    assert await free.moved(EVER) == {}
    assert await database.read(
        lambda connection: connection.execute("SELECT COUNT(*) FROM transfers").fetchone()
    ) == (0,)


async def test_what_is_not_settled_or_not_known_is_owed_by_nobody(
    ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    sent = await ledger.reserve(PAYER, request(price="0.0001"), newest_known=None, sending=True)
    assert isinstance(sent, Sent)
    for purchase in (sent.purchase, PurchaseId("of other books")):
        await transfers.joined(purchase, party("film"))
        transfers.used(purchase, party("film"), NOON)

    assert await transfers.moved(EVER) == {}


async def test_budgets_see_nothing_of_it(ledger: SqliteLedger, transfers: SqliteTransfers) -> None:
    purchase = await bought(ledger, 100)
    before = await ledger.balances_of(PAYER.holders), await ledger.spent(), await ledger.reserved()
    await transfers.joined(purchase, party("film"))
    transfers.used(purchase, party("film"), NOON, 1000)
    await transfers.flush()

    assert (await ledger.balances_of(PAYER.holders), await ledger.spent(), await ledger.reserved()) == before


async def test_what_could_not_be_written_down_is_owed_all_the_same(
    database: SqliteDatabase, ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    transfers.used(await bought(ledger, 100), party("film"), NOON)
    await database.write(lambda connection: connection.execute("ALTER TABLE transfers RENAME TO elsewhere"))
    with pytest.raises(Exception, match="no such table"):
        await transfers.flush()
    await database.write(lambda connection: connection.execute("ALTER TABLE elsewhere RENAME TO transfers"))

    assert (await transfers.moved(EVER))[party("film"), MODEL, 0] == Moved(charged=Money(10))


async def test_what_is_being_written_down_when_nobody_waits_for_it_any_more_is_owed_once(
    database: SqliteDatabase, ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    transfers.used(await bought(ledger, 100), party("film"), NOON)
    flushing = asyncio.create_task(transfers.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    await database.write(lambda _: None)  # behind it

    assert (await transfers.moved(EVER))[party("film"), MODEL, 0] == Moved(charged=Money(10))


async def test_what_several_processes_note_is_added_up(
    database: SqliteDatabase, ledger: SqliteLedger, transfers: SqliteTransfers
) -> None:
    purchase = await bought(ledger, 100)
    another = SqliteTransfers(database, split=True, hit_price=Decimal("0.1"))
    for each in (transfers, another):
        each.used(purchase, party("film"), NOON, 2)
        await each.joined(purchase, party("film"))
    await another.flush()

    assert (await transfers.moved(EVER))[party("film"), MODEL, 0] == Moved(charged=Money(90))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE transfers SET micros = micros + 1 WHERE kind = 'join'", "an equal share is 50"),
        ("UPDATE transfers SET tenant = 'acme'", "owed to itself"),
        ("UPDATE transfers SET purchase = 'another'", "was not settled"),
    ],
)
async def test_the_examination_finds_what_is_wrong(
    database: SqliteDatabase, ledger: SqliteLedger, transfers: SqliteTransfers, damage: str, said: str
) -> None:
    await transfers.joined(await bought(ledger, 100), party("film"))
    assert await ledger.verify() == []
    await database.write(lambda connection: connection.execute(damage))

    (found,) = await ledger.verify()
    assert "film" in found.where
    assert said in found.problem
