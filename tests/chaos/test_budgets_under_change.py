"""Random trees under random changes: four processes reserve at once, fifty at a time, while a fifth changes everything.

The database keeps a tape of its transactions, and each refusal says up to which line of the tape it had read. Played
again, the tape says what had room: nothing may have been sold that had none, and nothing refused that had.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.documents.yaml_files import DocumentInvalid
from gateway.domain.errors import BudgetExceeded, BudgetUnknown, KeyEnded, KeyUnknown, TenantUnknown
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, KeyTerms
from gateway.domain.window import Per, Window
from gateway.ledger.contract import Purchase, Sent
from gateway.ledger.sqlite import SqliteLedger
from gateway.tenants.contract import Declared
from gateway.tenants.declarations import declared_from_json, terms_from_json
from gateway.tenants.sqlite import SqliteDirectory
from tests.chaos.callers import seeded
from tests.contracts.ledger_books import BLOB, MovableClock, request

PROCESSES, AT_ONCE, EACH = 4, 50, 6
TENANTS = tuple(f"t{number}" for number in range(6))
MODELS = ("kling", "flux")
WINDOWS = (
    Window.TOTAL,
    Window.DAY,
    Window(Per.MONTH, "Europe/Berlin"),
    Window(Per.WEEK, "America/New_York", week_starts=6),
    Window(Per.ROLLING, rolling_seconds=6 * 3600),
)
DEAREST = 20

TAPE = """
CREATE TABLE tape (
    serial INTEGER PRIMARY KEY, purchase TEXT, is_new INTEGER, micros INTEGER, entry INTEGER
);
CREATE TRIGGER reserved AFTER INSERT ON purchases BEGIN
    INSERT INTO tape (purchase, is_new, micros) VALUES (NEW.id, 1, NEW.held_micros);
END;
CREATE TRIGGER ended AFTER UPDATE OF ended_at ON purchases WHEN NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL BEGIN
    INSERT INTO tape (purchase, is_new, micros) VALUES (NEW.id, 0, COALESCE(NEW.cost_micros, 0) - NEW.held_micros);
