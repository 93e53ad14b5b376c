"""What `gateway/blobs/contract.py` promises, sentence by sentence, over each store; then what a disk promises besides.

Another store joins the first part with one more entry in `_STORES`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.blobs.contract import BlobStore, LocalFile
from gateway.blobs.disk import DiskBlobStore
from gateway.blobs.staging import Staged
from gateway.database.marks import Marks
from gateway.domain.errors import ResultBroken, StorageUnavailable
from gateway.domain.generation import Artifact, Blob
from gateway.domain.identity import Digest

_ROOMY = 1 << 30
_PROJECT = Path(__file__).parents[2]

Opened = Callable[..., DiskBlobStore]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens stores on one directory, as if each were a process of its own or a restart; closes them all."""
    stores: list[DiskBlobStore] = []

    def open_store(*, max_bytes: int = _ROOMY, **settings: object) -> DiskBlobStore:
        stores.append(DiskBlobStore(tmp_path / "blobs", max_bytes=max_bytes, **settings))  # type: ignore[arg-type]  # as named
        return stores[-1]

    yield open_store
    for store in reversed(stores):
        store.close()


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Marks]:
    with closing(Marks(tmp_path / "marks")) as marks:
        yield marks


_STORES: dict[str, Callable[[Opened], BlobStore]] = {"disk": lambda opened: opened()}


@pytest.fixture(params=_STORES)
def store(request: pytest.FixtureRequest, opened: Opened) -> BlobStore:
    return _STORES[request.param](opened)


# ---- every store


async def test_what_was_put_is_located_byte_for_byte(store: BlobStore) -> None:
    content = os.urandom(3_000_000)

    blob = await store.put(_artifact(content, chunk_bytes=65_536), _no_objection)

    assert blob == Blob(_digest(content), len(content), "video/mp4")
    assert await _content(store, blob.digest) == content


async def test_what_was_never_put_is_not_there(store: BlobStore) -> None:
    assert await store.locate(_digest(b"never")) is None


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "/" + "a" * 63]
)
async def test_what_is_no_digest_names_nothing(store: BlobStore, name: str) -> None:
    await store.delete(Digest(name))

    assert await store.locate(Digest(name)) is None


async def test_a_blob_may_come_without_an_announced_length(store: BlobStore) -> None:
    blob = await store.put(_artifact(b"unannounced", announced=None), _no_objection)

    assert await _content(store, blob.digest) == b"unannounced"


async def test_the_same_bytes_may_be_put_again(store: BlobStore) -> None:
    first = await store.put(_artifact(b"twice"), _no_objection)
    second = await store.put(_artifact(b"twice", media_type="text/plain"), _no_objection)

    assert first.digest == second.digest
    assert second.media_type == "text/plain"
    assert await _content(store, first.digest) == b"twice"


async def test_the_same_bytes_may_be_put_by_many_at_once(store: BlobStore) -> None:
    content = os.urandom(200_000)

    blobs = await asyncio.gather(*(store.put(_artifact(content), _no_objection) for _ in range(20)))

    assert {blob.digest for blob in blobs} == {_digest(content)}
    assert await _content(store, _digest(content)) == content


async def test_different_blobs_put_at_once_do_not_mix(store: BlobStore) -> None:
    contents = [os.urandom(100_000 + number) for number in range(20)]

    await asyncio.gather(
        *(store.put(_artifact(content, chunk_bytes=7_000), _no_objection) for content in contents)
    )

    assert [await _content(store, _digest(content)) for content in contents] == contents


async def test_inspection_sees_the_whole_staged_file_and_its_media_type_off_the_event_loop(
    store: BlobStore,
) -> None:
    seen: list[tuple[bytes, str, bool]] = []

    def inspect(path: Path, media_type: str) -> None:
        seen.append((path.read_bytes(), media_type, threading.current_thread() is threading.main_thread()))

    await store.put(_artifact(b"look at me", media_type="image/png"), inspect)

    assert seen == [(b"look at me", "image/png", False)]


async def test_nothing_is_located_before_it_was_inspected(store: BlobStore) -> None:
    located: list[LocalFile | None] = []
    loop = asyncio.get_running_loop()

    def inspect(_path: Path, _media_type: str) -> None:
        located.append(asyncio.run_coroutine_threadsafe(store.locate(_digest(b"not yet")), loop).result())

    await store.put(_artifact(b"not yet"), inspect)

    assert located == [None]


@pytest.mark.parametrize(
    "said", [ResultBroken("This is not a video."), RuntimeError("a fault in the inspection")]
)
async def test_what_inspection_raises_passes_and_is_never_located(store: BlobStore, said: Exception) -> None:
    def refuse(_path: Path, _media_type: str) -> None:
        raise said

    with pytest.raises(type(said)) as raised:
        await store.put(_artifact(b"<html>"), refuse)

    assert raised.value is said
    assert await store.locate(_digest(b"<html>")) is None


@pytest.mark.parametrize(
    ("announced", "said"), [(11, "Less came than was announced: 10 of 11 bytes"), (9, "More came")]
)
async def test_another_length_than_announced_is_broken(store: BlobStore, announced: int, said: str) -> None:
    with pytest.raises(ResultBroken, match=said):
        await store.put(_artifact(b"ten bytes.", announced=announced), _no_objection)

    assert await store.locate(_digest(b"ten bytes.")) is None
    assert await store.locate(_digest(b"ten bytes.[:9]")) is None


