"""Connections on which the hit path answers: how long they live, who waits for whom, and what they leave behind."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.cache.disk import DiskGenerationCache
from gateway.database.marks import Marks
from gateway.domain.generation import Blob
from gateway.domain.identity import Digest, Fingerprint
from gateway.http.links import Links
from tests.journeys.conftest import OpenHouse
from tests.journeys.running import House, video
from tests.journeys.wire import (
    PATIENCE_SECONDS,
    SMALL,
    Reply,
    Wire,
    asking,
    conversation,
    fetching,
    learnt,
    wired,
)

HUGE_BYTES = 12 << 20
"""More than fits between two sockets."""

LITTLE_BYTES = 4096


@dataclass(frozen=True)
class Huge:
    """A hit and a link, both of `HUGE_BYTES`, and both known by heart."""

    ask: bytes
    fetch: bytes
    content: bytes
    path: Path

    def held_open(self) -> int:
        """How many descriptors of this process lead to the file."""
        return sum(target == self.path for target in _open_files())


def _open_files() -> list[Path]:
    """What this process's descriptors lead to."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            targets.append(descriptor.readlink())
    return targets


async def _huge(house: House) -> Huge:
    """Puts something huge in the place of what a request is answered with."""
    house.insists = False
    made = await house.make(video(seed=77))
    fingerprint = Fingerprint(made.headers["Cache-Status"].partition('key="')[2].rstrip('"'))
    content = hashlib.shake_128(b"huge").digest(HUGE_BYTES)
    blob = Blob(Digest(hashlib.sha256(content).hexdigest()), HUGE_BYTES, "video/mp4")
    var = house.directory / "var"
    path = var / "blobs" / "sha256" / blob.digest[:2] / blob.digest
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    async with AsyncExitStack() as stack:
        marks = stack.enter_context(closing(Marks(var / "marks")))
        cache = await asyncio.to_thread(DiskGenerationCache, var / "cache", max_bytes=1 << 28, marks=marks)
        stack.callback(cache.close)
        generation = await cache.get(fingerprint)
        assert generation is not None
        await cache.put(replace(generation, blobs=(blob,)))
    links = Links((var / "links.key").read_bytes(), lifetime_seconds=3600, clock=house.clock)
    huge = Huge(
        asking(json.dumps(video(seed=77)).encode(), key=house.key),
        fetching(links.path(blob, since=house.clock())),
        content,
        path,
    )
    async with wired(house.url) as wire:
        for reply in await learnt(house, wire, huge.ask, huge.fetch):
            assert reply.body == content
    return huge


@asynccontextmanager
async def _small(house: House) -> AsyncIterator[tuple[Wire, bytes]]:
    """A connection, and a request that is known by heart."""
    house.insists = False
    request = asking(SMALL, key=house.key)
    async with wired(house.url) as wire:
        await wire.ask(request)
        await learnt(house, wire, request)
        yield wire, request


async def _closed(wire: Wire) -> bool:
    """Waits until the other side closes; whether it did so without another word."""
    with suppress(ConnectionResetError):
        return await wire.more() == b""
    return True


# --- How long they live


async def test_an_idle_connection_is_closed_when_its_time_is_up_and_one_in_use_is_not(
    open_house: OpenHouse,
) -> None:
    house = await open_house(settings={"listen.keepalive_seconds": 0.3})
    async with _small(house) as (wire, request):
        for _ in range(3):
            async with wired(house.url) as idle:
                if house.hit_path:
                    known = await house.answered_by_heart()
                    await idle.ask(request)
                    assert await house.answered_by_heart() == known + 1
                closing_time = asyncio.create_task(_closed(idle))
                # For longer than an idle connection lives, and never idle.
                while not closing_time.done():
                    assert (await wire.ask(request)).status == 200
                assert await closing_time
        assert await _closed(wire)


async def test_a_connection_is_not_idle_while_something_is_sent(open_house: OpenHouse) -> None:
    house = await open_house(settings={"listen.keepalive_seconds": 1.0})
    huge = await _huge(house)
    for request in (huge.ask, huge.fetch):
        async with wired(house.url, receive_bytes=LITTLE_BYTES) as wire:
            await wire.send(request)
            for _ in range(3):
                async with wired(house.url) as idle:
                    assert await _closed(idle)
            assert (await wire.reply()).body == huge.content
            assert await _closed(wire)


