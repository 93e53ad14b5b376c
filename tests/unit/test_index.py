"""The index under both stores, where more is to be seen than a store shows: rows by the thousand, broken files, rivals."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.database.nopickle import Index
from gateway.database.tidying import Slices
from gateway.domain.errors import StorageUnavailable

_ROOMY = 1 << 40

Opened = Callable[..., Index]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    indexes: list[Index] = []

    def open_index(
        *,
        max_bytes: int = _ROOMY,
        on_change: Callable[[str], None] = lambda _key: None,
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> Index:
        indexes.append(Index(tmp_path, max_bytes=max_bytes, on_change=on_change, monotonic=monotonic))
        indexes[-1].tidy(_nothing_else)
        return indexes[-1]

    yield open_index
    for index in reversed(indexes):
        index.close()


# ---- many rows


async def test_no_more_than_a_thousand_rows_are_evicted_at_once_and_the_oldest_first(opened: Opened) -> None:
    index = opened()
    index.do(_set_many, index, 2500)
    index.close()

    index = opened(max_bytes=500)
    first = await index.run(index.evict)
    assert first == [f"{number:04}" for number in range(1000)]
    assert await index.run(index.evict, "1000") == [f"{number:04}" for number in range(1001, 2001)]
    assert index.weight_bytes == 500
    assert await index.run(index.evict) == []


async def test_foreign_rows_among_thousands_are_found_wherever_they_lie(
    opened: Opened, tmp_path: Path
) -> None:
    index = opened()
    index.do(_set_many, index, 12_000)
    index.close()
    damage = {
        "0000": "mode = 4",
        "4999": "filename = 'precious'",
        "5000": "value = NULL",
        "5001": "size = 'heavy'",
        "9999": "raw = 0",
        "11999": "key = x'30'",
    }
    with _database(tmp_path) as database:
        for key, change in damage.items():
            database.execute(f"UPDATE Cache SET {change} WHERE key = ?", (key,))
        # What was evicted long ago leaves holes in the numbers.
        database.execute("UPDATE Cache SET rowid = rowid + 1000000 WHERE rowid > 7000")

    index = opened()
    await index.settled()

    assert index.refused == len(damage)
    assert index.entries == 12_000 - len(damage)
    with _database(tmp_path) as database:
        keys = {key for (key,) in database.execute("SELECT key FROM Cache")}
    assert not keys & {*damage, b"0"}


async def test_a_foreign_row_is_in_nobodys_way_before_it_is_swept(opened: Opened, tmp_path: Path) -> None:
    index = opened(max_bytes=1000)
    index.do(_set_many, index, 3)
    with _database(tmp_path) as database:
        database.execute("UPDATE Cache SET key = x'80', access_time = 0 WHERE key = '0000'")
        database.execute("UPDATE Cache SET raw = 0, access_time = 0 WHERE key = '0001'")
    index.close()

    index = opened(max_bytes=1)

    assert await index.run(index.get, "0001") is None
    assert await index.run(index.evict) == ["0002"]
    await index.run(index.set, "0001", b"y")
    assert await index.run(index.get, "0001") == b"y"


# ---- what changed


async def test_whoever_asks_is_told_what_changed_after_the_commit(opened: Opened, tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def look(key: str) -> None:
        with _database(tmp_path) as database:
            there = database.execute("SELECT 1 FROM Cache WHERE key = ?", (key,)).fetchone() is not None
        seen.append((key, there))

    index = opened(max_bytes=2, on_change=look)

    def put_three() -> None:
        with index.transaction():
            for key in "abc":
                index.set(key, b"x")
            index.evict(keep="c")
            assert seen == [], "nothing is committed yet"

    await index.run(put_three)
    assert seen == [("a", False), ("b", True), ("c", True), ("a", False)]

    seen.clear()
    await index.run(index.delete, "b")
    assert seen == [("b", False)]

    seen.clear()
    with _database(tmp_path) as database:
        database.execute("UPDATE Cache SET mode = 4 WHERE key = 'c'")
    assert await index.run(index.get, "c") is None
    assert seen == [("c", False)]
    assert index.refused == 1


async def test_a_row_that_is_swept_is_a_change_too(opened: Opened, tmp_path: Path) -> None:
    index = opened()
    index.do(_set_many, index, 2)
    index.close()
    with _database(tmp_path) as database:
        database.execute("UPDATE Cache SET filename = 'precious' WHERE key = '0001'")
    changed: list[str] = []

    index = opened(on_change=changed.append)
    await index.settled()

    assert changed == ["0001"]


async def test_what_was_not_written_after_all_is_told_as_well_for_it_costs_a_look_and_no_more(
    opened: Opened,
) -> None:
    changed: list[str] = []
    index = opened(on_change=changed.append)

    def stumble() -> None:
        with index.transaction():
            index.set("a", b"x")
            raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        await index.run(stumble)

    assert await index.run(index.get, "a") is None
    assert changed == ["a"]


# ---- uses


async def test_a_look_writes_nothing_and_needs_nobodys_leave(opened: Opened, tmp_path: Path) -> None:
    index = opened()
    index.do(_set_many, index, 2)
    with _database(tmp_path) as database:
        database.execute("BEGIN IMMEDIATE")  # whoever writes now waits for ten seconds, and fails

        assert await index.run(index.get, "0000") == b"x"
        await index.run(index.use, "0000")
        assert await index.run(index.get, "0001") == b"x"
        assert await index.run(index.get, "none") is None


async def test_uses_are_written_with_the_next_change_or_after_ten_seconds_or_at_the_end(
    opened: Opened, tmp_path: Path
) -> None:
    now = 0.0
    index = opened(monotonic=lambda: now)
    index.do(_set_many, index, 5)

    def newest_first() -> list[str]:
        with _database(tmp_path) as database:
            return [key for (key,) in database.execute("SELECT key FROM Cache ORDER BY access_time DESC")]

    await index.run(index.use, "0000")
    assert newest_first()[0] == "0004"
    await index.run(index.delete, "0004")
    assert newest_first() == ["0000", "0003", "0002", "0001"]

    await index.run(index.use, "0001")
    now = 9.9
    await index.run(index.use, "0002")
    assert newest_first()[0] == "0000"
    now = 10.0
    await index.run(index.use, "0001")
    assert newest_first()[:2] == ["0001", "0002"]

    await index.run(index.use, "0003")
    index.close()
    assert newest_first()[0] == "0003"


async def test_a_thousand_uses_do_not_wait_for_a_change(opened: Opened, tmp_path: Path) -> None:
    index = opened()
    index.do(_set_many, index, 1001)

    def use_many() -> None:
        for number in range(1000):
            index.use(f"{number:04}")

    await index.run(use_many)

    with _database(tmp_path) as database:
        ((oldest,),) = database.execute("SELECT key FROM Cache ORDER BY access_time LIMIT 1")
    assert oldest == "1000"


# ---- broken files


async def test_a_database_that_turns_out_to_be_broken_is_set_aside_and_work_goes_on(
    opened: Opened, tmp_path: Path
) -> None:
    _break_lookups(opened, tmp_path)
    index = opened()

    assert await index.run(index.get, "0042") is None
    await index.run(index.set, "new", b"y")
    assert await index.run(index.get, "new") == b"y"

    assert (tmp_path / "cache.db.broken").exists()
    assert index.entries == 1


async def test_a_broken_database_that_nobody_has_touched_is_found_when_the_start_looks(
    opened: Opened, tmp_path: Path
) -> None:
    _break_lookups(opened, tmp_path)
    index = opened()

    await index.settled()

    assert (tmp_path / "cache.db.broken").exists()
    assert await index.run(index.get, "0042") is None
    assert index.entries == 0


async def test_after_a_broken_one_was_set_aside_what_a_start_looks_at_is_looked_at_again(
    tmp_path: Path,
) -> None:
    rounds: list[int] = []

    def count() -> Slices:
        rounds.append(1)
        yield

    index = Index(tmp_path, max_bytes=_ROOMY)
    index.do(_set_many, index, 3000)
    index.close()
    _overwrite_root(tmp_path)
    index = Index(tmp_path, max_bytes=_ROOMY)
    try:
        index.tidy(count)
        assert await index.run(index.get, "0042") is None
        await index.settled()
        assert len(rounds) == 2
    finally:
        index.close()


async def test_the_others_go_over_to_the_new_one_with_their_next_work(opened: Opened, tmp_path: Path) -> None:
    _break_lookups(opened, tmp_path)
    one, two = opened(), opened()

    await one.settled()  # one of the two finds it
    await two.run(two.set, "from two", b"2")
    await one.run(one.set, "from one", b"1")

    assert await one.run(one.get, "from two") == b"2"
    assert await two.run(two.get, "from one") == b"1"
    one.close()
    two.close()
    third = opened()
    assert third.entries == 2, "whoever leaves the broken one takes nothing of the new one along"
    assert _files(tmp_path, "*.broken") == ["cache.db.broken"]


async def test_a_database_that_is_removed_by_hand_is_begun_anew(opened: Opened, tmp_path: Path) -> None:
    index = opened()
    index.do(_set_many, index, 3)
    for name in _files(tmp_path, "cache.db*"):
        (tmp_path / name).unlink()

    await index.run(index.set, "new", b"y")

    assert index.entries == 1
    assert await opened().run(index.get, "new") == b"y"


async def test_a_database_that_is_only_full_is_not_set_aside(opened: Opened, tmp_path: Path) -> None:
    index = opened()
    index.do(_set_many, index, 3)

    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(StorageUnavailable, match="full"):
        await index.run(full)

    assert await index.run(index.get, "0001") == b"x"
    assert _files(tmp_path, "*.broken") == []


# ---- several processes


async def test_while_another_process_tidies_whoever_waits_waits_for_it(
    opened: Opened, tmp_path: Path
) -> None:
    others = os.open(tmp_path / "tidying.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(others, fcntl.LOCK_EX)
    index = opened()

    waiting = asyncio.create_task(index.settled())
    for _ in range(100):
        await index.run(index.get, "goes on meanwhile")
    assert not waiting.done()

    os.close(others)
    await waiting


async def test_an_end_does_not_wait_for_another_process_that_tidies(opened: Opened, tmp_path: Path) -> None:
    others = os.open(tmp_path / "tidying.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(others, fcntl.LOCK_EX)
    index = opened()
    waiting = asyncio.create_task(index.settled())
    await asyncio.sleep(0)

    await asyncio.to_thread(index.close)

    await waiting
    os.close(others)


def test_opening_what_is_in_order_writes_nothing(opened: Opened, tmp_path: Path) -> None:
    opened().close()
    before = (tmp_path / "cache.db").stat()

    opened().close()
    after = (tmp_path / "cache.db").stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
        before.st_mtime_ns,
        before.st_size,
        before.st_ino,
    )

    opened(max_bytes=77).close()
    with _database(tmp_path) as database:
        ((limit,),) = database.execute("SELECT value FROM Settings WHERE key = 'size_limit'")
        assert limit == 77
        database.execute("DROP TRIGGER Settings_size_delete")

    opened(max_bytes=77).close()
    with _database(tmp_path) as database:
        assert database.execute("SELECT 1 FROM sqlite_master WHERE name = 'Settings_size_delete'").fetchone()


# ---- words


def _nothing_else() -> Slices:
    yield


def _set_many(index: Index, rows: int) -> None:
    with index.transaction():
        for number in range(rows):
            index.set(f"{number:04}", b"x")


def _break_lookups(opened: Opened, tmp_path: Path) -> None:
    index = opened()
    index.do(_set_many, index, 3000)
    index.close()
    _overwrite_root(tmp_path)


def _overwrite_root(tmp_path: Path) -> None:
    """Damage that is not seen until somebody looks for a key: the first page of the index of keys."""
    with _database(tmp_path) as database:
        ((page,),) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'Cache_key_raw'")
        ((size,),) = database.execute("PRAGMA page_size")
    with (tmp_path / "cache.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def _files(tmp_path: Path, pattern: str) -> list[str]:
    return [path.name for path in tmp_path.glob(pattern)]


class _database:  # noqa: N801 -- reads as a word: with _database(...)
    """The database, as somebody else sees it."""

    def __init__(self, tmp_path: Path) -> None:
        self._closing = closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None))

    def __enter__(self) -> sqlite3.Connection:
        return self._closing.__enter__()

    def __exit__(self, *_: object) -> None:
        self._closing.__exit__()