async def test_more_than_was_announced_is_not_read_to_its_end(store: BlobStore) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b"x" * 1000

    with pytest.raises(ResultBroken):
        await store.put(Artifact("video/mp4", endless(), size_bytes=5000), _no_objection)

    assert read == 6000


@pytest.mark.parametrize(
    "error", [TimeoutError("mine"), ConnectionResetError("mine"), OSError(28, "mine"), KeyError("k")]
)
async def test_the_readers_own_errors_stay_its_own(store: BlobStore, error: Exception) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(type(error)) as raised:
        await store.put(Artifact("video/mp4", breaking()), _no_objection)

    assert raised.value is error
    assert await store.locate(_digest(b"half")) is None


async def test_a_put_that_is_cancelled_half_way_leaves_nothing(store: BlobStore) -> None:
    half_way, for_ever = asyncio.Event(), asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"h" * 3_000_000
        half_way.set()
        await for_ever.wait()

    put = asyncio.create_task(store.put(Artifact("video/mp4", stalling()), _no_objection))
    await half_way.wait()
    put.cancel()

    with pytest.raises(asyncio.CancelledError):
        await put
    assert await store.locate(_digest(b"h" * 3_000_000)) is None


async def test_a_put_that_is_cancelled_at_any_step_leaves_the_blob_whole_or_absent(store: BlobStore) -> None:
    for steps in range(40):
        content = b"step %d" % steps * 1000
        put = asyncio.create_task(store.put(_artifact(content, chunk_bytes=3000), _no_objection))
        for _ in range(steps):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])

        assert await _content(store, _digest(content)) in (None, content)


async def test_a_deleted_blob_is_not_there_and_may_be_deleted_again_and_put_again(store: BlobStore) -> None:
    blob = await store.put(_artifact(b"gone"), _no_objection)

    await store.delete(blob.digest)
    await store.delete(blob.digest)
    assert await store.locate(blob.digest) is None

    await store.put(_artifact(b"gone"), _no_objection)
    assert await _content(store, blob.digest) == b"gone"


async def test_a_blob_can_be_read_to_its_end_after_it_was_deleted(store: BlobStore) -> None:
    blob = await store.put(_artifact(b"still being served"), _no_objection)
    located = await store.locate(blob.digest)
    assert located is not None

    with located.path.open("rb") as file:
        await store.delete(blob.digest)
        assert file.read() == b"still being served"


# ---- the disk: damage


def _corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _replace_by_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("damage", [_corrupt, _truncate, _replace_by_a_link])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_damaged_blob_is_never_located_again_is_counted_once_and_put_aside(
    opened: Opened, tmp_path: Path, damage: Callable[[Path], object], restarted: bool
) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"sound" * 1000), _no_objection)).digest
    path = (await _located(store, digest)).path

    damage(path)
    looking = opened() if restarted else store

    assert await asyncio.gather(*(looking.locate(digest) for _ in range(5))) == [None] * 5
    assert await looking.locate(digest) is None
    assert looking.statistics().corrupted == 1
    assert looking.statistics().missing == 0
    assert looking.statistics().entries == 0
    assert looking.statistics().bytes_stored == 0
    assert (tmp_path / "blobs" / "quarantine" / digest).exists()
    assert not path.exists()


async def test_damage_is_seen_however_soon_after_the_put_and_the_look_it_comes(opened: Opened) -> None:
    store = opened()
    for number in range(50):
        content = b"%d" % number * 1000
        path = (await _located(store, (await store.put(_artifact(content), _no_objection)).digest)).path
        await store.locate(_digest(content))

        _corrupt(path)  # as long as before, and within the same tick of the file system's clock

        assert await store.locate(_digest(content)) is None


async def test_damage_is_seen_when_the_time_of_change_was_set_back(opened: Opened) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"sound" * 1000), _no_objection)).digest
    path = (await _located(store, digest)).path
    await _remembered(store, digest)
    before = path.stat()

    _corrupt(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert await store.locate(digest) is None


async def test_a_second_look_opens_no_file(tmp_path: Path) -> None:
    child = _child(
        tmp_path,
        """
        opened = []

        def audit(event, arguments):
            if event == "open":
                opened.append(str(arguments[0]))

        async def main():
            made = (await store.put(artifact(b"looked at twice"), no_objection)).digest
            while made not in store._verified:
                path = (await store.locate(made)).path
            sys.addaudithook(audit)
            await store.locate(made)
            print(opened)
            path.touch()
            await store.locate(made)
            print(opened == [str(path)])
        """,
    )

    assert (await asyncio.to_thread(child.communicate))[0].splitlines() == ["[]", "True"]


async def test_putting_the_bytes_again_repairs_a_damaged_copy(opened: Opened) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"sound" * 1000), _no_objection)).digest
    _corrupt((await _located(store, digest)).path)

    await store.put(_artifact(b"sound" * 1000), _no_objection)

    assert await _content(store, digest) == b"sound" * 1000
    assert store.statistics().corrupted == 0


