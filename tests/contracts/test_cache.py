"""What `gateway/cache/contract.py` promises, sentence by sentence, over each cache; then what a disk promises besides.

Another cache joins the first part with one more entry in `_CACHES`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from gateway.cache.contract import GenerationCache
from gateway.cache.disk import DiskGenerationCache, _encode
from gateway.database.marks import Marks
from gateway.database.nopickle import Index
from gateway.domain.errors import StorageUnavailable
from gateway.domain.generation import Blob, Generation
from gateway.domain.identity import Digest, Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money

_ROOMY = 1 << 26
_PROJECT = Path(__file__).parents[2]

Opened = Callable[..., DiskGenerationCache]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens caches on one directory, as if each were a process of its own or a restart; closes them all."""
    caches: list[DiskGenerationCache] = []

    def open_cache(
        *,
        max_bytes: int = _ROOMY,
        max_remembered: int = 10_000,
        marks: Marks | None = None,
        monotonic: Callable[[], float] = lambda: 0.0,
    ) -> DiskGenerationCache:
        directory = tmp_path / "cache"
        caches.append(
            DiskGenerationCache(
                directory,
                max_bytes=max_bytes,
                max_remembered=max_remembered,
                marks=marks,
                monotonic=monotonic,
            )
        )
        return caches[-1]

    yield open_cache
    for cache in reversed(caches):
        cache.close()


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Marks]:
    with closing(Marks(tmp_path / "marks")) as marks:
        yield marks


_CACHES: dict[str, Callable[[Opened, Marks], GenerationCache]] = {
    "disk": lambda opened, _marks: opened(),
    "disk, memory kept small": lambda opened, _marks: opened(max_remembered=0),
    "disk, memory trusted by its marks": lambda opened, marks: opened(marks=marks),
}


@pytest.fixture(params=_CACHES)
def cache(request: pytest.FixtureRequest, opened: Opened, marks: Marks) -> GenerationCache:
    return _CACHES[request.param](opened, marks)


# ---- every cache


async def test_what_was_put_is_got_in_every_field(cache: GenerationCache) -> None:
    generation = _generation(1)

    await cache.put(generation)

    assert await cache.get(generation.fingerprint) == generation


async def test_what_is_unknown_about_a_generation_stays_unknown(cache: GenerationCache) -> None:
    generation = dataclasses.replace(_generation(1), seconds=None, seed=None, cost=Money.ZERO)

    await cache.put(generation)

    assert await cache.get(generation.fingerprint) == generation


@pytest.mark.parametrize("seed", [0, -1, 2**53, 2**63 - 1])
@pytest.mark.parametrize("micros", [0, 1, 415_999, 10**15])
async def test_numbers_come_back_exactly(cache: GenerationCache, seed: int, micros: int) -> None:
    made_at = 1_795_000_000.123457
    generation = dataclasses.replace(
        _generation(1), seed=seed, cost=Money(micros), made_at=made_at, seconds=0.1
    )

    await cache.put(generation)

    got = await cache.get(generation.fingerprint)
    assert got == generation
    assert got is not None
    assert (type(got.cost.micros), type(got.made_at)) == (int, float)


async def test_what_was_never_put_is_none(cache: GenerationCache) -> None:
    await cache.put(_generation(1))

    assert await cache.get(_fingerprint(2)) is None


async def test_the_last_put_is_what_is_got(cache: GenerationCache) -> None:
    older, newer = _generation(1), dataclasses.replace(_generation(1), ticket=Ticket("newer"))

    await cache.put(older)
    assert await cache.get(older.fingerprint) == older
    await cache.put(newer)

    assert await cache.get(older.fingerprint) == newer


async def test_what_was_forgotten_is_none_may_be_forgotten_again_and_put_again(
    cache: GenerationCache,
) -> None:
    generation = _generation(1)
    await cache.put(generation)

    await cache.forget(generation.fingerprint)
    await cache.forget(generation.fingerprint)
    assert await cache.get(generation.fingerprint) is None

    await cache.put(generation)
    assert await cache.get(generation.fingerprint) == generation


