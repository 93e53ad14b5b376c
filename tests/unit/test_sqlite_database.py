from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.errors import StorageUnavailable


@pytest.fixture
def database(tmp_path: Path) -> Iterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "some.sqlite3")
    opened.migrate("some", ("CREATE TABLE things (name TEXT PRIMARY KEY);",))
    yield opened
    opened.close()


def insert(name: str) -> Callable[[sqlite3.Connection], int]:
    return lambda connection: connection.execute("INSERT INTO things VALUES (?)", (name,)).rowcount


async def names(database: SqliteDatabase) -> list[str]:
    return await database.read(
        lambda connection: [name for (name,) in connection.execute("SELECT name FROM things ORDER BY name")]
    )


async def test_work_that_fails_changes_nothing_and_takes_nobody_with_it(database: SqliteDatabase) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO things VALUES ('half')")
        raise LookupError("changed my mind")

    results = await asyncio.gather(
        database.write(insert("a")),
        database.write(half),
        database.write(insert("a")),
        database.write(insert("b")),
        return_exceptions=True,
    )

    assert results[0] == 1
    assert isinstance(results[1], LookupError)
    assert isinstance(results[2], sqlite3.IntegrityError)
    assert results[3] == 1
    assert await names(database) == ["a", "b"]


async def test_work_that_fails_alone_changes_nothing_and_the_next_goes_on(database: SqliteDatabase) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO things VALUES ('half')")
        raise LookupError("changed my mind")

    with pytest.raises(LookupError):
        await database.write(half)
    with pytest.raises(StorageUnavailable):
        await database.write(lambda connection: connection.execute("INSERT INTO nowhere VALUES (1)"))
    await database.write(insert("a"))

    assert await names(database) == ["a"]


async def test_who_is_patient_shares_the_commit_of_the_next_and_is_told_with_it(
    database: SqliteDatabase,
) -> None:
    patient = [asyncio.create_task(database.write(insert(name), patient=True)) for name in "ab"]
    await asyncio.sleep(0)

    await database.write(insert("c"))
    await asyncio.sleep(0)

    assert all(task.done() for task in patient)
    assert await names(database) == ["a", "b", "c"]


async def test_who_is_patient_is_not_forgotten_where_nobody_else_writes_nor_at_the_end(
    database: SqliteDatabase,
) -> None:
    await database.write(insert("alone"), patient=True)
    assert await names(database) == ["alone"]

    waiting = asyncio.create_task(database.write(insert("at the end"), patient=True))
    await asyncio.sleep(0)
    database.close()

    assert await waiting == 1
    with closing(sqlite3.connect(database.path)) as there:
        assert there.execute("SELECT COUNT(*) FROM things").fetchone() == (2,)


@pytest.mark.timeout(10)  # who is not told waits for ever
@pytest.mark.parametrize("way", ["write", "read", "survey"])
async def test_work_that_runs_out_of_an_iterator_is_told_as_a_coroutine_tells_it_and_takes_nobody_with_it(
    database: SqliteDatabase, way: str
) -> None:
    def nothing_left(_: sqlite3.Connection) -> None:
        next(iter(()))

    fails: Awaitable[object] = getattr(database, way)(nothing_left)
    results = await asyncio.gather(fails, database.write(insert("a")), return_exceptions=True)

    assert isinstance(results[0], RuntimeError)
    assert isinstance(results[0].__cause__, StopIteration)
    assert results[1] == 1


def test_a_database_closes_whatever_its_log_is_waiting_for(tmp_path: Path) -> None:
    """Closed around the end of the wait between two checkpoints, each at another moment."""

    async def closed(number: int) -> threading.Thread:
        database = SqliteDatabase(tmp_path / f"{number}.sqlite3")
        database.migrate("some", ("CREATE TABLE things (name TEXT PRIMARY KEY);",))
        await database.write(insert("a"))
        await asyncio.sleep(0.2490 + number * 0.00004)
        closing_it = threading.Thread(target=database.close, daemon=True)
        closing_it.start()
        return closing_it

    async def all_closed() -> list[threading.Thread]:
        return await asyncio.gather(*map(closed, range(60)))

    for thread in asyncio.run(all_closed()):
        thread.join(timeout=30)
        assert not thread.is_alive()


async def test_what_is_written_is_seen_by_whoever_reads_next(database: SqliteDatabase) -> None:
    for number in range(50):
        await database.write(insert(f"{number:03}"))
        assert len(await names(database)) == number + 1


async def test_a_reader_cannot_write(database: SqliteDatabase) -> None:
    with pytest.raises(StorageUnavailable):
        await database.read(insert("x"))


class HeldUp(Marks):
    """Marks that are not changed before somebody lets them be, and who then look at what is committed."""

    def __init__(self, path: Path, database: Path) -> None:
        super().__init__(path)
        self._database = database
        self.reached, self.may_go_on = threading.Event(), threading.Event()
        self.committed: list[str] = []

    def change(self, name: str) -> None:
        self.reached.set()
        assert self.may_go_on.wait(10)
        with closing(sqlite3.connect(self._database)) as other:
            self.committed = [found for (found,) in other.execute("SELECT name FROM things")]
        super().change(name)


