"""A disk that takes no more, and a database that somebody else keeps locked: said in words, and nothing half bought."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.processes import World, world
from tests.journeys.running import MODEL, Metrics, video

SMALLEST_FILE_BYTES = 1


@contextmanager
def full_disk(*pids: int) -> Iterator[None]:
    """No file of these processes can grow: to them the disk is full, and to nobody else."""
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (SMALLEST_FILE_BYTES, before[pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


async def _post(
    session: aiohttp.ClientSession, url: str, key: str, **changes: object
) -> tuple[int, Any, bytes]:
    async with session.post(f"{url}/v1/{MODEL}", json=video(**changes), headers={"x-api-key": key}) as answer:
        body = await answer.read()
        return answer.status, await answer.json() if answer.status != 200 else None, body


async def _until_sold(there: World, session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(20):
        while True:
            async with session.get(f"{there.sandbox_url}/sandbox/bill") as answer:
                if (await answer.json())["total"]["jobs"]:
                    return
            await asyncio.sleep(0.01)


def _free_port() -> int:
    with closing(socket.socket()) as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


async def _until_answered(session: aiohttp.ClientSession, operations_port: int) -> None:
    """Until the upstream has answered the submit: from then on the gateway has the ticket."""
    async with asyncio.timeout(20):
        while True:
            async with session.get(f"http://127.0.0.1:{operations_port}/metrics") as answer:
                shown = Metrics(await answer.text())
            if shown.has("gateway_upstream_requests_total", operation="submit", status="200"):
                return
            await asyncio.sleep(0.01)


async def test_with_a_full_disk_a_request_is_refused_in_words_and_nothing_is_bought(tmp_path: Path) -> None:
    async with world(tmp_path) as there, aiohttp.ClientSession() as session:
        gateway = await there.start()
        assert (await _post(session, gateway.url, there.key))[0] == 200
        with full_disk(*gateway.workers):
            status, refused, _ = await _post(session, gateway.url, there.key, seed=2)
            hit, said, _ = await _post(session, gateway.url, there.key)

        assert (status, refused["code"]) == (503, "storage_unavailable")
        assert "Nothing was bought" in refused["error"]
        assert str(tmp_path) not in refused["error"]
        # What is there is served as ever.
        assert hit == 200, said
        assert (await there.bill(session))["total"]["jobs"] == 1
        # And with room again, it goes on as if nothing had been.
        assert (await _post(session, gateway.url, there.key, seed=2))[0] == 200
        books = await there.books()
        assert books.held_micros == 0
        assert books.discrepancies == []
        assert books.spent_micros == (await there.bill(session))["total"]["cost_micros"]


async def test_what_the_cache_has_lost_is_served_from_the_journal_with_a_full_disk_too(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as there, aiohttp.ClientSession() as session:
        gateway = await there.start()
        assert (await _post(session, gateway.url, there.key))[0] == 200
        gateway.send(signal.SIGTERM)
        assert await gateway.ended() == 0
        shutil.rmtree(there.storage / "cache")
        gateway = await there.start()

        with full_disk(*gateway.workers):
            hit, said, _ = await _post(session, gateway.url, there.key)

        assert hit == 200, said
        assert (await there.bill(session))["total"]["jobs"] == 1


async def test_a_ticket_that_cannot_be_written_down_is_kept_until_it_can_be(tmp_path: Path) -> None:
    port = _free_port()
    settings = {"operations.port": port}
    async with world(tmp_path, settings=settings) as there, aiohttp.ClientSession() as session:
        gateway = await there.start()
        await there.faults(session, {"submit_slow": {"count": 1, "seconds": 1}})
        asked = asyncio.create_task(_post(session, gateway.url, there.key))
        await _until_sold(there, session)

        # It is bought, its answer is on the way, and there is nowhere to write the ticket down.
        with full_disk(*gateway.workers):
            await _until_answered(session, port)
            assert not asked.done()
        status, _, _ = await asked

        assert status == 200
        assert (await there.bill(session))["total"]["jobs"] == 1
        books = await there.books()
        assert (books.held_micros, books.unknown_micros, books.discrepancies) == (0, 0, [])


@pytest.mark.timeout(60)
async def test_a_ledger_that_somebody_keeps_locked_refuses_in_words_and_goes_on_when_it_is_free(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as there, aiohttp.ClientSession() as session:
        gateway = await there.start()
        somebody = sqlite3.connect(there.storage / "ledger.sqlite3", isolation_level=None)
        somebody.execute("BEGIN IMMEDIATE")

        status, refused, _ = await _post(session, gateway.url, there.key)

        assert (status, refused["code"]) == (503, "storage_unavailable")
        somebody.execute("ROLLBACK")
        somebody.close()
        assert (await _post(session, gateway.url, there.key))[0] == 200
        assert (await there.bill(session))["total"]["jobs"] == 1