async def test_many_at_once_do_not_mix(cache: GenerationCache) -> None:
    generations = [_generation(number) for number in range(50)]

    await asyncio.gather(*(cache.put(generation) for generation in generations))

    got = await asyncio.gather(*(cache.get(generation.fingerprint) for generation in generations))
    assert got == generations


async def test_a_reader_among_writers_never_goes_back_to_an_older_one(cache: GenerationCache) -> None:
    versions = [dataclasses.replace(_generation(1), made_at=float(number)) for number in range(30)]
    await cache.put(versions[0])

    answers = await asyncio.gather(
        *(work for version in versions[1:] for work in (cache.put(version), cache.get(version.fingerprint)))
    )

    seen = [answer.made_at for answer in answers if answer is not None]
    assert seen == sorted(seen)
    assert await cache.get(_fingerprint(1)) == versions[-1]


async def test_a_put_that_is_cancelled_at_any_step_is_done_or_not_done(cache: GenerationCache) -> None:
    for steps in range(10):
        older, newer = _generation(steps), dataclasses.replace(_generation(steps), ticket=Ticket("newer"))
        await cache.put(older)
        put = asyncio.create_task(cache.put(newer))
        for _ in range(steps):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])

        first = await cache.get(older.fingerprint)
        assert first in (older, newer)
        await cache.put(_generation(99))  # whatever was under way is over
        assert (await cache.get(older.fingerprint)) in (first, newer)


# ---- the disk


async def test_what_was_put_is_there_after_a_restart(opened: Opened) -> None:
    cache = opened()
    await cache.put(_generation(1))
    await cache.put(_generation(2))
    await cache.forget(_fingerprint(2))
    cache.close()

    again = opened()

    assert await again.get(_fingerprint(1)) == _generation(1)
    assert await again.get(_fingerprint(2)) is None
    assert again.statistics().entries == 1


async def test_a_put_that_has_returned_survives_a_kill(opened: Opened, tmp_path: Path) -> None:
    child = _child(tmp_path)
    assert child.stdout is not None
    for _ in range(20):
        acknowledged = int(await asyncio.to_thread(child.stdout.readline))
    child.send_signal(signal.SIGKILL)
    rest = (await asyncio.to_thread(child.communicate))[0].split()
    acknowledged = int(rest[-1]) if rest else acknowledged

    cache = opened()

    assert all([await cache.get(_fingerprint(number)) is not None for number in range(acknowledged + 1)])