async def test_a_mark_is_changed_after_the_commit_and_before_anybody_is_told(tmp_path: Path) -> None:
    marks = HeldUp(tmp_path / "marks", tmp_path / "some.sqlite3")
    opened = SqliteDatabase(tmp_path / "some.sqlite3", marks=marks)
    opened.migrate("some", ("CREATE TABLE things (name TEXT PRIMARY KEY);",))
    place = marks.place("things")
    before = marks.read(place)

    def work(connection: sqlite3.Connection) -> None:
        insert("x")(connection)
        opened.changes("things")

    told = asyncio.create_task(opened.write(work))
    await asyncio.to_thread(marks.reached.wait, 10)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not told.done()
    marks.may_go_on.set()
    await told

    assert marks.committed == ["x"]
    assert marks.read(place) != before
    opened.close()
    marks.close()


async def test_what_does_not_say_that_it_changes_anything_changes_no_mark(tmp_path: Path) -> None:
    marks = Marks(tmp_path / "marks")
    opened = SqliteDatabase(tmp_path / "some.sqlite3", marks=marks)
    opened.migrate("some", ("CREATE TABLE things (name TEXT PRIMARY KEY);",))
    await opened.write(lambda _: opened.changes("things"))
    before = marks.read(marks.place("things"))

    await opened.write(insert("x"))

    assert marks.read(marks.place("things")) == before
    opened.close()
    marks.close()


async def test_a_caller_who_leaves_takes_nobody_with_it(database: SqliteDatabase) -> None:
    leaver = asyncio.create_task(database.write(insert("left")))
    await asyncio.sleep(0)
    leaver.cancel()
    stayed = await database.write(insert("stayed"))

    assert stayed == 1
    assert await names(database) == ["left", "stayed"]


async def test_a_closed_database_says_so(database: SqliteDatabase) -> None:
    database.close()
    database.close()

    with pytest.raises(StorageUnavailable, match="closed"):
        await database.write(lambda _: None)


async def test_what_is_in_the_log_is_brought_into_the_file_without_anybody_asking(
    database: SqliteDatabase,
) -> None:
    await database.write(insert("a word that is nowhere else"))

    async with asyncio.timeout(30):
        while b"a word that is nowhere else" not in database.path.read_bytes():
            await asyncio.sleep(0.01)


async def test_the_log_is_begun_anew_however_much_is_written(database: SqliteDatabase) -> None:
    for number in range(20):
        await database.write(insert(f"{number} ".ljust(4 << 20, "x")))

    assert database.path.with_name("some.sqlite3-wal").stat().st_size < 40 << 20


async def test_the_file_is_for_its_owner_alone(database: SqliteDatabase) -> None:
    await database.write(insert("x"))

    modes = {path.name: path.stat().st_mode & 0o777 for path in database.path.parent.glob("some.sqlite3*")}
    assert set(modes.values()) == {0o600}, modes


async def test_a_migration_runs_once_and_the_next_one_after_it(tmp_path: Path) -> None:
    scripts = ["CREATE TABLE things (name TEXT);\nINSERT INTO things VALUES ('first');"]
    for _ in range(2):
        opened = SqliteDatabase(tmp_path / "other.sqlite3")
        opened.migrate("some", scripts)
        opened.close()
    opened = SqliteDatabase(tmp_path / "other.sqlite3")
    opened.migrate("some", [*scripts, "INSERT INTO things VALUES ('second');"])

    assert await names(opened) == ["first", "second"]
    opened.close()


def test_a_migration_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    opened = SqliteDatabase(tmp_path / "other.sqlite3")
    with pytest.raises(sqlite3.OperationalError):
        opened.migrate("some", ("CREATE TABLE things (name TEXT);\nCREATE TABLE things (name TEXT);",))

    opened.migrate("some", ("CREATE TABLE things (name TEXT);",))
    opened.close()


async def test_a_survey_sees_one_moment_keeps_nobody_waiting_and_writes_nothing(
    database: SqliteDatabase,
) -> None:
    await database.write(insert("before"))
    looking, may_end = threading.Event(), threading.Event()

    def survey(connection: sqlite3.Connection) -> list[int]:
        query = "SELECT COUNT(*) FROM things"
        seen = [connection.execute(query).fetchone()[0]]
        looking.set()
        assert may_end.wait(30)
        return [*seen, connection.execute(query).fetchone()[0]]

    surveying = asyncio.create_task(database.survey(survey))
    await asyncio.to_thread(looking.wait, 30)
    await database.write(insert("meanwhile"))
    assert await names(database) == ["before", "meanwhile"]
    may_end.set()

    assert await surveying == [1, 1]
    with pytest.raises(StorageUnavailable):
        await database.survey(insert("by a survey"))