async def test_what_is_being_sent_at_the_end_is_sent_to_its_end(open_house: OpenHouse) -> None:
    house = await open_house()
    huge = await _huge(house)
    async with AsyncExitStack() as stack:
        wires = [
            await stack.enter_async_context(wired(house.url, receive_bytes=LITTLE_BYTES)) for _ in "1234"
        ]
        idle = await stack.enter_async_context(wired(house.url))
        for wire, request in zip(wires, (huge.ask, huge.fetch) * 2, strict=True):
            await wire.send(request)
            await wire.head()
        stopping = asyncio.create_task(house.stop())
        assert await _closed(idle)
        for wire in wires:
            assert await wire.take(HUGE_BYTES) == huge.content
            assert await _closed(wire)
        await stopping
    assert huge.held_open() == 0


async def test_what_nobody_reads_is_given_up_at_the_end(open_house: OpenHouse) -> None:
    house = await open_house()
    huge = await _huge(house)
    async with AsyncExitStack() as stack:
        for request in (huge.ask, huge.fetch):
            wire = await stack.enter_async_context(wired(house.url, receive_bytes=LITTLE_BYTES))
            await wire.send(request)
            await wire.head()
        await house.stop()
        assert huge.held_open() == 0


async def test_an_answer_that_was_not_read_to_its_end_counts_all_the_same(house: House) -> None:
    huge = await _huge(house)
    hits = (await house.usage())["hits"]
    for number in range(20):
        async with wired(house.url, receive_bytes=LITTLE_BYTES) as wire:
            await wire.send(huge.ask)
            await wire.head()
            if number % 2:
                wire.reset()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await house.usage())["hits"] < hits + 20:
            await asyncio.sleep(0.01)
        while (await house.metrics()).value("gateway_requests_total", outcome="hit") < hits + 20:
            await asyncio.sleep(0.01)
    assert (await house.usage())["hits"] == hits + 20
    assert (await house.metrics()).value("gateway_requests_total", outcome="hit") == hits + 20


# --- Who waits for whom


async def test_many_who_read_slowly_keep_nobody_waiting_and_leave_nothing_behind(
    open_house: OpenHouse,
) -> None:
    house = await open_house()
    huge = await _huge(house)
    async with _small(house) as (wire, request):
        before = len(_open_files())
        async with AsyncExitStack() as stack:
            slow = [
                await stack.enter_async_context(wired(house.url, receive_bytes=LITTLE_BYTES))
                for _ in range(500)
            ]
            for number, each in enumerate(slow):
                await each.send((huge.ask, huge.fetch)[number % 2])
                if number % 50 == 0:
                    assert (await wire.ask(request)).status == 200
            for each in slow:
                await each.head()
            assert (await wire.ask(request)).status == 200
            async with wired(house.url) as quick:
                assert (await quick.ask(huge.fetch)).body == huge.content
            for each in slow[::250]:
                assert await each.take(HUGE_BYTES) == huge.content
        await _until_open(before, huge, 1 if house.hit_path else 0)
    await house.stop()
    assert huge.held_open() == 0


async def test_callers_who_hang_up_in_the_middle_leave_no_file_and_no_socket_open(house: House) -> None:
    huge = await _huge(house)
    async with _small(house) as (wire, request):
        before = len(_open_files())
        for number in range(200):
            async with wired(house.url, receive_bytes=LITTLE_BYTES) as each:
                await each.send((huge.ask, huge.fetch)[number % 2])
                if number % 3:
                    await each.head()
                if number % 4 == 0:
                    each.reset()
                elif number % 4 == 1:
                    each.end()
        await _until_open(before, huge, 1 if house.hit_path else 0)
        assert (await wire.ask(request)).status == 200
        assert [line["event"] for line in house.log_lines if line["level"] in {"warning", "error"}] == []


