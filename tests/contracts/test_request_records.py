"""What the records of requests and the tallies promise, sentence by sentence."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.generation import CacheStatus, Generation
from gateway.domain.identity import PurchaseId, RequestId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span, quarter
from gateway.requests.contract import Completed, Failed, RequestRecord, Tally
from gateway.requests.sqlite import _SCHEMA, SqliteRequestRecords, SqliteTallies
from tests.contracts.ledger_books import BLOB, NOON, MovableClock, request

Open = Callable[..., SqliteRequestRecords]


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "ledger.sqlite3")
    yield opened
    opened.close()


@pytest.fixture
def open_records(tmp_path: Path, clock: MovableClock) -> Iterator[Open]:
    """Opens the same records again and again, each time as another process would."""
    with ExitStack() as closing:

        def open_(
            owner: str = "one", alive: frozenset[str] = frozenset({"one", "two"})
        ) -> SqliteRequestRecords:
            opened = SqliteDatabase(tmp_path / "ledger.sqlite3")
            closing.callback(opened.close)
            return SqliteRequestRecords(opened, clock=clock, owner=owner, is_alive=alive.__contains__)

        yield open_


@pytest.fixture
def records(open_records: Open) -> SqliteRequestRecords:
    return open_records()


def record(name: str = "r1", *, submitted_at: float = NOON) -> RequestRecord:
    return RequestRecord(
        RequestId(name),
        "acme",
        "key-1",
        request(name),
        submitted_at,
        purchase=PurchaseId(f"purchase of {name}"),
    )


COMPLETED = Completed(
    Generation(
        fingerprint=request().fingerprint,
        model="ltx-2-19b-t2v",
        blobs=(BLOB, replace(BLOB, media_type="image/png")),
        cost=Money(416_000),
        purchase=PurchaseId("p"),
        ticket=Ticket("t"),
        made_at=NOON + 100,
        seconds=100.5,
        seed=7,
    ),
    charged=Money(416_000),
    status=CacheStatus.MISS,
)
FAILED = Failed("generation_failed", "Prompt is bad", {"retry": False})


async def test_a_record_is_found_as_it_was_opened(records: SqliteRequestRecords) -> None:
    await records.open(record())

    assert await records.find(RequestId("r1"), "acme") == record()


async def test_a_record_knows_its_shape_again_and_one_that_an_older_gateway_wrote_has_none(
    records: SqliteRequestRecords, tmp_path: Path
) -> None:
    for name in ("new", "old"):
        await records.open(replace(record(name), request=replace(request(name), shape='{"width":64}')))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as books, books:
        books.execute(
            "UPDATE requested SET request = json_remove(request, '$.shape') "
            "WHERE serial = (SELECT serial FROM requests WHERE id = 'old')"
        )

    new, old = [await records.find(RequestId(name), "acme") for name in ("new", "old")]
    assert new is not None
    assert old is not None
    assert (new.request.shape, old.request.shape) == ('{"width":64}', "")


async def test_a_record_is_found_by_its_own_tenant_only(records: SqliteRequestRecords) -> None:
    await records.open(record())

    assert await records.find(RequestId("r1"), "other") is None
    assert await records.find(RequestId("r2"), "acme") is None


@pytest.mark.parametrize("outcome", [COMPLETED, FAILED], ids=["completed", "failed"])
async def test_an_outcome_is_kept_whole(
    records: SqliteRequestRecords, clock: MovableClock, outcome: Completed | Failed
) -> None:
    await records.open(record())
    clock.now += 103

    await records.conclude(RequestId("r1"), outcome)

    found = await records.find(RequestId("r1"), "acme")
    assert found == replace(record(), outcome=outcome, concluded_at=NOON + 103)


async def test_the_first_outcome_stays(records: SqliteRequestRecords) -> None:
    await records.open(record())

    await records.conclude(RequestId("r1"), COMPLETED)
    await records.conclude(RequestId("r1"), FAILED)

    found = await records.find(RequestId("r1"), "acme")
    assert found is not None
    assert found.outcome == COMPLETED


async def test_a_request_that_hit_is_written_down_with_its_outcome(records: SqliteRequestRecords) -> None:
    concluded = replace(record(), outcome=COMPLETED, concluded_at=NOON)
    await records.open(concluded)

    assert await records.find(RequestId("r1"), "acme") == concluded
    assert await records.adopt_pending(followed=set()) == []


async def test_what_the_dead_left_is_taken_over_and_what_the_living_follow_is_not(open_records: Open) -> None:
    dead, living = open_records("dead"), open_records("one")
    me = open_records("two", frozenset({"one", "two"}))
    await dead.open(record("second", submitted_at=NOON + 1))
    await dead.open(record("first"))
    await dead.open(replace(record("done"), outcome=FAILED, concluded_at=NOON))
    await living.open(record("theirs"))
    await me.open(record("mine", submitted_at=NOON + 2))
    await me.open(record("followed", submitted_at=NOON + 3))

    adopted = await me.adopt_pending(followed={RequestId("followed")})

    assert [each.id for each in adopted] == ["first", "second", "mine"]
    third = open_records("three", frozenset({"one", "two", "three"}))
    assert await third.adopt_pending(followed=set()) == []


async def test_old_records_are_forgotten_once_they_are_concluded(records: SqliteRequestRecords) -> None:
    await records.open(replace(record("old"), outcome=FAILED, concluded_at=NOON))
    await records.open(record("old and pending"))
    await records.open(replace(record("new", submitted_at=NOON + 10), outcome=FAILED, concluded_at=NOON + 10))

    assert await records.forget_before(NOON + 5) == 1

    assert await records.find(RequestId("old"), "acme") is None
    assert await records.find(RequestId("old and pending"), "acme") is not None
    assert await records.find(RequestId("new"), "acme") is not None


async def test_all_that_is_old_is_forgotten_however_much_it_is(
    records: SqliteRequestRecords, database: SqliteDatabase
) -> None:
    old = [replace(record(f"old {number}"), outcome=FAILED, concluded_at=NOON) for number in range(1201)]
    await asyncio.gather(*(records.open(each) for each in old))
    await records.open(record("pending"))

    assert await records.forget_before(NOON + 5) == 1201

    left = await database.read(
        lambda connection: [
            connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            for table in ("requests", "requested")
        ]
    )
    assert left == [(1,), (1,)]
    assert await records.forget_before(NOON + 5) == 0


async def test_records_that_an_older_gateway_wrote_are_found_as_they_were(
    database: SqliteDatabase, open_records: Open
) -> None:
    database.migrate("requests", _SCHEMA[:1])
    asked = json.dumps(
        {
            "model": "ltx-2-19b-t2v",
            "parameters": dict(request("r1").parameters),
            "fingerprint": request("r1").fingerprint,
            "price_micros": 416_000,
            "seed": 42,
            "fresh": False,
        }
    )
    failed = json.dumps({"code": FAILED.code, "message": FAILED.message, "details": dict(FAILED.details)})
    rows = [
        ("z", "acme", "key-1", asked, NOON, "purchase of r1", "one", None, None),
        ("a", "acme", "key-1", asked, NOON + 1, None, "one", NOON + 2, failed),
    ]
    await database.write(
        lambda connection: connection.executemany(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
        )
    )

    records = open_records()

    old = replace(record("r1"), id=RequestId("z"))
    assert await records.find(RequestId("z"), "acme") == old
    assert await records.find(RequestId("a"), "acme") == replace(
        old, id=RequestId("a"), submitted_at=NOON + 1, purchase=None, concluded_at=NOON + 2, outcome=FAILED
    )
    assert await records.adopt_pending(followed=set()) == [old]
    await records.conclude(RequestId("z"), COMPLETED)
    assert await records.forget_before(NOON + 10) == 2


# --- Tallies


async def test_answers_are_counted_by_tenant_model_and_status(database: SqliteDatabase) -> None:
    tallies = SqliteTallies(database)
    tallies.count(Party("acme", "k"), "m", CacheStatus.MISS, Money.ZERO, at=NOON)
    tallies.count(Party("acme", "k"), "m", CacheStatus.HIT, Money(416_000), at=NOON)
    tallies.count(Party("acme", "k"), "m", CacheStatus.HIT, Money(416_000), at=NOON)
    tallies.count(Party("acme", "k"), "n", CacheStatus.COLLAPSED, Money(5), at=NOON)
    tallies.count(Party("other", "k"), "m", CacheStatus.BYPASS, Money.ZERO, at=NOON)

    assert await tallies.totals("acme") == {
        ("acme", "m"): Tally(hits=2, misses=1, saved_by_hits=Money(832_000)),
        ("acme", "n"): Tally(collapsed=1, saved_by_joining=Money(5)),
    }
    assert set(await tallies.totals()) == {("acme", "m"), ("acme", "n"), ("other", "m")}


async def test_what_several_processes_count_is_added_up(database: SqliteDatabase) -> None:
    one, two = SqliteTallies(database), SqliteTallies(database)
    for tallies in (one, two):
        for _ in range(10):
            tallies.count(Party("acme", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)

    await asyncio.gather(one.flush(), two.flush())

    assert await one.totals() == {("acme", "m"): Tally(hits=20, saved_by_hits=Money(20))}


async def test_where_many_have_asked_counts_are_written_down_less_often_and_none_is_lost(
    database: SqliteDatabase,
) -> None:
    tallies, elsewhere = SqliteTallies(database), SqliteTallies(database)

    async def written() -> int:
        return sum(tally.hits for tally in (await elsewhere.totals()).values())

    for number in range(2000):
        tallies.count(Party(f"t{number}", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)
    await tallies.keep_up()
    assert await written() == 2000
    tallies.count(Party("t0", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)
    await tallies.keep_up()
    assert await written() == 2000

    # Few have asked since: whoever flushes all the same finds it due again at once.
    await tallies.flush()
    assert await written() == 2001
    tallies.count(Party("t0", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)
    async with asyncio.timeout(30):
        while await written() == 2001:
            await tallies.keep_up()
    assert await written() == 2002


async def test_what_could_not_be_written_down_is_counted_all_the_same(database: SqliteDatabase) -> None:
    tallies = SqliteTallies(database)
    tallies.count(Party("acme", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)
    await database.write(lambda connection: connection.execute("ALTER TABLE tallies RENAME TO elsewhere"))
    with pytest.raises(Exception, match="no such table"):
        await tallies.flush()
    tallies.count(Party("acme", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)
    await database.write(lambda connection: connection.execute("ALTER TABLE elsewhere RENAME TO tallies"))

    assert await tallies.totals() == {("acme", "m"): Tally(hits=2, saved_by_hits=Money(2))}


async def test_what_is_being_written_down_when_nobody_waits_for_it_any_more_is_counted_once(
    database: SqliteDatabase,
) -> None:
    tallies = SqliteTallies(database)
    tallies.count(Party("acme", "k"), "m", CacheStatus.HIT, Money(1), at=NOON)
    flushing = asyncio.create_task(tallies.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    await database.write(lambda _: None)  # behind it

    assert await tallies.totals() == {("acme", "m"): Tally(hits=1, saved_by_hits=Money(1))}


async def test_answers_are_kept_by_key_and_quarter_of_an_hour_where_the_tenant_stood(
    database: SqliteDatabase,
) -> None:
    tallies = SqliteTallies(database)
    before, after = Party("acme/film", "k"), Party("zenith/film", "k")
    tallies.count(before, "m", CacheStatus.HIT, Money(7), at=NOON + 899.9)
    tallies.add(before, "m", Tally(hits=2, saved_by_hits=Money(14)), at=NOON)
    tallies.count(after, "m", CacheStatus.COLLAPSED, Money(7), at=NOON + 900)
    await tallies.flush()
    tallies.count(after, "m", CacheStatus.MISS, Money.ZERO, at=NOON + 900)
    first = quarter(NOON)

    assert await tallies.by_key([Span(first, first + 1), Span(first + 1)]) == {
        (before, "m", 0): Tally(hits=3, saved_by_hits=Money(21)),
        (after, "m", 1): Tally(misses=1, collapsed=1, saved_by_joining=Money(7)),
    }
    assert await tallies.by_key([Span(0, first)]) == {}
    assert await tallies.totals() == {
        ("film", "m"): Tally(3, 1, 1, 0, saved_by_hits=Money(21), saved_by_joining=Money(7))
    }


async def test_what_was_counted_before_there_were_quarters_is_in_the_first_and_nobodys_keys(
    database: SqliteDatabase,
) -> None:
    database.migrate("requests", _SCHEMA[:2])
    await database.write(
        lambda connection: connection.execute("INSERT INTO tallies VALUES ('acme', 'm', 3, 2, 1, 0, 30, 10)")
    )
    tallies = SqliteTallies(database)
    old = Tally(3, 2, 1, 0, Money(30), Money(10))

    assert await tallies.by_key([Span(0, 1)]) == {(Party("acme", ""), "m", 0): old}
    assert await tallies.totals() == {("acme", "m"): old}
