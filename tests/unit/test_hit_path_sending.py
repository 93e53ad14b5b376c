"""A file to a socket: all of it, in its order, and only for as long as somebody reads."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.http.hit_path.sending import Sending

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
CONTENT = os.urandom(3 << 20)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Who sends, and who is sent to."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


class Ended:
    """How a sending ended."""

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.told = asyncio.Event()

    def __call__(self, error: OSError | None) -> None:
        assert not self.told.is_set()
        self.error = error
        self.told.set()

    async def wait(self) -> OSError | None:
        async with asyncio.timeout(30):
            await self.told.wait()
        return self.error


async def _read(theirs: socket.socket, count: int) -> bytes:
    loop, come = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(30):
        while len(come) < count:
            come += await loop.sock_recv(theirs, 1 << 16)
    return bytes(come)


@pytest.mark.parametrize(
    ("start", "count"), [(0, len(CONTENT)), (0, 1), (5, 100_000), (len(CONTENT) - 1, 1), (7, 0)]
)
async def test_a_part_is_sent_behind_its_head(
    pair: tuple[socket.socket, socket.socket], file: int, start: int, count: int
) -> None:
    ours, theirs = pair
    ended = Ended()
    sending = Sending(asyncio.get_running_loop(), ours, file, start, count, ended)
    sending.begin(HEAD)
    assert await _read(theirs, len(HEAD) + count) == HEAD + CONTENT[start : start + count]
    assert await ended.wait() is None
    assert sending.sent_bytes == count
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


async def test_a_head_waits_for_whoever_has_yet_to_read_what_was_sent_before(
    pair: tuple[socket.socket, socket.socket], file: int
) -> None:
    ours, theirs = pair
    before = 0
    with suppress(BlockingIOError):
        while True:
            before += ours.send(b"x" * 1000)
    ended = Ended()
    sending = Sending(asyncio.get_running_loop(), ours, file, 0, 10, ended)
    sending.begin(HEAD)
    assert (await _read(theirs, before + len(HEAD) + 10))[before:] == HEAD + CONTENT[:10]
    assert await ended.wait() is None


class Waiting:
    """A loop of which a test says when the time is up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, _: float, callback: Callable[..., object], *of: object) -> asyncio.TimerHandle:
        self._due = partial(callback, *of)
        return self._loop.call_later(1e6, lambda: None)

    def time_is_up(self) -> None:
        assert self._due is not None
        due, self._due = self._due, None
        due()


async def test_whoever_takes_nothing_is_given_up_and_whoever_takes_little_is_not(
    pair: tuple[socket.socket, socket.socket], file: int
) -> None:
    ours, theirs = pair
    ended, loop = Ended(), Waiting()
    sending = Sending(cast("asyncio.AbstractEventLoop", loop), ours, file, 0, len(CONTENT), ended)
    sending.begin(HEAD)
    for _ in range(20):
        # Too little for the socket to take any more.
        await _read(theirs, 40_000)
        loop.time_is_up()
        assert not ended.told.is_set()
    loop.time_is_up()
    assert isinstance(ended.error, TimeoutError)
    assert 0 < sending.sent_bytes < len(CONTENT)


async def test_whoever_hangs_up_ends_it(pair: tuple[socket.socket, socket.socket], file: int) -> None:
    ours, theirs = pair
    ended = Ended()
    Sending(asyncio.get_running_loop(), ours, file, 0, len(CONTENT), ended).begin(HEAD)
    theirs.close()
    assert isinstance(await ended.wait(), ConnectionError)


async def test_a_file_that_has_become_shorter_ends_it(
    pair: tuple[socket.socket, socket.socket], file: int
) -> None:
    ours, theirs = pair
    ended = Ended()
    Sending(asyncio.get_running_loop(), ours, file, 0, len(CONTENT), ended).begin(HEAD)
    os.truncate(file, len(CONTENT) - 1)
    reading = asyncio.create_task(_read(theirs, len(HEAD) + len(CONTENT) - 1))
    assert isinstance(await ended.wait(), BrokenPipeError)
    assert (await reading)[len(HEAD) :] == CONTENT[:-1]


async def test_what_is_cancelled_sends_no_more_and_says_nothing(
    pair: tuple[socket.socket, socket.socket], file: int
) -> None:
    ours, theirs = pair
    ended = Ended()
    sending = Sending(asyncio.get_running_loop(), ours, file, 0, len(CONTENT), ended)
    sending.begin(HEAD)
    come = await _read(theirs, len(HEAD) + 1)
    sending.cancel()
    sent = sending.sent_bytes
    await _read(theirs, len(HEAD) + sent - len(come))
    for _ in range(10):
        await asyncio.sleep(0)
    assert sending.sent_bytes == sent
    assert not ended.told.is_set()