async def _until_open(descriptors: int, huge: Huge, times: int) -> None:
    """Waits until as much is open as was, but for a little that other parts of a house may need, and `huge` so often."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(_open_files()) > descriptors + 20 or huge.held_open() != times:
            await asyncio.sleep(0.01)


async def test_a_caller_who_asks_and_asks_and_reads_later_gets_every_answer(house: House) -> None:
    huge = await _huge(house)
    part = huge.fetch.replace(b"\r\n\r\n", b"\r\nRange: bytes=7-8\r\n\r\n")
    async with wired(house.url) as warm:
        await learnt(house, warm, part)
    for request, body in ((part, huge.content[7:9]), (huge.ask, huge.content)):
        async with wired(house.url, receive_bytes=LITTLE_BYTES) as wire:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LITTLE_BYTES)
            asked = 0
            # Until nobody takes any more: the gateway waits until it is read.
            while await wire.try_to_send(request):
                asked += 1
            assert asked > 1
            replies = await _replies(wire, min(asked, 6) if body is huge.content else asked)
            assert {reply.body == body for reply in replies} == {True}


async def _replies(wire: Wire, count: int) -> list[Reply]:
    return [await wire.reply() for _ in range(count)]


async def test_a_hit_behind_a_slow_miss_waits_for_its_turn(house: House) -> None:
    async with _small(house) as (wire, request):
        await house.hold()
        miss = asking(json.dumps(video(seed=5)).encode(), key=house.key)
        hidden = asking(b"{}", key=house.key)
        await wire.send(miss, request, hidden, request + request)
        await house.until_pending(1)
        async with wired(house.url) as other:
            assert (await other.ask(request)).cache == "hit"
        await house.let_go()
        replies = await _replies(wire, 5)
    assert [reply.status for reply in replies] == [200, 200, 400, 200, 200]
    assert [reply.cache for reply in replies if reply.status == 200] == ["fwd=miss; stored"] + ["hit"] * 3
    assert replies[0].body != replies[1].body == replies[3].body


async def test_a_connection_is_not_lost_to_the_hit_path_by_what_is_not_its(open_house: OpenHouse) -> None:
    house = await open_house()
    async with _small(house) as (wire, request):
        for between in (
            asking(b"{}", key=house.key),
            fetching("/nothing"),
            asking(json.dumps(video(seed=9)).encode(), key=house.key),
            asking(SMALL, key="gwk_"),
            fetching("/v1/models", f"x-api-key: {house.key}"),
            asking(SMALL, key=house.key, headers=[("Accept", "application/json")]),
        ):
            known = await house.answered_by_heart()
            await wire.ask(between)
            assert (await wire.ask(request)).cache == "hit"
            # Two in a row, of which the second did not wait for the first.
            await wire.send(between, request)
            await _replies(wire, 2)
            assert (await wire.ask(request)).cache == "hit"
            by_heart = await house.answered_by_heart() - known
            assert by_heart >= 1 if house.hit_path else by_heart == 0, between


async def test_a_body_that_comes_byte_by_byte_is_given_up_in_time(open_house: OpenHouse) -> None:
    house = await open_house(settings={"listen.body_timeout_seconds": 0.2})
    async with _small(house) as (_, request):
        head, _, body = asking(SMALL, key=house.key, length="60000").partition(b"\r\n\r\n")
        async with wired(house.url) as wire:
            await wire.send(head + b"\r\n\r\n" + body)
            answer = asyncio.create_task(wire.reply())
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not answer.done():
                    # Never so slowly that the gateway would wait in vain, and never all of it.
                    with suppress(ConnectionError):
                        await wire.send(b" ")
                    await asyncio.sleep(0)
            assert (await answer).status == 408
        # And the whole in two halves is in time.
        async with wired(house.url) as wire:
            await wire.send(request[:-20], request[-20:])
            assert (await wire.reply()).cache == "hit"


async def test_a_caller_who_sends_no_more_is_answered_or_left_but_never_kept(house: House) -> None:
    async with _small(house) as (_, request):
        async with wired(house.url) as wire:
            whole = await wire.ask(request)
        for cut in (1, 50, len(request) - 1, len(request)):
            async with wired(house.url) as wire:
                await wire.send(request[:cut])
                wire.end()
                rest = await wire.rest()
                assert rest == b"" or (cut == len(request) and rest.endswith(whole.body))
        assert (await conversation(house.url, request)).startswith(b"HTTP/1.1 200 ")


async def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection_and_pretends_nothing(
    house: House,
) -> None:
    huge = await _huge(house)
    for request in (huge.ask, huge.fetch):
        async with wired(house.url, receive_bytes=LITTLE_BYTES) as wire:
            await wire.send(request)
            await wire.head()
            os.truncate(huge.path, HUGE_BYTES - 1)
            taken = await wire.rest(tell=False)
            assert huge.content.startswith(taken)
            assert len(taken) < HUGE_BYTES
        huge.path.write_bytes(huge.content)
        async with wired(house.url) as warm:
            assert (await warm.ask(huge.fetch)).body == huge.content