END;
CREATE TRIGGER changed AFTER INSERT ON audit BEGIN INSERT INTO tape (entry) VALUES (NEW.serial); END;
"""

SEEDS = [os.environ["CHAOS_SEED"]] if "CHAOS_SEED" in os.environ else ["1", "2", "3"]

pytestmark = pytest.mark.timeout(300)


# --- Those who buy


def _buy(directory: str, number: int, seed: str, keys: Sequence[str], together: Barrier) -> None:
    asyncio.run(_bought(Path(directory), number, seeded(seed, number), keys, together))


async def _bought(
    directory: Path, number: int, chance: random.Random, keys: Sequence[str], together: Barrier
) -> None:
    read_up_to: dict[int, int] = {}
    refusals: list[Any] = []
    with (
        closing(Marks(directory / "marks")) as marks,
        closing(SqliteDatabase(directory / "ledger.sqlite3", marks=marks)) as database,
        closing(SqliteDirectory(database, clock=MovableClock())) as tenants,
    ):

        def in_force(connection: sqlite3.Connection, caller: Caller) -> Caller:
            (read_up_to[id(caller)],) = connection.execute("SELECT COUNT(*) FROM tape").fetchone()
            return tenants.in_force(connection, caller)

        ledger = SqliteLedger(
            database,
            clock=MovableClock(),
            owner=f"p{number}",
            is_alive=lambda _: True,
            lease_seconds=15,
            in_force=in_force,
        )
        # As they are before anything is changed: what counts is what the transaction finds.
        known = [caller for key in keys if (caller := tenants.caller(key))]

        async def buy(one: int) -> None:
            for each in range(EACH):
                caller = replace(chance.choice(known))
                asked = replace(
                    request(f"{number} {one} {each}", model=chance.choice(MODELS)),
                    price=Money(chance.randint(1, DEAREST)),
                )
                try:
                    sent = await ledger.reserve(caller, asked, newest_known=None, sending=True)
                except (BudgetExceeded, KeyEnded) as refusal:
                    said = [caller.key_id, asked.model, asked.price.micros]
                    refusals.append([*said, read_up_to[id(caller)], refusal.code])
                    continue
                assert isinstance(sent, Sent)
                await end(sent, asked.price.micros)

        async def end(sent: Sent, held: int) -> None:
            match chance.randrange(4):
                case 0:
                    await ledger.release(sent, "not bought")
                case 1 | 2:
                    bought = await ledger.record_ticket(sent, Ticket(f"{number} {sent.purchase}"))
                    cost = Money(chance.randint(0, held))
                    await ledger.settle(bought, cost=cost, blobs=[BLOB], seed=None, seconds=None)

        together.wait()
        await asyncio.gather(*(buy(one) for one in range(AT_ONCE)))
    (directory / f"refusals-{number}").write_text(json.dumps(refusals))


# --- Who changes everything


def _budgets(chance: random.Random) -> tuple[Budget, ...]:
    return tuple(
        Budget(
            Money(chance.randint(100, 3000)),
            window,
            name=f"{window.label} {number}",
            models=None if chance.random() < 0.7 else frozenset({chance.choice(MODELS)}),
        )
        for number, window in enumerate(chance.choices(WINDOWS, k=chance.randint(0, 3)))
    )


def _limited(declared: Declared, chance: random.Random) -> Declared:
    most = None if chance.random() < 0.8 else Money(chance.randint(DEAREST // 2, DEAREST))
    return replace(declared, budgets=_budgets(chance), most_per_request=most)


async def _change(directory: SqliteDirectory, chance: random.Random, keys: Sequence[str]) -> None:
    """Anything, if it makes sense at the moment."""
    said = {each.name: each for each in await directory.declared()}
    name, key = chance.choice(TENANTS), chance.choice(keys)
    with suppress(DocumentInvalid, TenantUnknown, BudgetUnknown, KeyUnknown):
        match chance.randrange(10):
            case 0 | 1 | 2:
                await directory.put(_limited(said.get(name, Declared(name)), chance), who="test")
            case 3 | 4 | 5:
                await directory.move(name, parent=chance.choice([None, *TENANTS]), who="test")
            case 6:
                budget = (
                    chance.choice([each.label for each in said[name].limits] or [""]) if name in said else ""
                )
                await directory.top_up(
                    name, Money(chance.randint(1, 200)), reason="more", who="test", budget=budget
                )
            case 7:
                budgets = _budgets(chance)
                await directory.amend(key, change=lambda terms: replace(terms, budgets=budgets), who="test")
            case 8:
                await directory.remove(name, who="test")
            case 9 if chance.random() < 0.3:
                await directory.revoke(key, who="test")


# --- The tape, played again


@dataclass
class Played:
    """What was in force, and what was spent and held, at one moment of the tape."""

    tenant_of: dict[str, str] = field(default_factory=dict)
    """By the id of a key, while it was good."""

    declared: dict[str, Declared] = field(default_factory=dict)
    of_key: dict[str, tuple[Budget, ...]] = field(default_factory=dict)
    added: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What topped up the budget of a tenant."""

    counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant or key, and model."""

    def copy(self) -> Played:
        return Played(
            dict(self.tenant_of),
            dict(self.declared),
            dict(self.of_key),
            self.added.copy(),
            self.counted.copy(),
        )

    def path(self, tenant: str) -> list[str]:
        parent = self.declared[tenant].parent
        return [*(self.path(parent) if parent else ()), tenant]

    def is_allowed(self, key_id: str) -> bool:
        return self.tenant_of.get(key_id) in self.declared

    def has_room(self, key_id: str, model: str, price: int) -> bool:
        holders = [(key_id, self.of_key[key_id])]
        holders += [(name, self.declared[name].limits) for name in self.path(self.tenant_of[key_id])]
        return all(
            price <= self._left(name, budget)
            for name, budgets in holders
            for budget in budgets
            if budget.covers(model)
        )

    def _left(self, name: str, budget: Budget) -> int:
        if budget.is_per_request:
            return budget.limit.micros
        spent = sum(self.counted[name, model] for model in MODELS if budget.covers(model))
        return budget.limit.micros + self.added[name, budget.label] - spent


def _played(directory: Path) -> Iterator[tuple[Played, Any]]:
    """What was in force before each line of the tape, and the line: a new purchase, or None; at the end, what was left."""
    with closing(sqlite3.connect(directory / "ledger.sqlite3")) as books:
        tape = books.execute(
            "SELECT is_new, micros, path, key_id, model, held_micros, action, what, after FROM tape "
            "LEFT JOIN purchases ON purchases.id = purchase LEFT JOIN audit ON audit.serial = entry "
            "ORDER BY tape.serial"
        ).fetchall()
    now = Played()
    for is_new, micros, path, key_id, model, held, action, what, text in tape:
        yield now, (path, key_id, model, held) if is_new else None
        now = now.copy()
        if action is None:
            for holder in (*path.split("/"), key_id):
                now.counted[holder, model] += micros
            continue
        name, _, key = what.partition("#")
        after: Any = json.loads(text) if text else None
        match action:
            case "tenant made" | "tenant changed":
                now.declared[name] = declared_from_json(name, after)
            case "tenant removed":
                del now.declared[name]
            case "key created" | "key amended":
                now.tenant_of[key] = name
                del after["name"]
                now.of_key[key] = terms_from_json(after).budgets
            case "key revoked":
                del now.tenant_of[key]
            case "topped up":
                now.added[name, after["budget"]] += Money.exactly(after["usd"]).micros
    yield now, None


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_budget_is_passed_and_nothing_refused_that_fits_whatever_is_changed_meanwhile(
    tmp_path: Path, seed: str
) -> None:
    chance = seeded(seed)
    async with AsyncExitStack() as stack:
        marks = stack.enter_context(closing(Marks(tmp_path / "marks")))
        database = stack.enter_context(closing(SqliteDatabase(tmp_path / "ledger.sqlite3", marks=marks)))
        directory = stack.enter_context(closing(SqliteDirectory(database, clock=MovableClock())))
        ledger = SqliteLedger(
            database, clock=MovableClock(), owner="test", is_alive=lambda _: True, lease_seconds=15
        )
        with closing(sqlite3.connect(database.path)) as books:
            books.executescript(TAPE)
        await directory.apply(
            [
                _limited(Declared(name, parent=chance.choice([None, *TENANTS[:number]])), chance)
                for number, name in enumerate(TENANTS)
            ],
            who="test",
        )
        for tenant in TENANTS * 2:
            await directory.create(tenant, "", terms=KeyTerms(budgets=_budgets(chance)), who="test")
        keys = [key.id for key in await directory.listed(None)]

        context = multiprocessing.get_context("spawn")
        together = context.Barrier(PROCESSES + 1)
        processes = [
            context.Process(target=_buy, args=(str(tmp_path), number, seed, keys, together))
            for number in range(PROCESSES)
        ]
        for process in processes:
            process.start()
        await asyncio.to_thread(together.wait, 120)
        changes = 0
        while any(process.is_alive() for process in processes):
            await _change(directory, chance, keys)
            changes += 1
        assert {process.exitcode for process in processes} == {0}
        assert await ledger.verify() == []
        bought = await ledger.purchases(limit=1_000_000)
        held_or_spent = [
            [holder, sum(_counts(purchase) for purchase in bought if holder in purchase.path.split("/"))]
            for holder in TENANTS
        ]

    states: list[Played] = []
    for before, new in _played(tmp_path):
        states.append(before)
        if new is not None:
            path, key_id, model, price = new
            assert before.is_allowed(key_id)
            assert path.split("/") == before.path(before.tenant_of[key_id])
            assert before.has_room(key_id, model, price)
    refusals = [
        refusal
        for number in range(PROCESSES)
        for refusal in json.loads((tmp_path / f"refusals-{number}").read_text())
    ]
    for key_id, model, price, up_to, code in refusals:
        state = states[up_to]
        if code == "key_ended":
            assert not state.is_allowed(key_id)
        else:
            assert not state.has_room(key_id, model, price)
    assert held_or_spent == [
        [holder, sum(states[-1].counted[holder, model] for model in MODELS)] for holder in TENANTS
    ]
    # It was tried, and not just not met.
    assert len(bought) + len(refusals) == PROCESSES * AT_ONCE * EACH
    assert changes > 10
    assert len(bought) > 20
    assert sum(code == "budget_exceeded" for *_, code in refusals) > 20


def _counts(purchase: Purchase) -> int:
    if purchase.ended_at is None:
        return purchase.request.price.micros
    return purchase.cost.micros if purchase.cost else 0
