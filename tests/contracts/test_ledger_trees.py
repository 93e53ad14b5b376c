"""Budgets of a tree, against purchases added up one by one: over random trees, windows, zones, prices, moves and callers."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import sqlite3
import tempfile
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.balance import remaining
from gateway.domain.errors import BudgetExceeded, KeyEnded
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, Holder, KeyTerms, Tenant, TopUp
from gateway.domain.window import Per, Window, quarter
from gateway.ledger.contract import Bought, Held, Sent
from gateway.ledger.sqlite import InForce, SqliteLedger
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock, request

T = TypeVar("T")

TENANTS, KEYS, MODELS = ("acme", "film", "cut", "zenith"), ("k1", "k2"), ("kling", "flux")
WINDOWS = (
    Window.REQUEST,
    Window.DAY,
    Window.TOTAL,
    Window(Per.DAY, "Asia/Kathmandu"),
    Window(Per.WEEK, "America/New_York", week_starts=6),
    Window(Per.MONTH, "Europe/Berlin"),
    Window(Per.QUARTER, "Pacific/Apia"),
    Window(Per.ROLLING, rolling_seconds=6 * 3600),
    Window(Per.DAY, first_day=date(2026, 11, 24), last_day=date(2026, 11, 25)),
    Window(Per.TOTAL, last_day=date(2026, 11, 24)),
)

tenants, keys, models = (st.sampled_from(each) for each in (TENANTS, KEYS, MODELS))
some_budgets = st.lists(
    st.builds(
        Budget,
        limit=st.builds(Money, st.integers(0, 12)),
        per=st.sampled_from(WINDOWS),
        models=st.none() | st.frozensets(models, min_size=1),
        top_ups=st.just(())
        | st.tuples(st.builds(TopUp, st.just(Money(2)), st.just(NOON + 60), st.just("more"))),
    ),
    max_size=3,
).map(tuple)


@dataclass
class Row:
    """One purchase, as it ought to count."""

    path: str
    key_id: str
    model: str
    reserved_at: float
    claim: Bought
    held: int
    cost: int = 0
    ended: bool = False

    def counts_for(self, holder: Holder, budget: Budget, now: float) -> bool:
        names, span = self.path.split("/"), budget.per.span(now)
        whose = (
            (names[-1], self.key_id) == (holder.tenant, holder.key_id)
            if holder.key_id
            else holder.tenant in names
        )
        if span is None or not whose or not budget.covers(self.model):
            return False
        return span.start <= quarter(self.reserved_at) and (
            span.end is None or quarter(self.reserved_at) < span.end
        )


class Trees(RuleBasedStateMachine):
    """Four tenants that stand anywhere, two keys each, budgets that change, and a clock that leaps."""

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="trees-")
        self.clock = MovableClock()
        self.database = SqliteDatabase(Path(self.directory.name) / "ledger.sqlite3")
        self.ledger = SqliteLedger(
            self.database, clock=self.clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0
        )
        self.parents: dict[str, str | None] = dict.fromkeys(TENANTS)
        self.budgets: dict[str, tuple[Budget, ...]] = dict.fromkeys(TENANTS, ())
        self.rows: list[Row] = []
        self.names = (f"picture {number}" for number in itertools.count())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.database.close()
            self.runner.close()
            self.directory.cleanup()

    def _do(self, work: Awaitable[T]) -> T:
        async def done() -> T:
            return await work

        return self.runner.run(done())

    def _tenant(self, name: str) -> Tenant:
        above = self.parents[name]
        return Tenant(name, self.budgets[name], parent=None if above is None else self._tenant(above))

    def _taken(self, holder: Holder, budget: Budget) -> tuple[int, int]:
        inside = [row for row in self.rows if row.counts_for(holder, budget, self.clock())]
        return sum(row.cost for row in inside), sum(row.held for row in inside if not row.ended)

    def _too_small(self, buyer: Caller, model: str, price: int) -> Iterator[tuple[Holder, Budget | None]]:
        for holder in buyer.holders:
            covering = [budget for budget in holder.budgets if budget.covers(model)]
            lasting = [budget for budget in covering if budget.per.per is not Per.REQUEST]
            if lasting and not any(budget.per.span(self.clock()) for budget in lasting):
                yield holder, None
            for budget in covering:
                span = budget.per.span(self.clock())
                if (
                    span is not None
                    and sum(self._taken(holder, budget)) + price > budget.limit_in(span).micros
                ):
                    yield holder, budget

    # --- What happens

    @rule(tenant=tenants, key=keys, of_key=some_budgets, model=models, price=st.integers(0, 5))
    def reserve(self, tenant: str, key: str, of_key: tuple[Budget, ...], model: str, price: int) -> None:
        buyer = Caller(self._tenant(tenant), f"{tenant}-{key}", KeyTerms(budgets=of_key[:1]))
        asked = replace(request(next(self.names), model=model), price=Money(price))
        too_small = [*self._too_small(buyer, model, price)]
        work = self.ledger.reserve(buyer, asked, newest_known=None, sending=True)
        if too_small:
            with pytest.raises(BudgetExceeded) as refusal:
                self._do(work)
            self._examine(refusal.value, too_small, price)
            return
        sent = self._do(work)
        assert isinstance(sent, Sent)
        claim = self._do(self.ledger.record_ticket(sent, Ticket(asked.fingerprint)))
        self.rows.append(Row(buyer.tenant.path, buyer.key_id, model, self.clock(), claim, price))

    def _examine(
        self, refusal: BudgetExceeded, too_small: Sequence[tuple[Holder, Budget | None]], price: int
    ) -> None:
        balance, now = refusal.balance, self.clock()
        budget = balance.budget if refusal.is_in_force else None
        assert (refusal.balance.holder, budget) in too_small
        if budget is not None:
            assert (balance.spent.micros, balance.reserved.micros) == self._taken(
                refusal.balance.holder, budget
            )
        for _, other in too_small:
            # None of them has room again later than the one that is named: only then does it help to come back.
            if refusal.resets_at is not None and other is not None and other.per.per is not Per.ROLLING:
                resets_at = other.per.resets_at(now)
                assert resets_at is not None
                assert resets_at <= refusal.resets_at
        if refusal.resets_at is not None and budget is not None and budget.per.per is Per.ROLLING:
            self.clock.now = refusal.resets_at.timestamp()
            room = budget.limit.micros - sum(self._taken(refusal.balance.holder, budget))
            self.clock.now -= 1
            before = budget.limit.micros - sum(self._taken(refusal.balance.holder, budget))
            self.clock.now = now
            assert before < price <= room

    @precondition(lambda self: any(not row.ended for row in self.rows))
    @rule(data=st.data(), cost=st.none() | st.integers(0, 6))
    def end(self, data: st.DataObject, cost: int | None) -> None:
        row = data.draw(st.sampled_from([row for row in self.rows if not row.ended]))
        if cost is None:
            self._do(self.ledger.release(row.claim, "failed"))
        else:
            settle = self.ledger.settle(row.claim, cost=Money(cost), blobs=[BLOB], seed=None, seconds=None)
            self._do(settle)
        row.ended, row.cost = True, cost or 0

    @rule(tenant=tenants, to=st.none() | tenants)
    def move(self, tenant: str, to: str | None) -> None:
        if to is None or tenant not in self._tenant(to).path.split("/"):
            self.parents[tenant] = to

    @rule(tenant=tenants, budgets=some_budgets)
    def change_budgets(self, tenant: str, budgets: tuple[Budget, ...]) -> None:
        self.budgets[tenant] = budgets

    @rule(seconds=st.sampled_from((1.0, 900.0, 3600.0, 5 * 3600.0, DAY_SECONDS, 9 * DAY_SECONDS)))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.now += seconds

    # --- What is true after every step

    @invariant()
    def the_books_agree_at_every_level(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert self._do(self.ledger.verify()) == []
        everything = Budget(Money(10**9), Window.TOTAL)
        holders = [Holder(tenant, "", (everything, *self.budgets[tenant])) for tenant in TENANTS]
        holders += [Holder(tenant, f"{tenant}-{key}", (everything,)) for tenant in TENANTS for key in KEYS]
        balances = self._do(self.ledger.balances_of(holders, with_pace=True))
        for balance in balances:
            taken = self._taken(balance.holder, balance.budget)
            assert (balance.spent.micros, balance.reserved.micros) == taken
        asked = [
            budget for holder in holders for budget in holder.budgets
            if budget.per.per is not Per.REQUEST and budget.per.span(self.clock())
        ]  # fmt: skip
        assert [balance.budget for balance in balances] == asked
        by_keys = [each for each in balances if each.holder.key_id]
        spent = sum(row.cost for row in self.rows)
        assert sum(balance.spent.micros for balance in by_keys) == spent
        assert sum(money.micros for money in self._do(self.ledger.spent()).values()) == spent


TestTrees = Trees.TestCase
TestTrees.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- One thing at a time

ACME = Tenant("acme", (Budget(Money(100), Window.MONTH),))
FILM = Tenant("film", (Budget(Money(60), Window.DAY),), parent=ACME)
BUYER = Caller(FILM, "k1", KeyTerms(budgets=(Budget(Money(30), Window.TOTAL),)))


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    with (
        closing(Marks(tmp_path / "marks")) as marks,
        closing(SqliteDatabase(tmp_path / "ledger.sqlite3", marks=marks)) as opened,
    ):
        yield opened


@pytest.fixture
def ledger(database: SqliteDatabase, clock: MovableClock) -> SqliteLedger:
    return _ledger(database, clock)


def _ledger(
    database: SqliteDatabase, clock: MovableClock, in_force: InForce = lambda _connection, caller: caller
) -> SqliteLedger:
    return SqliteLedger(
        database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0, in_force=in_force
    )


async def _hold(ledger: SqliteLedger, buyer: Caller, name: str, micros: int, model: str = "kling") -> Held:
    asked = replace(request(name, model=model), price=Money(micros))
    held = await ledger.reserve(buyer, asked, newest_known=None)
    assert isinstance(held, Held)
    return held


async def test_what_an_organisation_leaves_is_told_and_what_it_spends_is_not(ledger: SqliteLedger) -> None:
    await _hold(ledger, Caller(ACME, "boss"), "a cat", 90)

    with pytest.raises(BudgetExceeded) as refusal:
        await _hold(ledger, BUYER, "a dog", 20)

    told = refusal.value.details
    assert (told["of"], told["budget"], told["window"]) == ("acme", "month", "month")
    assert (told["remaining_usd"], told["price_usd"]) == (0.00001, 0.00002)
    assert (told["resets_at"], told["retry"]) == ("2026-12-01T00:00:00Z", False)
    assert not {"limit_usd", "spent_usd", "reserved_usd"} & {*told}
    assert "$0.0001 " not in str(refusal.value)
    assert "$0.00009" not in str(refusal.value)


async def test_of_several_that_are_too_small_the_one_that_resets_last_is_named(ledger: SqliteLedger) -> None:
    with pytest.raises(BudgetExceeded) as refusal:
        await _hold(ledger, BUYER, "a cat", 101)

    assert (refusal.value.balance.holder.name, refusal.value.resets_at) == ("film#k1", None)
    assert refusal.value.key_id == "k1"


async def test_what_one_request_may_cost_is_a_limit_of_each(ledger: SqliteLedger) -> None:
    buyer = Caller(Tenant("acme", (Budget(Money(5), Window.REQUEST, name="request"),)), "k1")
    for name in ("a cat", "a dog", "an emu"):
        await _hold(ledger, buyer, name, 5)

    with pytest.raises(BudgetExceeded, match="may cost no more than") as refusal:
        await _hold(ledger, buyer, "a fox", 6)

    assert refusal.value.resets_at is None
    assert await ledger.balances_of(buyer.holders) == []
    assert remaining(buyer.holders, await ledger.balances_of(buyer.holders)) is None


async def test_where_no_budget_is_in_force_nothing_is_bought_but_what_they_do_not_cover(
    ledger: SqliteLedger, clock: MovableClock
) -> None:
    november = Window(Per.TOTAL, first_day=date(2026, 11, 24), last_day=date(2026, 11, 30))
    of_each = Budget(Money(50), Window.REQUEST, name="request")
    buyer = Caller(Tenant("acme", (Budget(Money(100), november, models=frozenset({"kling"})), of_each)), "k1")
    await _hold(ledger, buyer, "a cat", 5, model="flux")

    with pytest.raises(BudgetExceeded, match="is in force") as early:
        await _hold(ledger, buyer, "a dog", 5)
    clock.now += DAY_SECONDS
    await _hold(ledger, buyer, "a dog", 5)
    clock.now += 7 * DAY_SECONDS
    with pytest.raises(BudgetExceeded) as late:
        await _hold(ledger, buyer, "an emu", 5)

    assert early.value.details["resets_at"] == "2026-11-24T00:00:00Z"
    assert (late.value.resets_at, late.value.details["remaining_usd"]) == (None, 0)


async def test_a_top_up_makes_room_in_its_own_window(ledger: SqliteLedger, clock: MovableClock) -> None:
    more = TopUp(Money(50), NOON + 5, "launch")
    buyer = Caller(Tenant("acme", (Budget(Money(10), Window.DAY, top_ups=(more,)),)), "k1")
    clock.now = NOON + 10
    await _hold(ledger, buyer, "a cat", 60)
    with pytest.raises(BudgetExceeded):
        await _hold(ledger, buyer, "a dog", 1)

    clock.now += DAY_SECONDS

    await _hold(ledger, buyer, "a dog", 10)
    with pytest.raises(BudgetExceeded):
        await _hold(ledger, buyer, "an emu", 1)


async def test_a_rolling_budget_has_room_when_enough_is_forgotten_and_counts_on_no_top_up_until_then(
    ledger: SqliteLedger, clock: MovableClock
) -> None:
    rolling = Window(Per.ROLLING, rolling_seconds=6 * 3600)
    more = TopUp(Money(2), NOON + 60, "launch")
    buyer = Caller(Tenant("acme", (Budget(Money(10), rolling, top_ups=(more,)),)), "k1")
    await _hold(ledger, buyer, "a cat", 4)
    clock.now += 3600
    await _hold(ledger, buyer, "a dog", 8)

    with pytest.raises(BudgetExceeded) as refusal:
        await _hold(ledger, buyer, "an emu", 3)

    assert refusal.value.details["resets_at"] == "2026-11-23T07:15:00Z"
    assert refusal.value.details["window"] == "rolling 6h"
    clock.now = NOON + 7 * 3600 + 900
    await _hold(ledger, buyer, "an emu", 3)


async def test_a_team_that_moves_leaves_what_is_under_way_where_it_was_and_keeps_its_own_history(
    ledger: SqliteLedger,
) -> None:
    sent = await ledger.send(await _hold(ledger, BUYER, "a cat", 20))
    zenith = Tenant("zenith", (Budget(Money(100), Window.MONTH),))
    moved = Caller(replace(FILM, parent=zenith), "k1")
    await _hold(ledger, moved, "a dog", 7)
    bought = await ledger.record_ticket(sent, Ticket("T1"))

    await ledger.settle(bought, cost=Money(19), blobs=[BLOB], seed=None, seconds=None)

    month = (Budget(Money(100), Window.MONTH),)
    balances = await ledger.balances_of([Holder(name, "", month) for name in ("acme", "zenith", "film")])
    assert [(each.spent.micros, each.reserved.micros) for each in balances] == [(19, 0), (0, 7), (19, 7)]
    purchase = await ledger.purchase(bought.purchase)
    assert purchase is not None
    assert (purchase.tenant, purchase.path) == ("film", "acme/film")
    assert await ledger.verify() == []


async def test_what_counts_is_the_caller_as_it_is_when_it_reserves(
    database: SqliteDatabase, clock: MovableClock
) -> None:
    terms = {"k1": BUYER}

    def in_force(_: sqlite3.Connection, caller: Caller) -> Caller:
        if caller.key_id not in terms:
            raise KeyEnded("revoked", key_id=caller.key_id)
        return terms[caller.key_id]

    ledger = _ledger(database, clock, in_force)
    await _hold(ledger, BUYER, "a cat", 5)
    terms["k1"] = Caller(replace(FILM, budgets=(Budget(Money(9), Window.DAY),)), "k1")
    with pytest.raises(BudgetExceeded) as lowered:
        await _hold(ledger, BUYER, "a dog", 5)
    del terms["k1"]
    with pytest.raises(KeyEnded):
        await _hold(ledger, BUYER, "a dog", 1)

    assert lowered.value.balance.limit == Money(9)
    assert sum((await ledger.reserved()).values(), start=Money.ZERO) == Money(5)


@pytest.mark.parametrize("how", ["reserved", "released", "resolved"])
async def test_what_changes_a_teams_money_changes_the_marks_of_all_above_it(
    database: SqliteDatabase, ledger: SqliteLedger, how: str
) -> None:
    marks = database.marks
    assert marks is not None
    held = await _hold(ledger, BUYER, "a cat", 5)
    silent = await ledger.send(await _hold(ledger, BUYER, "a dog", 5))
    await ledger.mark_unknown(silent, "silence")
    places = [Marks.place(f"tenant:{name}") for name in ("acme", "film", "zenith")]
    before = [marks.read(place) for place in places]

    match how:
        case "reserved":
            await _hold(ledger, BUYER, "an emu", 5)
        case "released":
            await ledger.release(held, "given up")
        case _:
            assert await ledger.resolve_not_bought(silent.purchase, "absent")

    changed = [marks.read(place) != mark for place, mark in zip(places, before, strict=True)]
    assert changed == [True, True, False]


async def test_the_pace_is_what_was_spent_and_is_held_of_late(
    ledger: SqliteLedger, clock: MovableClock
) -> None:
    await _hold(ledger, BUYER, "a cat", 5)
    clock.now += DAY_SECONDS
    await _hold(ledger, BUYER, "a dog", 7)

    total, day, month = await ledger.balances_of(BUYER.holders, with_pace=True)

    assert (total.recent, day.recent, month.recent) == (Money(12), Money(7), Money(12))


# --- Several processes

PRICE = 416_000


def _spend_in_another_process(path: str, number: int) -> None:
    acme = Tenant("acme", (Budget(Money(20 * PRICE), Window.MONTH),))
    film = Tenant("film", (Budget(Money(12 * PRICE), Window.DAY),), parent=acme)
    music = Tenant("music", (), parent=acme)
    of_key = KeyTerms(budgets=(Budget(Money(5 * PRICE + 1), Window.TOTAL),))
    callers = [Caller(film, f"film-{each}", of_key) for each in range(4)]
    callers += [Caller(music, f"music-{each}", of_key) for each in range(4)]

    async def spend() -> None:
        with closing(SqliteDatabase(Path(path))) as database:
            ledger = SqliteLedger(
                database, clock=MovableClock(), owner=f"p{number}", is_alive=lambda _: True, lease_seconds=15
            )

            async def buy(buyer: Caller, each: int) -> None:
                name = f"{buyer.key_id} {number} {each}"
                try:
                    asked = replace(request(name), price=Money(PRICE))
                    sent = await ledger.reserve(buyer, asked, newest_known=None, sending=True)
                except BudgetExceeded:
                    return
                assert isinstance(sent, Sent)
                bought = await ledger.record_ticket(sent, Ticket(name))
                await ledger.settle(bought, cost=None, blobs=[BLOB], seed=None, seconds=None)

            await asyncio.gather(*(buy(buyer, each) for each in range(4) for buyer in callers))

    asyncio.run(spend())


def test_three_processes_fill_every_budget_of_a_tree_to_the_micro_dollar_and_pass_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite3"
    with closing(SqliteDatabase(path)) as database:
        _ledger(database, MovableClock())
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_spend_in_another_process, args=(str(path), each)) for each in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert {process.exitcode for process in processes} == {0}
        ledger = _ledger(database, MovableClock())

        assert asyncio.run(ledger.verify()) == []
    with closing(sqlite3.connect(path)) as books:
        by_tenant = dict(books.execute("SELECT tenant, SUM(cost_micros) FROM purchases GROUP BY tenant"))
        by_key = [count for (count,) in books.execute("SELECT COUNT(*) FROM purchases GROUP BY key_id")]
    # More was asked for than fits: what was refused had no room, so the organisation's budget is full to the last.
    assert sum(by_tenant.values()) == 20 * PRICE
    assert by_tenant["film"] <= 12 * PRICE
    assert max(by_key) <= 5