async def test_a_removed_file_is_a_miss_is_counted_once_and_leaves_the_index(opened: Opened) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"here today"), _no_objection)).digest
    (await _located(store, digest)).path.unlink()

    assert await store.locate(digest) is None
    assert await store.locate(digest) is None
    assert await store.locate(_digest(b"never there")) is None
    assert store.statistics().missing == 1
    assert store.statistics().entries == 0


async def test_a_file_that_is_gone_at_the_start_is_counted_and_leaves_the_index(opened: Opened) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"here today"), _no_objection)).digest
    (await _located(store, digest)).path.unlink()

    again = opened()
    await again.settled()
    assert again.statistics().missing == 1
    assert again.statistics().entries == 0


async def test_evidence_is_kept_and_bounded(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    for number in range(12):
        digest = (await store.put(_artifact(b"%d" % number * 1000), _no_objection)).digest
        _corrupt((await _located(store, digest)).path)
        assert await store.locate(digest) is None

    kept = list((tmp_path / "blobs" / "quarantine").iterdir())
    assert len(kept) == 8
    assert digest in {path.name for path in kept}

    store = opened(quarantine_max_bytes=1500)
    digest = (await store.put(_artifact(b"last" * 1000), _no_objection)).digest
    _corrupt((await _located(store, digest)).path)
    assert await store.locate(digest) is None
    assert [path.name for path in (tmp_path / "blobs" / "quarantine").iterdir()] == [digest]


async def test_what_inspection_refused_is_put_aside_with_the_reason_and_counted(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened()
    content = b"paid for, and broken" * 1000

    with pytest.raises(ResultBroken):
        await store.put(_artifact(content), _objection)

    kept = tmp_path / "blobs" / "quarantine" / f"broken-{_digest(content)}"
    assert kept.read_bytes() == content
    evidence = json.loads(kept.with_suffix(".json").read_bytes())
    received = datetime.fromisoformat(evidence.pop("received_at"))
    assert evidence == {
        "reason": "This is not a whole video/mp4.",
        "media_type": "video/mp4",
        "size_bytes": len(content),
        "sha256": _digest(content),
    }
    assert received == datetime.fromtimestamp(int(kept.stat().st_mtime), UTC)
    assert sorted(_files(tmp_path)) == [kept, kept.with_suffix(".json")]
    assert store.statistics().broken == 1
    assert store.statistics().corrupted == store.statistics().entries == 0
    assert opened().statistics().entries == 0


async def test_the_same_broken_bytes_are_kept_once_and_counted_each_time(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened()
    for _ in range(3):
        with pytest.raises(ResultBroken):
            await store.put(_artifact(b"again"), _objection)

    assert len(_files(tmp_path)) == 2
    assert store.statistics().broken == 3

    blob = await store.put(_artifact(b"again"), _no_objection)
    assert await _content(store, blob.digest) == b"again"


async def test_evidence_of_broken_results_is_bounded_and_never_half(opened: Opened, tmp_path: Path) -> None:
    quarantine = tmp_path / "blobs" / "quarantine"
    store = opened()
    for number in range(12):
        with pytest.raises(ResultBroken):
            await store.put(_artifact(b"%d" % number * 1000), _objection)

    files = {path.name for path in quarantine.iterdir()}
    media = {name for name in files if not name.endswith(".json")}
    assert len(media) == 8
    assert files == media | {f"{name}.json" for name in media}
    assert f"broken-{_digest(b'11' * 1000)}" in media

    next(path for path in quarantine.iterdir() if path.name in media).unlink()  # by hand
    small = opened(quarantine_max_bytes=1500)
    with pytest.raises(ResultBroken):
        await small.put(_artifact(b"last" * 1000), _objection)
    last = f"broken-{_digest(b'last' * 1000)}"
    assert {path.name for path in quarantine.iterdir()} == {last, f"{last}.json"}


async def test_a_put_that_breaks_in_any_other_way_leaves_no_evidence(opened: Opened, tmp_path: Path) -> None:
    store = opened()

    def stumble(_path: Path, _media_type: str) -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError):
        await store.put(_artifact(b"stumbled"), stumble)
    for announced in (3, 30):
        with pytest.raises(ResultBroken):
            await store.put(_artifact(b"of another length", announced=announced), _objection)

    assert _files(tmp_path) == []
    assert store.statistics().broken == 0


async def test_a_put_that_is_cancelled_while_its_evidence_is_kept_leaves_it_whole_or_nothing(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened()
    for steps in range(40):
        put = asyncio.create_task(store.put(_artifact(b"step %d" % steps), _objection))
        for _ in range(steps):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])

        media = [path for path in _files(tmp_path) if path.suffix != ".json"]
        assert all(path.parent.name == "quarantine" for path in media)
        assert len(_files(tmp_path)) == 2 * len(media)


async def test_where_evidence_cannot_be_kept_the_reason_is_told_all_the_same(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened()
    shutil.rmtree(tmp_path / "blobs" / "quarantine")

    with pytest.raises(ResultBroken, match="not a whole"):
        await store.put(_artifact(b"broken"), _objection)

    assert _files(tmp_path) == []
    assert store.statistics().broken == 1


async def test_what_is_opened_can_be_read_whatever_happens_to_it_then(store: BlobStore) -> None:
    digest = (await store.put(_artifact(b"read me"), _no_objection)).digest

    opened_file = await store.open(digest)
    await store.delete(digest)

    assert opened_file is not None
    with opened_file.handle as handle:
        assert (handle.read(), opened_file.size_bytes) == (b"read me", 7)
    assert await store.open(digest) is None
    assert await store.open(Digest("../../etc/passwd")) is None


# ---- the disk: limit, eviction, accounts


async def test_the_limit_holds_after_every_put_and_the_least_recently_used_goes_first(
    opened: Opened, tmp_path: Path
) -> None:
    now = 0.0
    store = opened(max_bytes=50_000, monotonic=lambda: now)
    digests = [(await store.put(_artifact(b"%d" % n * 10_000), _no_objection)).digest for n in range(5)]
    assert store.statistics().evicted == 0
    now = 61.0
    await store.locate(digests[0])

    digests.append((await store.put(_artifact(b"x" * 15_000), _no_objection)).digest)

    assert _bytes_on_disk(tmp_path) == store.statistics().bytes_stored == 45_000
    assert store.statistics().evicted == 2
    there = [await store.locate(digest) is not None for digest in digests]
    assert there == [True, False, False, True, True, True]
    assert store.statistics().missing == 0


async def test_one_large_blob_evicts_no_more_than_it_needs(opened: Opened) -> None:
    store = opened(max_bytes=100_000)
    for number in range(10):
        await store.put(_artifact(b"%d" % number * 10_000), _no_objection)

    await store.put(_artifact(b"y" * 25_000), _no_objection)

    assert store.statistics().evicted == 3
    assert store.statistics().bytes_stored == 95_000


async def test_a_blob_larger_than_the_limit_is_kept_because_it_was_paid_for(opened: Opened) -> None:
    store = opened(max_bytes=1000)
    await store.put(_artifact(b"small"), _no_objection)

    large = await store.put(_artifact(b"large" * 1000), _no_objection)

    assert await _content(store, large.digest) == b"large" * 1000
    assert store.statistics().entries == 1

    await store.put(_artifact(b"large" * 1000), _no_objection)
    assert await _content(store, large.digest) == b"large" * 1000

    small = await store.put(_artifact(b"small"), _no_objection)
    assert await _content(store, small.digest) == b"small"
    assert await store.locate(large.digest) is None


async def test_a_blob_is_not_its_own_puts_victim_when_the_clock_was_set_back(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened(max_bytes=25_000)
    for number in range(2):
        await store.put(_artifact(b"%d" % number * 10_000), _no_objection)
    with _index(tmp_path) as index:  # as rows look that were used while the clock was a day ahead
        index.execute("UPDATE Cache SET access_time = access_time + 86400")

    blob = await store.put(_artifact(b"z" * 10_000), _no_objection)

    assert await _content(store, blob.digest) == b"z" * 10_000
    assert store.statistics().evicted == 1


async def test_uses_within_a_minute_are_written_once(tmp_path: Path) -> None:
    now = 0.0
    store = DiskBlobStore(tmp_path / "blobs", max_bytes=_ROOMY, monotonic=lambda: now)
    digest = (await store.put(_artifact(b"hot"), _no_objection)).digest

    async def accessed() -> float:
        await store.delete(_digest(b"what waits before this is done"))
        with _index(tmp_path) as index:
            return float(index.execute("SELECT access_time FROM Cache").fetchone()[0])

    first = await accessed()
    now = 59.0
    await store.locate(digest)
    assert await accessed() == first
    now = 61.0
    await store.locate(digest)
    assert await accessed() > first
    store.close()


async def test_accounts_are_the_same_after_a_restart(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    for number in range(5):
        await store.put(_artifact(b"%d" % number * 1000), _no_objection)
    await store.put(_artifact(b"0" * 1000), _no_objection)
    await store.delete(_digest(b"1" * 1000))
    store.close()

    again = opened()

    assert (again.statistics().entries, again.statistics().bytes_stored) == (4, 4000)
    assert _bytes_on_disk(tmp_path) == 4000
    assert again.statistics().missing == again.statistics().corrupted == 0


async def test_a_lower_limit_is_kept_to_from_the_start(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    for number in range(5):
        await store.put(_artifact(b"%d" % number * 1000), _no_objection)
    store.close()

    again = opened(max_bytes=2500)
    await again.settled()
    assert again.statistics().bytes_stored == _bytes_on_disk(tmp_path) == 2000


# ---- the disk: marks


_FATES: dict[str, Callable[[DiskBlobStore, Digest, Path], Awaitable[object]]] = {
    "put again": lambda store, *_: store.put(_artifact(b"marked" * 1000), _no_objection),
    "deleted": lambda store, digest, _: store.delete(digest),
    "evicted": lambda store, *_: store.put(_artifact(b"x" * 9000), _no_objection),
    "put aside": lambda store, digest, path: _found_wanting(store, digest, _corrupt, path),
    "found to be gone": lambda store, digest, path: _found_wanting(store, digest, Path.unlink, path),
}


async def _found_wanting(
    store: DiskBlobStore, digest: Digest, damage: Callable[[Path], object], path: Path
) -> None:
    damage(path)
    assert await store.locate(digest) is None


@pytest.mark.parametrize("fate", _FATES)
async def test_whatever_becomes_of_a_blobs_file_changes_its_mark(
    opened: Opened, marks: Marks, fate: str
) -> None:
    store = opened(max_bytes=10_000, marks=marks)
    digest = (await store.put(_artifact(b"marked" * 1000), _no_objection)).digest
    path = (await _located(store, digest)).path
    before = marks.read(Marks.place(f"blob:{digest}"))

    await store.locate(digest)
    await store.put(_artifact(b"another"), _no_objection)
    assert marks.read(Marks.place(f"blob:{digest}")) == before, (
        "a look changes nothing, nor does another blob"
    )
    await _FATES[fate](store, digest, path)

    assert marks.read(Marks.place(f"blob:{digest}")) != before


async def test_a_put_that_fails_after_its_file_had_its_name_changes_the_mark_too(
    opened: Opened, marks: Marks, tmp_path: Path
) -> None:
    store = opened(marks=marks)
    await store.put(_artifact(b"before"), _no_objection)
    digest = _digest(b"in vain")
    before = marks.read(Marks.place(f"blob:{digest}"))
    with _index(tmp_path) as index:
        index.execute(
            "CREATE TRIGGER full BEFORE INSERT ON Cache BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )

    with pytest.raises(StorageUnavailable):
        await store.put(_artifact(b"in vain"), _no_objection)

    assert marks.read(Marks.place(f"blob:{digest}")) != before
    assert await store.locate(digest) is None


async def test_what_goes_behind_everybodys_back_changes_its_mark(opened: Opened, marks: Marks) -> None:
    store = opened(marks=marks)
    digests = [(await store.put(_artifact(b"%d" % n * 1000), _no_objection)).digest for n in range(4)]
    (await _located(store, digests[3])).path.unlink()
    store.close()
    places = [Marks.place(f"blob:{digest}") for digest in digests]
    before = [marks.read(place) for place in places]

    store = opened(max_bytes=2000, marks=marks)
    await store.settled()

    changed = [marks.read(place) != mark for place, mark in zip(places, before, strict=True)]
    assert changed == [True, False, False, True], "the first was evicted, the last was gone"


# ---- the disk: the index


@pytest.mark.parametrize("loss", ["removed", "garbage"])
async def test_an_index_that_is_lost_is_made_again_from_the_files(
    opened: Opened, tmp_path: Path, loss: str
) -> None:
    store = opened()
    digests = [(await store.put(_artifact(b"%d" % n * 1000), _no_objection)).digest for n in range(3)]
    store.close()
    if loss == "removed":
        shutil.rmtree(tmp_path / "blobs" / "index")
    else:
        (tmp_path / "blobs" / "index" / "cache.db").write_bytes(os.urandom(40_000))

    again = opened(max_bytes=2000)
    assert await again.locate(digests[2]) is not None, "a file is found whatever the index knows"
    await again.settled()

    assert again.statistics().entries == 2
    assert [await again.locate(digest) is not None for digest in digests] == [False, True, True]


async def test_what_is_taken_in_again_goes_by_its_age(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    digests = [(await store.put(_artifact(b"%02d" % n * 500), _no_objection)).digest for n in range(20)]
    order = [*digests[1::2], *digests[::2]]
    for age, digest in enumerate(order):
        os.utime((await _located(store, digest)).path, (age, age))
    store.close()
    shutil.rmtree(tmp_path / "blobs" / "index")

    store = opened(max_bytes=8000)
    await store.settled()

    assert [await store.locate(digest) is not None for digest in order] == [False] * 12 + [True] * 8


async def test_thousands_of_files_are_brought_in_and_thousands_of_rows_taken_out(
    opened: Opened, tmp_path: Path
) -> None:
    store = opened()
    await store.put(_artifact(b"first"), _no_objection)
    store.close()
    unknown = [_digest(b"unknown %d" % number) for number in range(2000)]
    for digest in unknown:
        path = tmp_path / "blobs" / "sha256" / digest[:2] / digest
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "blobs" / "sha256" / "ab").mkdir(exist_ok=True)
    (tmp_path / "blobs" / "sha256" / "ab" / "README").write_text("not a blob")
    (tmp_path / "blobs" / "sha256" / "notes.txt").write_text("not a folder")
    misplaced = tmp_path / "blobs" / "sha256" / "ab" / ("cd" * 32)
    misplaced.write_bytes(b"where nobody looks for it")
    with _index(tmp_path) as index:
        index.executemany(
            "INSERT INTO Cache (key, raw, store_time, access_time, size, mode, value) VALUES (?, 1, 0, 0, 1, 1, 1)",
            [(_digest(b"gone %d" % number),) for number in range(2000)],
        )

    store = opened()
    await store.settled()

    assert store.statistics().missing == 2000
    assert store.statistics().entries == 2001
    assert store.statistics().bytes_stored == 2005
    assert misplaced.exists()


async def test_blobs_that_come_and_go_while_files_and_index_are_compared_stay_right(opened: Opened) -> None:
    busy, comparing = opened(), opened()
    for number in range(100):
        await busy.put(_artifact(b"%d" % number), _no_objection)

    settled = asyncio.create_task(comparing.settled())
    for number in range(100):
        await busy.delete(_digest(b"%d" % number))
        await busy.put(_artifact(b"%d" % (number + 100)), _no_objection)
    await settled

    await busy.delete(_digest(b"what waits before this is done"))
    assert busy.statistics().entries == 100
    assert comparing.statistics().missing == busy.statistics().missing == 0
    assert all([await comparing.locate(_digest(b"%d" % number)) for number in range(100, 200)])


@pytest.mark.parametrize("before_the_start", [True, False])
async def test_a_pickled_row_is_refused_counted_and_executes_nothing(
    opened: Opened, tmp_path: Path, before_the_start: bool
) -> None:
    now = 0.0
    store = opened(monotonic=lambda: now)
    digest = (await store.put(_artifact(b"innocent"), _no_objection)).digest
    now = 61.0  # from here on its row is looked at when it is used
    executed = tmp_path / "executed"
    payload = f"cos\nsystem\n(S'touch {executed}'\ntR.".encode()
    if before_the_start:
        store.close()
    with _index(tmp_path) as index:
        index.execute("UPDATE Cache SET mode = 4, value = ?", (payload,))
        if before_the_start:
            index.execute(
                "INSERT INTO Cache (key, raw, access_time, size, mode, value) VALUES (?, 0, 0, 0, 1, 1)",
                (payload,),
            )

    if before_the_start:
        store = opened()
        await store.settled()
    assert await _content(store, digest) == b"innocent"
    await store.put(_artifact(b"other"), _no_objection)
    await store.delete(_digest(b"what waits before this is done"))

    assert not executed.exists()
    assert store.statistics().refused_rows == (2 if before_the_start else 1)


async def test_a_row_that_names_a_file_removes_none(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"innocent"), _no_objection)).digest
    precious = tmp_path / "precious"
    precious.write_text("not ours")
    with _index(tmp_path) as index:
        index.execute("UPDATE Cache SET mode = 2, filename = ?", (str(precious),))

    await store.locate(digest)
    await store.delete(digest)

    assert precious.read_text() == "not ours"


# ---- the disk: crashes, other processes, full disks


async def test_a_put_that_fails_or_is_cancelled_leaves_no_file(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    half_way = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield b"h" * 3_000_000
        half_way.set()
        await asyncio.Event().wait()

    def refuse(_path: Path, _media_type: str) -> None:
        raise RuntimeError("no")

    put = asyncio.create_task(store.put(Artifact("video/mp4", stalling()), _no_objection))
    await half_way.wait()
    assert len(_files(tmp_path)) == 1
    put.cancel()
    await asyncio.wait([put])
    assert _files(tmp_path) == []

    with pytest.raises(RuntimeError):
        await store.put(_artifact(b"x"), refuse)
    with pytest.raises(ResultBroken):
        await store.put(_artifact(b"x", announced=2), _no_objection)
    for steps in range(40):
        put = asyncio.create_task(store.put(_artifact(b"step"), _no_objection))
        for _ in range(steps):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
        assert [path for path in _files(tmp_path) if path.name != _digest(b"step")] == []


async def test_a_kill_between_writing_and_renaming_leaves_no_blob_and_the_next_start_clears_up(
    opened: Opened, tmp_path: Path
) -> None:
    child = _child(
        tmp_path,
        """
        def stop_here(path, media_type):
            print("written", flush=True)
            threading.Event().wait()

        async def main():
            await store.put(artifact(b"kept"), no_objection)
            await store.put(artifact(b"killed"), stop_here)
        """,
    )
    assert child.stdout is not None
    assert await asyncio.to_thread(child.stdout.readline) == "written\n"
    staged = [path for path in _files(tmp_path) if path.parent.name == "incoming"]
    assert len(staged) == 1

    await opened().settled()
    assert staged[0].exists(), "its owner lives"

    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert staged[0].exists()
    store = opened()
    await store.settled()

    assert not staged[0].exists()
    assert await store.locate(_digest(b"killed")) is None
    assert await _content(store, _digest(b"kept")) == b"kept"
    assert store.statistics().entries == 1


async def test_a_blob_whose_row_was_lost_in_a_crash_is_taken_in_again(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"named, and then the power went"), _no_objection)).digest
    with _index(tmp_path) as index:
        index.execute("DELETE FROM Cache")

    again = opened()
    await again.settled()

    assert again.statistics().entries == 1
    assert await again.locate(digest) is not None


async def test_two_stores_on_one_directory_see_each_others_blobs(opened: Opened, tmp_path: Path) -> None:
    one, two = opened(max_bytes=60_000), opened(max_bytes=60_000)
    contents = [b"%02d" % number * 5000 for number in range(12)]

    await asyncio.gather(
        *(store.put(_artifact(content), _no_objection) for content in contents for store in (one, two))
    )

    there_one = [await _content(one, _digest(content)) for content in contents]
    there_two = [await _content(two, _digest(content)) for content in contents]
    assert there_one == there_two
    assert sum(content is not None for content in there_one) == 6
    assert _bytes_on_disk(tmp_path) == 60_000
    assert one.statistics().missing == two.statistics().missing == 0
    assert one.statistics().corrupted == two.statistics().corrupted == 0

    await one.delete(_digest(contents[-1]))
    assert await two.locate(_digest(contents[-1])) is None


async def test_two_processes_on_one_directory_serve_nothing_wrong_and_keep_to_the_limit(
    opened: Opened, tmp_path: Path
) -> None:
    children = [
        _child(tmp_path, _RIVAL.replace("SEED", seed).replace("LIMIT", "60_000"), limit=60_000)
        for seed in ("1", "2")
    ]
    told = [(await asyncio.to_thread(child.communicate))[0] for child in children]

    assert told == ["whole\n"] * 2
    assert [path for path in _files(tmp_path) if path.parent.name in ("incoming", "quarantine")] == []
    assert 0 < _bytes_on_disk(tmp_path) <= 60_000
    store = opened(max_bytes=60_000)
    assert store.statistics().bytes_stored == _bytes_on_disk(tmp_path)
    assert store.statistics().missing == store.statistics().evicted == 0


async def test_a_blob_that_is_used_while_another_process_evicts_it_stays_within_the_limit(
    opened: Opened, tmp_path: Path
) -> None:
    one, two = opened(max_bytes=3000), opened(max_bytes=3000)
    digests = [(await one.put(_artifact(b"%d" % n * 1000), _no_objection)).digest for n in range(3)]

    await one._index.run(one._index.delete, digests[0])  # the first half of an eviction, for this blob:
    digests.append((await one.put(_artifact(b"3" * 1000), _no_objection)).digest)
    assert await two.locate(digests[0]) is not None
    await two.delete(_digest(b"what waits before this is done"))
    await one._index.run(one._remove_evicted, [digests[0]])  # the second half

    assert await _content(two, digests[0]) == b"0" * 1000
    assert _bytes_on_disk(tmp_path) == 3000
    assert await one.locate(digests[1]) is None


async def test_a_blob_that_another_process_puts_again_while_it_is_evicted_stays(opened: Opened) -> None:
    one, two = opened(), opened()
    digest = (await one.put(_artifact(b"evicted and put again"), _no_objection)).digest

    await one._index.run(one._index.delete, digest)  # the first half of an eviction
    await two.put(_artifact(b"evicted and put again"), _no_objection)
    await one._index.run(one._remove_evicted, [digest])  # the second half

    assert await _content(one, digest) == await _content(two, digest) == b"evicted and put again"
    assert one.statistics().evicted == 0


async def test_a_blob_that_is_repaired_while_its_damaged_copy_is_judged_stays(opened: Opened) -> None:
    store = opened()
    digest = (await store.put(_artifact(b"sound" * 1000), _no_objection)).digest
    path = (await _located(store, digest)).path
    _corrupt(path)

    judged, sound = store._examine(digest, path)
    assert judged is not None
    assert not sound
    await store.put(_artifact(b"sound" * 1000), _no_objection)
    await store._index.run(store._put_aside, digest, judged)

    assert await _content(store, digest) == b"sound" * 1000
    assert store.statistics().corrupted == 0


def test_what_was_cleared_away_is_not_begun_any_more(tmp_path: Path) -> None:
    staged = Staged(tmp_path)  # its task was cancelled while its thread had not yet started

    staged.discard()

    with pytest.raises(RuntimeError):
        staged.write(b"too late")
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_that_does_not_take_the_file_is_unavailable_and_nothing_is_left(tmp_path: Path) -> None:
    child = _child(
        tmp_path,
        """
        async def main():
            await store.put(artifact(b"before"), no_objection)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
            try:
                await store.put(artifact(b"x" * (3 << 20)), no_objection)
            except StorageUnavailable as error:
                print(error)
            print(await store.locate(digest(b"x" * (3 << 20))))
            print((await store.locate((await store.put(artifact(b"after"), no_objection)).digest)) is not None)
        """,
    )
    said, none, after = (await asyncio.to_thread(child.communicate))[0].splitlines()

    assert child.returncode == 0
    assert said == ("The gateway's storage is not available (File too large); try again later.")
    assert (none, after) == ("None", "True")
    assert {path.name for path in _files(tmp_path)} == {_digest(b"before"), _digest(b"after")}


async def test_a_disk_that_does_not_take_the_index_is_unavailable_and_nothing_is_left(tmp_path: Path) -> None:
    child = _child(
        tmp_path,
        """
        async def main():
            log = next(directory.glob("index/cache.db-wal"), None)
            size = log.stat().st_size if log else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50_000, resource.RLIM_INFINITY))
            kept = []
            try:
                for number in range(1000):
                    kept.append((await store.put(artifact(b"%d" % number), no_objection)).digest)
            except StorageUnavailable as error:
                failed = digest(b"%d" % number)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print(0 < len(kept) < 1000)
            print(await store.locate(failed))
            print(all([await store.locate(one) is not None for one in kept]))
            print(store.statistics().entries == len(kept))
            print((await store.put(artifact(b"after"), no_objection)).size_bytes)
        """,
    )
    output = (await asyncio.to_thread(child.communicate))[0].split()

    assert child.returncode == 0
    assert output == ["True", "None", "True", "True", "5"]


async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    child = _child(
        tmp_path,
        """
        touching_the_disk = ("open", "os.", "sqlite3", "fcntl", "tempfile", "shutil", "pathlib")
        seen = set()

        def audit(event, arguments):
            if watching and threading.current_thread() is threading.main_thread():
                if event.startswith(touching_the_disk):
                    seen.add(event)

        async def main():
            global watching
            await store.put(artifact(b"warm"), no_objection)  # starts threads
            watching = False
            sys.addaudithook(audit)
            watching = True
            made = await store.put(artifact(b"x" * (3 << 20)), no_objection)
            await store.locate(made.digest)
            await store.locate(digest(b"never"))
            (directory / "sha256").stat()  # has no audit event: what is seen is enough all the same
            await store.delete(made.digest)
            store.statistics()
            watching = False
            print(sorted(seen))
        """,
    )

    assert (await asyncio.to_thread(child.communicate))[0] == "[]\n"
    assert child.returncode == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to see what is synced")
async def test_file_and_directory_are_synced_around_the_rename(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    child = _child(
        tmp_path,
        """
        async def main():
            await store.put(artifact(b"power may be lost"), no_objection)
            print("done")
        """,
        before=("strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,rename"),
    )
    if "done" not in (await asyncio.to_thread(child.communicate))[0]:
        pytest.skip("strace may not trace here")

    calls = trace.read_text().splitlines()
    renamed = next(number for number, call in enumerate(calls) if "rename(" in call and "incoming" in call)
    folder = f"/sha256/{_digest(b'power may be lost')[:2]}>"
    assert any("sync(" in call and "/incoming/" in call for call in calls[:renamed])
    assert any("sync(" in call and folder in call for call in calls[renamed:])
    assert any("sync(" in call and "cache.db-wal" in call for call in calls[renamed:])


# ---- words


def _artifact(
    content: bytes, *, announced: int | None = -1, media_type: str = "video/mp4", chunk_bytes: int = 1 << 16
) -> Artifact:
    """`announced` is the true length unless said otherwise."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), chunk_bytes):
            yield content[start : start + chunk_bytes]

    return Artifact(media_type, chunks(), len(content) if announced == -1 else announced)


def _no_objection(_path: Path, _media_type: str) -> None:
    """An inspection that finds nothing."""


def _objection(_path: Path, media_type: str) -> None:
    """An inspection that refuses everything."""
    raise ResultBroken(f"This is not a whole {media_type}.")


def _digest(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest())


async def _content(store: BlobStore, digest: Digest) -> bytes | None:
    located = await store.locate(digest)
    if located is None:
        return None
    content = located.path.read_bytes()
    assert len(content) == located.size_bytes
    return content


async def _located(store: BlobStore, digest: Digest) -> LocalFile:
    located = await store.locate(digest)
    assert located is not None
    return located


async def _remembered(store: DiskBlobStore, digest: Digest) -> None:
    """Look until the store trusts the file's identity (it must be older than a tick of the file system's clock)."""
    async with asyncio.timeout(10):
        while digest not in store._verified:
            await _located(store, digest)


def _files(tmp_path: Path) -> list[Path]:
    """All files but the index's."""
    return [
        path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and path.parent.name != "index"
    ]


def _bytes_on_disk(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in _files(tmp_path))


class _index:  # noqa: N801 -- reads as a word: with _index(...)
    """The index's database, as somebody else sees it."""

    def __init__(self, tmp_path: Path) -> None:
        self._connection = sqlite3.connect(tmp_path / "blobs" / "index" / "cache.db", isolation_level=None)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


_CHILD = """
import asyncio, hashlib, resource, sys, threading
from pathlib import Path
from gateway.blobs.disk import DiskBlobStore
from gateway.domain.errors import StorageUnavailable
from gateway.domain.generation import Artifact

directory = Path(sys.argv[1])
watching = False

def artifact(content):
    async def chunks():
        yield content
    return Artifact("video/mp4", chunks(), len(content))

def digest(content):
    return hashlib.sha256(content).hexdigest()

def no_objection(path, media_type):
    pass

{main}

store = DiskBlobStore(directory, max_bytes=int(sys.argv[2]))
asyncio.run(main())
store.close()
"""


# A worker among others: puts, locates and deletes a few blobs, and looks at the bytes of whatever is located.
_RIVAL = """
import random

async def main():
    choose = random.Random(SEED)
    contents = [b"%d" % number * 10_000 for number in range(10)]
    for turn in range(200):
        content = choose.choice(contents)
        match choose.randrange(10):
            case 0:
                await store.delete(digest(content))
            case 1 | 2 | 3 | 4:
                assert (await store.put(artifact(content), no_objection)).digest == digest(content)
                assert store.statistics().bytes_stored <= LIMIT, store.statistics()
            case _:
                found = await store.locate(digest(content))
                if found is not None:
                    try:
                        assert found.path.read_bytes() == content
                    except FileNotFoundError:
                        pass  # evicted before it was opened, as promised
        store._touched.clear()  # as if a minute had passed: each use is written down
    assert (store.statistics().corrupted, store.statistics().missing) == (0, 0), store.statistics()
    print("whole")
"""


def _child(
    tmp_path: Path, main: str, *, before: tuple[str, ...] = (), limit: int = _ROOMY
) -> subprocess.Popen[str]:
    """Another process with a store on the same directory."""
    code = _CHILD.format(main=textwrap.dedent(main))
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, str(tmp_path / "blobs"), str(limit)],
        cwd=_PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