async def test_what_is_there_is_found_while_the_disk_takes_nothing_more(opened: Opened) -> None:
    before = opened()
    await before.put(_generation(1))
    before.close()
    cache = opened()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(StorageUnavailable):
            await cache.put(_generation(2))
        found, missing = await cache.get(_fingerprint(1)), await cache.get(_fingerprint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert (found, missing) == (_generation(1), None)
    await cache.put(_generation(2))
    assert await cache.get(_fingerprint(2)) == _generation(2)


async def test_no_commit_is_synced_and_none_can_break_the_file(opened: Opened, tmp_path: Path) -> None:
    """The journal knows what the loss of power takes from here; in WAL, NORMAL loses the last commits and no more."""
    cache = opened()
    await cache.put(_generation(1))

    with _database(tmp_path) as database:
        settings = dict(database.execute("SELECT key, value FROM Settings"))
    assert settings["sqlite_synchronous"] == 1
    assert settings["sqlite_journal_mode"] == "wal"


def _without(member: str) -> Callable[[dict[str, object]], object]:
    return lambda entry: {name: value for name, value in entry.items() if name != member}


_MEMBERS = (
    "version fingerprint model blobs cost_micros purchase ticket made_at seconds seed".split()  # noqa: SIM905 -- a sentence
)
_DAMAGE: dict[str, Callable[[dict[str, object]], object]] = {
    **{f"without its {member}": _without(member) for member in _MEMBERS},
    "cut short": lambda entry: orjson.dumps(entry)[:-1],
    "not JSON": lambda _entry: b"\x80\x04K\x01.",
    "empty": lambda _entry: b"",
    "not an object": lambda _entry: [1],
    "nothing": lambda _entry: b"null",
    "as text": lambda entry: orjson.dumps(entry).decode(),
    "a number": lambda _entry: 1,
    "of an earlier version": lambda entry: {**entry, "version": 1},
    "of a later version": lambda entry: {**entry, "version": 3},
    "with a member too many": lambda entry: {**entry, "prompt": "a cat"},
    "of another fingerprint": lambda entry: {**entry, "fingerprint": "f" * 64},
    "without a blob": lambda entry: {**entry, "blobs": []},
    "with blobs that are none": lambda entry: {**entry, "blobs": {"digest": 1}},
    "with a blob half said": lambda entry: {**entry, "blobs": [["d" * 64, 835_000]]},
    "with a blob whose size is text": lambda entry: {**entry, "blobs": [["d" * 64, "835000", "video/mp4"]]},
    "with a blob whose size is true": lambda entry: {**entry, "blobs": [["d" * 64, True, "video/mp4"]]},
    "with a blob that has no digest": lambda entry: {**entry, "blobs": [[None, 835_000, "video/mp4"]]},
    "with a cost that is a float": lambda entry: {**entry, "cost_micros": 416000.0},
    "with a cost that is true": lambda entry: {**entry, "cost_micros": True},
    "with seconds that are text": lambda entry: {**entry, "seconds": "102.69"},
    "with no time": lambda entry: {**entry, "made_at": None},
    "with a seed that is text": lambda entry: {**entry, "seed": "42"},
    "with a model that is none": lambda entry: {**entry, "model": None},
}


@pytest.mark.parametrize("damage", _DAMAGE)
async def test_an_entry_that_cannot_be_read_is_counted_dropped_and_none(
    opened: Opened, tmp_path: Path, damage: str
) -> None:
    cache = opened()
    await cache.put(_generation(1))
    await cache.put(_generation(2))
    cache.close()
    with _database(tmp_path) as database:
        (entry,) = database.execute("SELECT value FROM Cache WHERE key = ?", (_fingerprint(1),)).fetchone()
        damaged = _DAMAGE[damage](orjson.loads(entry))
        if not isinstance(damaged, (bytes, str, int)):
            damaged = orjson.dumps(damaged)
        database.execute("UPDATE Cache SET value = ? WHERE key = ?", (damaged, _fingerprint(1)))

    again = opened()

    assert await again.get(_fingerprint(1)) is None
    assert again.statistics().unreadable == 1
    assert again.statistics().entries == 1
    assert await again.get(_fingerprint(1)) is None
    assert again.statistics().unreadable == 1
    assert await again.get(_fingerprint(2)) == _generation(2)


@pytest.mark.parametrize("before_the_start", [True, False])
async def test_a_pickled_row_is_refused_counted_and_executes_nothing(
    opened: Opened, tmp_path: Path, before_the_start: bool
) -> None:
    cache = opened(max_remembered=0)
    await cache.put(_generation(1))
    executed = tmp_path / "executed"
    payload = f"cos\nsystem\n(S'touch {executed}'\ntR.".encode()
    (tmp_path / "planted").write_bytes(payload)
    if before_the_start:
        cache.close()
    with _database(tmp_path) as database:
        database.execute("UPDATE Cache SET mode = 4, value = ?", (payload,))
        database.execute(
            "INSERT INTO Cache (key, raw, access_time, size, mode, value) VALUES (?, 0, 0, 0, 1, 1)",
            (payload,),
        )
        database.execute(
            "INSERT INTO Cache (key, raw, access_time, size, mode, filename) VALUES (?, 1, 0, 0, 4, ?)",
            (_fingerprint(2), str(tmp_path / "planted")),
        )

    if before_the_start:
        cache = opened()
    assert await cache.get(_fingerprint(1)) is None
    assert await cache.get(_fingerprint(2)) is None
    await cache.put(_generation(3))
    if before_the_start:
        await cache.settled()

    assert not executed.exists()
    assert cache.statistics().unreadable == (3 if before_the_start else 2)
    assert (tmp_path / "planted").exists(), "a row may not have a file removed either"
    cache.close()
    again = opened()
    await again.settled()
    assert again.statistics().unreadable == (0 if before_the_start else 1)
    assert again.statistics().entries == 1
    assert not executed.exists()


async def test_nothing_is_ever_written_but_plain_rows(opened: Opened, tmp_path: Path) -> None:
    cache = opened()
    await cache.put(
        dataclasses.replace(_generation(1), blobs=_generation(1).blobs * 2000)
    )  # a long entry, too

    with _database(tmp_path) as database:
        rows = database.execute(
            "SELECT typeof(key), raw, mode, filename, typeof(value) FROM Cache"
        ).fetchall()
    assert rows == [("text", 1, 1, None, "blob")]
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {
        "cache.db",
        "cache.db-wal",
        "cache.db-shm",
        "tidying.lock",
    }


async def test_a_database_that_is_none_is_set_aside_and_an_empty_one_begun(
    opened: Opened, tmp_path: Path
) -> None:
    opened().close()
    garbage = os.urandom(40_000)
    (tmp_path / "cache" / "cache.db").write_bytes(garbage)

    cache = opened()

    assert await cache.get(_fingerprint(1)) is None
    await cache.put(_generation(1))
    assert await cache.get(_fingerprint(1)) == _generation(1)
    assert (tmp_path / "cache" / "cache.db.broken").read_bytes() == garbage


async def test_the_limit_holds_and_the_least_recently_used_goes_first(opened: Opened) -> None:
    now = 0.0
    await (cache := opened(monotonic=lambda: now)).put(_generation(0))
    entry_bytes = cache.statistics().bytes_stored
    cache.close()
    cache = opened(max_bytes=5 * entry_bytes, monotonic=lambda: now)
    for number in range(1, 5):
        await cache.put(_generation(number))
    now = 61.0
    assert await cache.get(_fingerprint(1)) is not None

    await cache.put(_generation(5))
    await cache.put(_generation(6))

    assert cache.statistics().entries == 5
    assert cache.statistics().bytes_stored == 5 * entry_bytes
    assert cache.statistics().evicted == 2
    there = [await cache.get(_fingerprint(number)) is not None for number in range(7)]
    assert there == [False, True, False, True, True, True, True]
    cache.close()
    again = opened(max_bytes=3 * entry_bytes)
    await again.settled()
    assert again.statistics().entries == 3


async def test_an_entry_larger_than_the_limit_is_kept_until_the_next(opened: Opened) -> None:
    cache = opened(max_bytes=1, max_remembered=0)

    await cache.put(_generation(1))
    await cache.put(_generation(1))
    assert await cache.get(_fingerprint(1)) == _generation(1)

    await cache.put(_generation(2))
    assert await cache.get(_fingerprint(1)) is None
    assert await cache.get(_fingerprint(2)) == _generation(2)


async def test_memory_holds_no_more_than_it_may_and_the_disk_has_the_rest(opened: Opened) -> None:
    cache = opened(max_remembered=3)
    for number in range(10):
        await cache.put(_generation(number))

    assert len(cache._remembered) == 3
    assert [await cache.get(_fingerprint(number)) for number in range(10)] == [
        _generation(n) for n in range(10)
    ]
    assert len(cache._remembered) == 3


async def test_what_is_in_memory_needs_no_disk(opened: Opened, tmp_path: Path) -> None:
    cache = opened()
    await cache.put(_generation(1))
    with _database(tmp_path) as database:
        database.execute("BEGIN EXCLUSIVE")

        assert await cache.get(_fingerprint(1)) == _generation(1)


async def test_two_caches_on_one_directory_see_each_others_entries(opened: Opened) -> None:
    one, two = opened(), opened()

    await asyncio.gather(*(cache.put(_generation(n)) for n in range(10) for cache in (one, two)))
    await one.put(_generation(11))

    assert await two.get(_fingerprint(11)) == _generation(11)
    await two.forget(_fingerprint(12))
    await one.put(_generation(12))
    assert await two.get(_fingerprint(12)) == _generation(12)


async def test_what_another_process_forgets_or_puts_is_seen_within_a_second(opened: Opened) -> None:
    now = 0.0
    one, two = opened(monotonic=lambda: now), opened(monotonic=lambda: now)
    newer = dataclasses.replace(_generation(2), ticket=Ticket("newer"))
    for number in (1, 2, 3):
        await one.put(_generation(number))
        assert await two.get(_fingerprint(number)) == _generation(number)

    await one.forget(_fingerprint(1))
    await one.put(newer)
    now = 1.0

    assert await two.get(_fingerprint(1)) is None
    assert _fingerprint(1) not in two._remembered
    assert await two.get(_fingerprint(2)) == newer
    assert await two.get(_fingerprint(2)) == newer
    assert await two.get(_fingerprint(3)) == _generation(3)
    assert two.statistics().unreadable == 0


async def test_within_a_second_an_entry_is_looked_for_once_and_looking_is_no_use(
    opened: Opened, tmp_path: Path
) -> None:
    now = 0.0
    cache = opened(monotonic=lambda: now)
    await cache.put(_generation(1))

    async def accessed() -> float:
        await cache.forget(_fingerprint(99))  # whatever was under way is over
        with _database(tmp_path) as database:
            return float(database.execute("SELECT access_time FROM Cache").fetchone()[0])

    now = 1.0
    assert await cache.get(_fingerprint(1)) == _generation(1)
    with _database(tmp_path) as database:
        database.execute("DELETE FROM Cache WHERE key = ?", (_fingerprint(1),))
    now = 1.9
    assert await cache.get(_fingerprint(1)) == _generation(1), "it was looked for 0.9 s ago"
    now = 2.0
    assert await cache.get(_fingerprint(1)) is None

    await cache.put(_generation(1))
    first = await accessed()
    now = 3.5
    assert await cache.get(_fingerprint(1)) == _generation(1)
    assert await accessed() == first, "a look is no write"


async def test_with_marks_what_another_process_forgets_or_puts_is_seen_at_once(
    opened: Opened, marks: Marks, tmp_path: Path
) -> None:
    with closing(Marks(tmp_path / "marks")) as others:
        one, two = opened(marks=marks), opened(marks=others)
        newer = dataclasses.replace(_generation(2), ticket=Ticket("newer"))
        for number in (1, 2, 3):
            await one.put(_generation(number))
            assert await two.get(_fingerprint(number)) == _generation(number)

        await one.forget(_fingerprint(1))
        assert await two.get(_fingerprint(1)) is None
        await one.put(newer)
        assert await two.get(_fingerprint(2)) == newer
        await two.put(_generation(2))
        assert await one.get(_fingerprint(2)) == _generation(2)
        assert await two.get(_fingerprint(3)) == _generation(3)


@pytest.mark.parametrize("trusted_by_marks", [False, True])
async def test_what_is_remembered_and_unchanged_is_got_without_leaving_the_thread(
    opened: Opened, marks: Marks, trusted_by_marks: bool
) -> None:
    now = 0.0
    cache = opened(marks=marks if trusted_by_marks else None, monotonic=lambda: now)
    await cache.put(_generation(1))

    def is_got_at_once() -> bool:
        asked = cache.get(_fingerprint(1))
        try:
            asked.send(None)
        except StopIteration as answered:
            return bool(answered.value == _generation(1))
        asked.close()
        return False

    assert is_got_at_once()
    now = 0.9
    assert is_got_at_once()
    now = 59.9
    assert is_got_at_once() == trusted_by_marks
    now = 60.0
    assert not is_got_at_once(), "once a minute it is looked for all the same"
    assert await cache.get(_fingerprint(1)) == _generation(1)
    now = 60.5
    assert is_got_at_once()
    marks.change(f"entry:{_fingerprint(1)}")
    assert is_got_at_once() != trusted_by_marks
    assert await cache.get(_fingerprint(1)) == _generation(1)
    assert is_got_at_once(), "the look was at this mark"

    cache = opened(marks=marks if trusted_by_marks else None, monotonic=lambda: now)
    assert not is_got_at_once(), "a process that was just started remembers nothing"
    assert await cache.get(_fingerprint(1)) == _generation(1)
    assert is_got_at_once()


async def test_what_a_process_that_died_did_not_mark_is_seen_within_a_minute(
    opened: Opened, marks: Marks, tmp_path: Path
) -> None:
    now = 0.0
    cache = opened(marks=marks, monotonic=lambda: now)
    await cache.put(_generation(1))
    with _database(tmp_path) as database:
        database.execute("DELETE FROM Cache")

    now = 60.0

    assert await cache.get(_fingerprint(1)) is None


async def test_a_change_while_an_entry_is_read_is_not_missed(opened: Opened, tmp_path: Path) -> None:
    """The mark is from before the entry: what changes between the two is seen in the entry or in the mark."""
    newer = dataclasses.replace(_generation(1), ticket=Ticket("newer"))

    class Racing(Marks):
        race: Callable[[], object] | None = None

        def read(self, place: int) -> int:
            race, self.race = self.race, None
            if race is not None:
                race()
            return super().read(place)

    with closing(Marks(tmp_path / "marks")) as marks, closing(Racing(tmp_path / "marks")) as racing:
        two = opened(marks=marks)
        await two.put(_generation(1))
        one = opened(marks=racing)
        racing.race = lambda: two._index.do(two._write, newer, _encode(newer))

        await one.get(_fingerprint(1))

        assert await one.get(_fingerprint(1)) == newer


async def test_another_process_that_puts_between_a_commit_and_its_memory_is_not_forgotten(
    opened: Opened, marks: Marks, tmp_path: Path
) -> None:
    two = opened(marks=marks)
    newer = dataclasses.replace(_generation(1), ticket=Ticket("newer"))

    class Overtaken(DiskGenerationCache):
        def _drop_evicted(self, evicted: list[str]) -> None:  # between the commit and the memory
            super()._drop_evicted(evicted)
            two._index.do(two._write, newer, _encode(newer))

    with closing(Overtaken(tmp_path / "cache", max_bytes=_ROOMY, marks=marks)) as one:
        await one.put(_generation(1))
        assert await one.get(_fingerprint(1)) == newer


_CHANGES: dict[str, Callable[[DiskGenerationCache, Path], Awaitable[object]]] = {
    "put": lambda cache, _: cache.put(_generation(1)),
    "put anew": lambda cache, _: cache.put(dataclasses.replace(_generation(1), ticket=Ticket("newer"))),
    "forgotten": lambda cache, _: cache.forget(_fingerprint(1)),
    "evicted": lambda cache, _: cache.put(dataclasses.replace(_generation(2), model="m" * 10_000)),
    "refused": lambda cache, tmp_path: _spoiled(cache, tmp_path, "mode = 4"),
    "unreadable": lambda cache, tmp_path: _spoiled(cache, tmp_path, "value = x'00'"),
}


async def _spoiled(cache: DiskGenerationCache, tmp_path: Path, change: str) -> None:
    with _database(tmp_path) as database:
        database.execute(f"UPDATE Cache SET {change}")
    assert await cache.get(_fingerprint(1)) is None


@pytest.mark.parametrize("change", _CHANGES)
async def test_whatever_becomes_of_an_entry_changes_its_mark(
    opened: Opened, marks: Marks, tmp_path: Path, change: str
) -> None:
    place = Marks.place(f"entry:{_fingerprint(1)}")
    await (first := opened(marks=marks)).put(_generation(1))
    first.close()
    cache = opened(marks=marks, max_remembered=0, max_bytes=10_100)
    before = marks.read(place)
    assert await cache.get(_fingerprint(1)) is not None
    assert marks.read(place) == before, "a look changes nothing"

    await _CHANGES[change](cache, tmp_path)

    assert marks.read(place) != before


async def test_an_entry_that_is_evicted_or_swept_behind_everybodys_back_changes_its_mark(
    opened: Opened, marks: Marks, tmp_path: Path
) -> None:
    cache = opened(marks=marks)
    for number in (1, 2, 3):
        await cache.put(_generation(number))
    entry_bytes = cache.statistics().bytes_stored // 3
    cache.close()
    with _database(tmp_path) as database:
        database.execute("UPDATE Cache SET mode = 4 WHERE key = ?", (_fingerprint(3),))
    places = [Marks.place(f"entry:{_fingerprint(number)}") for number in (1, 2, 3)]
    before = [marks.read(place) for place in places]

    cache = opened(marks=marks, max_bytes=entry_bytes)
    await cache.settled()

    assert [marks.read(place) != mark for place, mark in zip(places, before, strict=True)] == [
        True,
        False,
        True,
    ]
    assert await cache.get(_fingerprint(2)) == _generation(2)


async def test_an_entry_that_was_replaced_by_one_that_is_none_is_not_answered_from_memory(
    opened: Opened, tmp_path: Path
) -> None:
    now = 0.0
    cache = opened(monotonic=lambda: now)
    await cache.put(_generation(1))
    with _database(tmp_path) as database:
        database.execute("UPDATE Cache SET value = ?", (b"{}",))
    now = 1.0

    assert await cache.get(_fingerprint(1)) is None
    assert cache.statistics().unreadable == 1


async def test_two_processes_on_one_directory_never_answer_wrongly_and_keep_to_the_limit(
    opened: Opened, tmp_path: Path
) -> None:
    probe = opened()
    await probe.put(_generation(99))
    limit = 5 * probe.statistics().bytes_stored
    probe.close()

    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", _RIVAL, str(tmp_path / "cache"), str(limit), seed, cwd=_PROJECT, stdout=-1
        )
        for seed in ("one", "two")
    ]
    told = [(await child.communicate())[0] for child in children]

    assert told == [b"whole\n"] * 2
    cache = opened(max_bytes=limit)
    assert cache.statistics().entries > 0
    assert 0 < cache.statistics().bytes_stored <= limit
    assert cache.statistics().unreadable == 0


