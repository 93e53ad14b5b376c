"""Books that older gateways kept are carried on: nothing is spent twice, nothing that is held is let go."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.generation import Generation
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Holder
from gateway.domain.window import Window
from gateway.ledger.contract import Bought, Held, State
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_tables import SCHEMA
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock, caller, request

TENANTS, KEYS, MODELS = ("acme", "wing", "zoo"), ("key-1", "key-2"), ("ltx-2-19b-t2v", "flux")
PRICES = (0, 1, 200_000, 416_000)
DAYS = 45
"""For so long the older gateway was in use: parts of two months."""

WINDOWS = (Window.DAY, Window.MONTH, Window.TOTAL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


def _opened(database: SqliteDatabase, clock: MovableClock) -> SqliteLedger:
    return SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0)


def _insert(books: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    columns = ", ".join(row)
    books.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(row))})", [*row.values()])


def _purchases(numbers: Iterator[int], count: int, *, now: float) -> Iterator[dict[str, object]]:
    """In every state, of every tenant, with each of its keys, for each model, at any price, before `now`."""
    chance = random.Random(count)  # noqa: S311 -- the same every time
    for number in itertools.islice(numbers, count):
        state = [*State][number % len(State)]
        tenant, model = chance.choice(TENANTS), chance.choice(MODELS)
        fingerprint = hashlib.sha256(str(number).encode()).hexdigest()
        held, cost = chance.choice(PRICES), chance.choice(PRICES)
        reserved_at = now - chance.random() * DAYS * DAY_SECONDS
        ticket = Ticket(f"T{number}")
        generation = Generation(
            Fingerprint(fingerprint),
            model,
            (BLOB,),
            Money(cost),
            PurchaseId(str(number)),
            ticket,
            reserved_at + 9,
        )
        yield {
            "id": str(number),
            "fingerprint": fingerprint,
            "tenant": tenant,
            "key_id": chance.choice(KEYS),
            "model": model,
            "seed": 42,
            "fresh": 0,
            "state": state.value,
            "held_micros": held,
            "day": int(reserved_at // DAY_SECONDS),
            "owner": "one",
            "lease_until": NOON + 15,
            "fence": 1,
            "ticket": ticket if state in (State.RUNNING, State.SETTLED, State.LOST) else None,
            "reserved_at": reserved_at,
            "ended_at": None if state.is_open else reserved_at + 9,
            "cost_micros": cost if state in (State.SETTLED, State.LOST) else None,
            "generation": json.dumps(generation.to_json()) if state is State.SETTLED else None,
        }  # fmt: skip


def _made_by_the_first(path: Path, numbers: Iterator[int], count: int) -> None:
    with closing(SqliteDatabase(path)) as database:
        database.migrate("ledger", SCHEMA[:1])
    with closing(sqlite3.connect(path)) as books, books:
        for purchase in _purchases(numbers, count, now=NOON):
            _insert(books, "purchases", {**purchase, "parameters": json.dumps({"prompt": purchase["id"]})})
        books.execute(
            "INSERT INTO spending SELECT tenant, day, model, SUM(cost_micros), COUNT(*) FROM purchases "
            "WHERE cost_micros IS NOT NULL GROUP BY tenant, day, model"
        )


def _carried_on_by_the_second(path: Path, numbers: Iterator[int], count: int) -> None:
    """Its triggers book what is open; what has ended is booked when it ends."""
    with closing(SqliteDatabase(path)) as database:
        database.migrate("ledger", SCHEMA[:2])
    with closing(sqlite3.connect(path)) as books, books:
        for purchase in _purchases(numbers, count, now=NOON):
            endings = {
                name: purchase[name] for name in ("state", "ticket", "ended_at", "cost_micros", "generation")
            }
            _insert(books, "purchases", {**purchase, **dict.fromkeys(endings), "state": "queued"})
            books.execute(
                f"UPDATE purchases SET {', '.join(f'{name} = ?' for name in endings)} WHERE id = ?",
                [*endings.values(), purchase["id"]],
            )
            books.execute(
                "INSERT INTO purchase_parameters SELECT serial, ? FROM purchases WHERE id = ?",
                (json.dumps({"prompt": purchase["id"]}), purchase["id"]),
            )


def _by_tenant_and_model(path: Path, column: str, condition: str) -> dict[tuple[str, str], Money]:
    with closing(sqlite3.connect(path)) as books:
        return {
            (tenant, model): Money(micros)
            for tenant, model, micros in books.execute(
                f"SELECT tenant, model, SUM({column}) FROM purchases WHERE {condition} GROUP BY tenant, model "
                f"HAVING SUM({column}) > 0"
            )
        }


def _balances(path: Path, now: float) -> dict[tuple[str, str], tuple[int, int]]:
    """What is spent and held in each window that `now` is in, one purchase after the other."""
    with closing(sqlite3.connect(path)) as books:
        rows = books.execute(
            "SELECT tenant, reserved_at, COALESCE(cost_micros, 0), held_micros * (ended_at IS NULL) FROM purchases"
        ).fetchall()
    found = {}
    for tenant in TENANTS:
        for window in WINDOWS:
            span = window.span(now)
            assert span is not None
            inside = [row for row in rows if row[0] == tenant and span.holds(row[1])]
            found[tenant, window.label] = (sum(row[2] for row in inside), sum(row[3] for row in inside))
    return found


@pytest.mark.parametrize("versions", [1, 2])
async def test_books_of_every_older_version_are_carried_on_to_the_micro_dollar(
    path: Path, versions: int
) -> None:
    numbers = itertools.count(1)
    _made_by_the_first(path, numbers, 210)
    if versions > 1:
        _carried_on_by_the_second(path, numbers, 140)
    spent = _by_tenant_and_model(path, "cost_micros", "cost_micros IS NOT NULL")
    reserved = _by_tenant_and_model(path, "held_micros", "ended_at IS NULL")
    clock = MovableClock()
    moments = [NOON - days * DAY_SECONDS for days in (0, 1, 22, 23, 40, 300)]
    before = [_balances(path, moment) for moment in moments]

    with closing(SqliteDatabase(path)) as database:
        ledger = _opened(database, clock)

        assert await ledger.verify() == []
        assert await ledger.spent() == spent
        assert await ledger.reserved() == reserved
        budgets = tuple(Budget(Money(10**12), window) for window in WINDOWS)
        for moment, balances in zip(moments, before, strict=True):
            clock.now = moment
            now = await ledger.balances_of([Holder(tenant, "", budgets) for tenant in TENANTS])
            assert {
                (each.holder.name, each.budget.label): (each.spent.micros, each.reserved.micros)
                for each in now
            } == balances


async def test_an_older_gateways_purchases_go_on_and_end_where_they_were_reserved(path: Path) -> None:
    numbers = itertools.count(1)
    _made_by_the_first(path, numbers, 70)
    clock = MovableClock()
    with closing(SqliteDatabase(path)) as database:
        ledger = _opened(database, clock)
        purchases = await ledger.purchases(limit=-1)
        assert {purchase.state for purchase in purchases} == {*State}
        for purchase in purchases:
            assert purchase.path == purchase.tenant
            assert purchase.request.parameters == {"prompt": purchase.id}
            match purchase.state:
                case State.QUEUED:
                    await ledger.release(Held(purchase.id, 1), "given up")
                case State.RUNNING:
                    assert purchase.ticket is not None
                    await ledger.settle(
                        Bought(purchase.id, 1, purchase.ticket),
                        cost=Money(5),
                        blobs=[BLOB],
                        seed=None,
                        seconds=None,
                    )
                case State.UNKNOWN:
                    assert await ledger.resolve_lost(purchase.id, Money(7), "gone")
                case State.SETTLED:
                    landed = await ledger.newest(purchase.request.fingerprint)
                    assert landed is not None
                    assert landed.generation == purchase.generation is not None
        assert isinstance(await ledger.reserve(caller(), request(), newest_known=None), Held)

        assert await ledger.verify() == []
        assert sum((await ledger.spent()).values(), start=Money.ZERO) == sum(
            (purchase.cost for purchase in await ledger.purchases(limit=-1) if purchase.cost is not None),
            start=Money.ZERO,
        )
