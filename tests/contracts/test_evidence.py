"""What may be learned from purchases, and what budgets would say to the next one. Every ledger has to pass this file."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.balance import Prospect
from gateway.domain.errors import BudgetExceeded
from gateway.domain.estimate import Settled
from gateway.domain.generation import GenerationRequest
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, Holder, KeyTerms, Tenant, TopUp
from gateway.domain.window import Per, Window
from gateway.ledger.contract import Bought, Held, Sent
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_tables import SCHEMA
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock, caller, request

MODEL = request().model
SMALL, LARGE = '{"width":256}', '{"width":1280}'


class Books:
    """A ledger, and a hand that buys."""

    def __init__(self, ledger: SqliteLedger, clock: MovableClock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.numbers = itertools.count()

    async def buys(self, shape: str = SMALL, model: str = MODEL) -> Bought:
        number = next(self.numbers)
        asked = replace(request(str(number), model=model), shape=shape)
        sent = await self.ledger.reserve(caller(), asked, newest_known=None, sending=True)
        assert isinstance(sent, Sent)
        return await self.ledger.record_ticket(sent, Ticket(f"T{number}"))

    async def settles(
        self, micros: int | None, shape: str = SMALL, model: str = MODEL, *, seconds: float = 100.0
    ) -> None:
        bought = await self.buys(shape, model)
        self.clock.now += seconds
        await self.ledger.settle(
            bought, cost=None if micros is None else Money(micros), blobs=[BLOB], seed=None, seconds=1.0
        )

    async def costs(self, shape: str | None = SMALL, *, model: str = MODEL, most: int = 200) -> list[int]:
        return [each.cost.micros for each in await self.ledger.settled(model, shape, most=most)]


@asynccontextmanager
async def opened() -> AsyncIterator[Books]:
    clock = MovableClock()
    with (
        TemporaryDirectory() as directory,
        closing(SqliteDatabase(Path(directory) / "l.sqlite3")) as database,
    ):
        ledger = SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0)
        yield Books(ledger, clock)
        assert await ledger.verify() == []


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    async with opened() as books:
        yield books


async def test_the_evidence_is_what_purchases_of_the_shape_cost_and_how_long_they_took_from_their_ticket_on(
    books: Books,
) -> None:
    await books.settles(400, seconds=90.0)
    await books.settles(900, LARGE, seconds=300.0)
    await books.settles(500, seconds=110.0)

    assert await books.ledger.settled(MODEL, SMALL, most=200) == [
        Settled(Money(500), 110.0, NOON + 500.0),
        Settled(Money(400), 90.0, NOON + 90.0),
    ]
    assert await books.costs(None) == [500, 900, 400]
    assert await books.costs(SMALL, model="another") == []


async def test_what_was_not_priced_or_free_and_what_is_not_settled_is_no_evidence(books: Books) -> None:
    await books.settles(None)
    await books.settles(0)
    await books.settles(1)
    await books.buys()
    await books.ledger.write_off(await books.buys(), cost=Money(7), reason="broken")
    await books.ledger.release(await books.buys(), "failed")
    await books.ledger.mark_unknown(await books.buys(), "silence")

    assert await books.costs() == await books.costs(None) == [1]


async def test_only_the_newest_count_and_a_rare_shape_is_looked_for_among_the_newest_of_its_model(
    books: Books,
) -> None:
    for micros in range(1, 8):
        await books.settles(micros)
    await books.settles(99, LARGE)

    assert await books.costs(most=3) == [7, 6, 5]
    assert await books.costs(None, most=2) == [99, 7]


async def test_a_shape_that_was_not_among_the_newest_five_thousand_of_its_model_is_not_known(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite3"
    with closing(SqliteDatabase(path)) as database:
        ledger = SqliteLedger(
            database, clock=MovableClock(), owner="one", is_alive=lambda _: True, lease_seconds=15.0
        )
        with closing(sqlite3.connect(path)) as books, books:
            # Of another model there are as many between each two.
            for start, stop, shape in ((1, 2, LARGE), (3, 4, LARGE), (5, 10_004, SMALL)):
                books.execute(
                    "WITH RECURSIVE numbers (number) AS (SELECT :start UNION ALL SELECT number + 1 FROM numbers "
                    "WHERE number < :stop) "
                    "INSERT INTO purchases (serial, id, fingerprint, tenant, key_id, model, fresh, state, held_micros, owner, "
                    "lease_until, fence, ticket, reserved_at, bought_at, ended_at, cost_micros, cost_reported, generation, shape) "
                    "SELECT number, number, number, 'acme', 'k', IIF(number % 2, :model, 'another'), 0, 'settled', 5, 'one', "
                    "0, 1, 'T' || number, 0, 0, 9, number, 1, '{}', :shape FROM numbers",
                    {"start": start, "stop": stop, "model": MODEL, "shape": shape},
                )

        # There are two more of the model than are looked at.
        for gone, known in ((6, []), (7, [3]), (9, [3, 1])):
            with closing(sqlite3.connect(path)) as books, books:
                books.execute("DELETE FROM purchases WHERE serial = ?", (gone,))
            found = await ledger.settled(MODEL, LARGE, most=200)
            assert [each.cost.micros for each in found] == known
        newest = await ledger.settled(MODEL, SMALL, most=3)
        assert [each.cost.micros for each in newest] == [10_003, 10_001, 9_999]


async def test_what_was_found_to_have_been_bought_counts_from_when_that_was_known(books: Books) -> None:
    sent = await books.ledger.reserve(
        caller(), replace(request("x"), shape=SMALL), newest_known=None, sending=True
    )
    assert isinstance(sent, Sent)
    await books.ledger.mark_unknown(sent, "silence")
    books.clock.now += 1000
    assert await books.ledger.resolve_bought(sent.purchase, Ticket("T"))
    adopted = await books.ledger.adopt(sent.purchase)
    assert isinstance(adopted, Bought)
    books.clock.now += 5
    await books.ledger.settle(adopted, cost=Money(3), blobs=[BLOB], seed=None, seconds=None)

    (settled,) = await books.ledger.settled(MODEL, SMALL, most=9)
    assert settled.seconds == 5.0


async def test_what_older_gateways_bought_says_what_the_model_cost_and_belongs_to_no_shape(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite3"
    with closing(SqliteDatabase(path)) as database:
        database.migrate("ledger", SCHEMA[:3])
    with closing(sqlite3.connect(path)) as books, books:
        books.execute(
            "INSERT INTO purchases (id, fingerprint, tenant, key_id, model, fresh, state, held_micros, owner, "
            "lease_until, fence, ticket, reserved_at, bought_at, ended_at, cost_micros, cost_reported, generation, path) "
            "VALUES ('1', 'f', 'acme', 'k', ?, 0, 'settled', 5, 'one', 0, 1, 'T', ?, ?, ?, 4, 1, ?, 'acme')",
            (MODEL, NOON, NOON, NOON + 9, json.dumps({})),
        )
    with closing(SqliteDatabase(path)) as database:
        ledger = SqliteLedger(
            database, clock=MovableClock(), owner="one", is_alive=lambda _: True, lease_seconds=15.0
        )
        assert await ledger.settled(MODEL, None, most=9) == [Settled(Money(4), 9.0, NOON + 9)]
        assert await ledger.settled(MODEL, "{}", most=9) == []


async def test_a_purchase_knows_its_shape_again(books: Books) -> None:
    bought = await books.buys(LARGE)

    found = await books.ledger.purchase(bought.purchase)

    assert found is not None
    assert found.request.shape == LARGE


# --- Prospects: what reserving would say, without reserving

OTHER = "another"
BUDGETS = st.builds(
    Budget,
    limit=st.integers(0, 12).map(Money),
    per=st.sampled_from(
        [
            Window.DAY,
            Window.MONTH,
            Window.TOTAL,
            Window.REQUEST,
            Window(Per.ROLLING, rolling_seconds=6 * 3600),
            Window(Per.TOTAL, first_day=datetime.fromtimestamp(NOON + DAY_SECONDS, UTC).date()),
            Window(Per.MONTH, last_day=datetime.fromtimestamp(NOON - DAY_SECONDS, UTC).date()),
        ]
    ),
    models=st.sampled_from([None, frozenset({MODEL}), frozenset({OTHER})]),
    top_ups=st.sampled_from([(), (TopUp(Money(5), NOON, "more"),)]),
)
HOLDER = st.lists(BUDGETS, max_size=3).map(tuple)


@st.composite
def callers(draw: st.DrawFn) -> Caller:
    acme = Tenant("acme", draw(HOLDER))
    return Caller(Tenant("film", draw(HOLDER), parent=acme), "key-1", KeyTerms(budgets=draw(HOLDER)))


def _asks(number: int, model: str, price: int) -> GenerationRequest:
    return replace(request(f"{model} {number}", model=model), price=Money(price))


@settings(max_examples=120, deadline=None)
@given(
    callers(),
    st.lists(
        st.tuples(st.sampled_from([MODEL, OTHER]), st.integers(1, 5), st.sampled_from([0, 900, 30_000]))
    ),
)
async def test_a_prospect_says_what_reserving_would_and_what_is_left_after_it(
    buyer: Caller, wanted: list[tuple[str, int, int]]
) -> None:
    async with opened() as books:
        for number, (model, price, pause_seconds) in enumerate(wanted):
            books.clock.now += pause_seconds
            prospects = await books.ledger.prospects(buyer, model, Money(price))
            free = await books.ledger.prospects(buyer, model, Money.ZERO)
            try:
                held = await books.ledger.reserve(buyer, _asks(number, model, price), newest_known=None)
            except BudgetExceeded as refusal:
                told = (refusal.balance.holder, refusal.balance.budget, refusal.resets_at)
                assert told in [_obstacle(each) for each in prospects if not each.fits]
                assert prospects == await books.ledger.prospects(buyer, model, Money(price))
            else:
                assert isinstance(held, Held)
                assert all(each.fits for each in prospects)
                now = await books.ledger.balances_of(buyer.holders, with_pace=True)
                assert [each.after for each in _that_count(prospects)] == list(now)
            assert all(each.fits and each.before == each.after for each in free)


def _obstacle(prospect: Prospect) -> tuple[Holder | None, Budget, datetime | None]:
    return prospect.before.holder, prospect.before.budget, prospect.resets_at


def _that_count(prospects: Sequence[Prospect]) -> list[Prospect]:
    return [each for each in prospects if not each.before.budget.is_per_request]