async def test_workers_that_start_together_on_a_broken_database_set_it_aside_once(
    opened: Opened, tmp_path: Path
) -> None:
    opened().close()
    garbage = os.urandom(40_000)
    (tmp_path / "cache" / "cache.db").write_bytes(garbage)

    children = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _STARTER,
            str(tmp_path / "cache"),
            str(number),
            cwd=_PROJECT,
            stdin=-1,
            stdout=-1,
        )
        for number in range(6)
    ]
    for child in children:
        assert child.stdout is not None
        assert await child.stdout.readline() == b"ready\n"
    told = [out for out, _ in await asyncio.gather(*(child.communicate(b"go\n") for child in children))]

    assert told == [b"done\n"] * 6
    cache = opened()
    assert (tmp_path / "cache" / "cache.db.broken").read_bytes() == garbage
    assert all([await cache.get(_fingerprint(number)) is not None for number in range(6)])


def test_a_database_is_opened_by_one_at_a_time(tmp_path: Path) -> None:
    others_had_to_wait: list[bool] = []

    class Watched(Index):
        def _open_alone(self) -> None:
            descriptor = os.open(tmp_path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                others_had_to_wait.append(True)
            finally:
                os.close(descriptor)
            super()._open_alone()

    Watched(tmp_path, max_bytes=_ROOMY).close()
    Watched(tmp_path, max_bytes=_ROOMY).close()

    assert others_had_to_wait == [True, True]


async def test_a_disk_that_does_not_take_an_entry_is_unavailable_and_what_was_known_stays(
    opened: Opened, tmp_path: Path
) -> None:
    cache = opened()
    older, newer = _generation(1), dataclasses.replace(_generation(1), ticket=Ticket("newer"))
    await cache.put(older)
    with _database(tmp_path) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON Cache BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
        with pytest.raises(StorageUnavailable, match="database or disk is full") as raised:
            await cache.put(newer)
        assert str(tmp_path) not in str(raised.value)
        assert await cache.get(older.fingerprint) == older
        database.execute("DROP TRIGGER full")

    await cache.put(newer)
    assert await cache.get(older.fingerprint) == newer


# ---- words


def _fingerprint(number: int) -> Fingerprint:
    return Fingerprint(f"{number:064x}")


def _generation(number: int) -> Generation:
    return Generation(
        fingerprint=_fingerprint(number),
        model="ltx-2-19b-t2v",
        blobs=(Blob(Digest("d" * 64), 835_000, "video/mp4"), Blob(Digest("e" * 64), 12, "image/png")),
        cost=Money(416_000),
        purchase=PurchaseId("purchase"),
        ticket=Ticket("ticket, “quoted”"),
        made_at=1_795_000_000.5,
        seconds=102.69,
        seed=42,
    )


class _database:  # noqa: N801 -- reads as a word: with _database(...)
    """The database, as somebody else sees it."""

    def __init__(self, tmp_path: Path) -> None:
        self._closing = closing(sqlite3.connect(tmp_path / "cache" / "cache.db", isolation_level=None))

    def __enter__(self) -> sqlite3.Connection:
        return self._closing.__enter__()

    def __exit__(self, *_: object) -> None:
        self._closing.__exit__()


_CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.cache.disk import DiskGenerationCache
from gateway.domain.generation import Blob, Generation
from gateway.domain.money import Money

async def main():
    cache = DiskGenerationCache(Path(sys.argv[1]), max_bytes=1 << 26)
    for number in range(1_000_000):
        blob = Blob("d" * 64, 1, "video/mp4")
        await cache.put(Generation(f"{number:064x}", "m", (blob,), Money(1), "p", "t", 1.0))
        print(number, flush=True)

asyncio.run(main())
"""


# A worker among others: puts, gets and forgets a few generations, and looks at whatever it is answered.
_RIVAL = """
import asyncio, random, sys
from pathlib import Path
from gateway.cache.disk import DiskGenerationCache
from gateway.domain.generation import Blob, Generation
from gateway.domain.money import Money

def generation(number, version):
    blob = Blob(f"{number:x}" * 64, 835_000 + version, "video/mp4")
    return Generation(f"{number:064x}", f"model {number}", (blob,), Money(number), f"{version}", f"{number}", 1.0)

async def main(directory, limit, seed):
    choose = random.Random(seed)
    now = 0.0
    cache = DiskGenerationCache(directory, max_bytes=limit, monotonic=lambda: now)
    for round in range(300):
        now += choose.choice((0, 0.5, 1, 61))
        number = choose.randrange(10)
        match choose.randrange(10):
            case 0:
                await cache.forget(f"{number:064x}")
            case 1 | 2 | 3 | 4:
                await cache.put(generation(number, choose.randrange(3)))
                assert cache.statistics().bytes_stored <= limit
            case _:
                got = await cache.get(f"{number:064x}")
                assert got in (None, *(generation(number, version) for version in range(3))), got
    assert cache.statistics().unreadable == 0
    cache.close()
    print("whole")

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""

_STARTER = """
import asyncio, sys
from pathlib import Path
from gateway.cache.disk import DiskGenerationCache
from gateway.domain.generation import Blob, Generation
from gateway.domain.money import Money

print("ready", flush=True)
sys.stdin.readline()
cache = DiskGenerationCache(Path(sys.argv[1]), max_bytes=1 << 26)
blob = Blob("d" * 64, 1, "video/mp4")
asyncio.run(cache.put(Generation(f"{int(sys.argv[2]):064x}", "m", (blob,), Money(1), "p", "t", 1.0)))
cache.close()
print("done")
"""


def _child(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that puts one entry after the other, and says which it has put."""
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path / "cache")],
        cwd=_PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
