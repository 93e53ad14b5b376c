"""What the hit path remembers is bounded, is let go of, and is asked of whoever knows at the right moment."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.blobs.contract import LocalFile
from gateway.blobs.disk import DiskBlobStore
from gateway.database.marks import Marks
from gateway.domain.errors import StorageUnavailable, Unauthenticated
from gateway.domain.generation import Artifact, Blob
from gateway.domain.identity import Digest, Fingerprint
from gateway.domain.tenant import Caller, Tenant
from gateway.http.hit_path.connection import HitPath
from gateway.http.hit_path.memory import Memory
from gateway.http.hit_path.plain import Ask
from gateway.http.hit_path.repeats import Repeat, Repeats
from gateway.http.request_ids import RequestIds

MIB = 1 << 20
TENANT = Tenant("demo", ())
UNUSED = cast("Any", None)
"""Stands for what is not asked for anything here."""


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Store:
    """A blob store that something happens to whenever it has said where a blob is."""

    def __init__(self, store: DiskBlobStore, then: Callable[[int, Path], None]) -> None:
        self._store = store
        self._then = then
        self.asked = 0

    async def locate(self, digest: Digest) -> LocalFile | None:
        located = await self._store.locate(digest)
        self.asked += 1
        if located is not None:
            self._then(self.asked, located.path)
        return located


def _gone(asked: int, path: Path) -> None:
    if asked == 2:
        path.unlink()


def _replaced(asked: int, path: Path) -> None:
    if asked == 2:
        beside = path.with_name("beside")
        beside.write_bytes(path.read_bytes()[::-1])
        beside.replace(path)


def _unavailable(asked: int, _: Path) -> None:
    if asked == 2:
        raise StorageUnavailable("not now")


def _as_it_is(_: int, __: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("then", "known"), [(_gone, False), (_replaced, False), (_unavailable, False), (_as_it_is, True)]
)
async def test_a_file_that_the_store_does_not_vouch_for_is_closed_again(
    tmp_path: Path, then: Callable[[int, Path], None], known: bool
) -> None:
    content = b"x" * 100_000
    blob = Blob(Digest(hashlib.sha256(content).hexdigest()), len(content), "video/mp4")
    store = await asyncio.to_thread(DiskBlobStore, tmp_path / "blobs", max_bytes=100 * MIB)
    loop = asyncio.get_running_loop()
    with closing(store), closing(Marks(tmp_path / "marks")) as marks:
        await store.put(Artifact("video/mp4", _chunks(content), size_bytes=None), lambda *_: None)
        memory = _memory(marks, blobs=Store(store, then))
        memory.learn_link("/x", blob, loop.time() + 1e9)
        async with asyncio.timeout(30):
            while memory._lessons:
                await asyncio.sleep(0)
        assert (memory.link("/x", loop.time()) is not None) == known
        assert _open_in(tmp_path / "blobs" / "sha256") == known
        memory.close()
        assert not _open_in(tmp_path / "blobs" / "sha256")


def _memory(marks: Marks, **parts: Any) -> Memory:
    return Memory(
        **{
            "marks": marks,
            "catalog": UNUSED,
            "look_up": UNUSED,
            "blobs": UNUSED,
            "statements": UNUSED,
            "clock": lambda: 0.0,
            "monotonic": asyncio.get_running_loop().time,
            "most_bytes": MIB,
            **parts,
        }
    )


def _open_in(directory: Path) -> bool:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            if descriptor.readlink().is_relative_to(directory):
                return True
    return False


async def test_what_is_remembered_of_requests_takes_no_more_room_than_it_may(tmp_path: Path) -> None:
    with closing(Marks(tmp_path / "marks")) as marks:
        repeats, memory = Repeats(4 * MIB), _memory(marks, most_bytes=4 * MIB)
        tracemalloc.start()
        try:
            for number in range(30_000):
                head = b"HTTP/1.1 200 OK\r\n" + b"x" * 600
                repeat = Repeat(
                    itemgetter(0, 1), tuple(range(number, number + 3)), number, 0.0, float(number), 0.0,
                    Digest("0" * 64), 0.0, head + b"%d" % number, UNUSED, 4000,
                )  # fmt: skip
                repeats.note(("gwk_x", "x", b'{"prompt":"%d"}' % number), repeat)
                for _ in range(2):
                    repeats.meet(b"POST /v1/x HTTP/1.1\r\n\r\n%d" % number, repeat)
                memory._note_question(("x", None, b'{"prompt":"%d"}' % number), Fingerprint(f"{number:064}"))
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert repeats
    assert taken < 2 * 4 * MIB


class Revoking:
    """Keys of which one is revoked while it is being looked at, right before or right after it was found."""

    def __init__(self, *, before: bool) -> None:
        self._before = before
        self._revision = 0
        self._revoked = False

    @property
    def revision(self) -> int:
        return self._revision

    def authenticate(self, presented: str | None) -> Caller:
        assert presented
        if self._before:
            self._revoke()
        if self._revoked:
            raise Unauthenticated("revoked")
        self._revoke()
        return Caller(TENANT, "id")

    def _revoke(self) -> None:
        self._revoked = True
        self._revision += 1


@pytest.mark.parametrize("before", [True, False])
def test_a_key_that_is_revoked_while_it_is_looked_at_opens_nothing_afterwards(before: bool) -> None:
    keys = cast("Any", Revoking(before=before))
    path = HitPath(UNUSED, UNUSED, UNUSED, UNUSED, keys, RequestIds(), lambda: 0.0, MIB, UNUSED)
    ask = Ask(0, "model", "gwk_1")
    first = path.caller(ask, 0.0)
    assert (first is None) == before
    assert [path.caller(ask, 0.0) for _ in range(3)] == [None] * 3


def test_ids_are_random_uuids_of_the_fourth_version() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {(each[14], each[19]) for each in made} == {("4", variant) for variant in "89ab"}
