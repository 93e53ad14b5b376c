"""Its jobs and its bill survive its own restart, however it ended."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import pytest

from gateway.sandbox.parts import PARTS
from tests.journeys.sandbox.running import (
    FAST,
    KEY,
    MODEL,
    NEVER,
    PROJECT,
    SMALL,
    SMALL_MICROS,
    RunningSandbox,
)


@asynccontextmanager
async def killed_at_the_end(directory: Path, time_scale: float) -> AsyncIterator[str]:
    """The URL of a sandbox in another process, which is killed with SIGKILL in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.journeys.sandbox.standalone",
        str(directory),
        str(time_scale),
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            yield (await process.stdout.readline()).decode().strip()
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def test_jobs_that_ran_when_it_was_killed_go_on_and_are_billed_once(tmp_path: Path) -> None:
    headers = {"x-api-key": KEY}
    # A job takes the better part of a minute: nothing ends before the kill.
    async with killed_at_the_end(tmp_path, 50) as url, aiohttp.ClientSession(headers=headers) as session:
        for seed in range(5):
            async with session.post(f"{url}/v2/{MODEL}", json=SMALL | {"seed": seed}) as response:
                assert response.status == 200
        waiting = asyncio.create_task(session.post(f"{url}/v1/{MODEL}", json=SMALL))
        jobs = 0
        while jobs < 6:
            bill = await (await session.get(f"{url}/sandbox/bill")).json()
            jobs = bill["total"]["jobs"]
    with pytest.raises(aiohttp.ClientError):
        await waiting

    async with RunningSandbox(tmp_path) as sandbox:
        assert (await sandbox.bill())["total"]["running"] == 6, "their time has not come yet"
        assert await sandbox.credits() == 1000

    for _ in range(2):
        sandbox = RunningSandbox(tmp_path)
        sandbox.clock.ahead_seconds = 120
        async with sandbox:
            bill = await sandbox.settled_bill()
            assert [item["api"] for item in bill["jobs"]] == ["v2"] * 5 + ["v1"]
            assert {item["state"] for item in bill["jobs"]} == {"COMPLETED"}
            assert bill["total"]["cost_micros"] == 6 * SMALL_MICROS
            assert await sandbox.credits() == 999.976
            for item in bill["jobs"]:
                _, record = await sandbox.ask("GET", f"/v2/requests/{item['request_id']}")
                assert (await sandbox.session.get(record["output"])).status == 200


async def test_killed_at_any_moment_it_bills_every_accepted_job_once(tmp_path: Path) -> None:
    """The kill falls among completions: some are billed, some are not yet, none is billed twice."""
    headers = {"x-api-key": KEY}
    accepted: set[str] = set()
    for round_ in range(3):
        async with (
            killed_at_the_end(tmp_path, 0.05) as url,
            aiohttp.ClientSession(headers=headers) as session,
        ):

            async def submit(seed: int, url: str = url, session: aiohttp.ClientSession = session) -> None:
                async with session.post(f"{url}/v2/{MODEL}", json=SMALL | {"seed": seed}) as response:
                    accepted.add((await response.json())["request_id"])

            await asyncio.gather(*[submit(100 * round_ + seed) for seed in range(20)])
            completed = 0
            while not completed:
                bill = await (await session.get(f"{url}/sandbox/bill")).json()
                completed = bill["total"]["completed"] - 20 * round_

    async with RunningSandbox(tmp_path) as sandbox:
        bill = await sandbox.settled_bill()
        left = await sandbox.credits()

    assert {item["request_id"] for item in bill["jobs"]} == accepted
    assert len(bill["jobs"]) == 60
    assert {item["cost_micros"] for item in bill["jobs"]} == {SMALL_MICROS}
    assert left == 1000 - 60 * 0.004


async def test_nobody_is_told_of_an_end_that_is_not_on_disk(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path, time_scale=0.3) as sandbox:
        request_id = await sandbox.submit()
        with closing(sqlite3.connect(tmp_path / "sandbox.sqlite3", isolation_level=None)) as locking:
            locking.execute("BEGIN IMMEDIATE")
            polls_end = asyncio.get_running_loop().time() + 1  # its time comes after 0.4 seconds
            while asyncio.get_running_loop().time() < polls_end:
                _, body = await sandbox.ask("GET", f"/v2/requests/{request_id}/status")
                assert body["status"] in {"QUEUED", "PROCESSING"}
            assert await sandbox.credits() == 1000
            locking.execute("ROLLBACK")

        _, body = await sandbox.ended(request_id)
        assert body["status"] == "COMPLETED"
        assert await sandbox.credits() == 999.996


async def test_the_books_charge_a_job_once_however_often_they_are_told(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path) as sandbox:
        request_id = await sandbox.submit()
        await sandbox.ended(request_id)
        books = sandbox.app[PARTS].books
        job = await books.find(request_id)
        assert job is not None

        assert await books.complete(job) is None
        await books.fail(job)

        bill = await sandbox.bill()
        assert bill["accounts"]["default"]["credits_micros"] == 1_000_000_000 - SMALL_MICROS
        assert bill["jobs"][0]["state"] == "COMPLETED"


async def test_accounts_faults_of_jobs_and_reservations_survive(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path, time_scale=NEVER) as sandbox:
        await sandbox.open_account("small", "SG_small", 0.004, models=[MODEL])
        await sandbox.set_faults(hex_request_id={"count": 1}, record_expired={"count": 1, "seconds": 100})
        request_id = await sandbox.submit(SMALL, headers={"x-api-key": "SG_small"})

    async with RunningSandbox(tmp_path, time_scale=FAST) as sandbox:
        key = {"x-api-key": "SG_small"}
        assert (await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL, headers=key))[0] == 402, (
            "still reserved"
        )
        assert (await sandbox.ask("POST", "/v2/lyria-2", json=SMALL, headers=key))[0] == 403
        assert (await sandbox.ask("GET", f"/v2/requests/{request_id}", headers=key))[0] == 200
        sandbox.clock.ahead_seconds = 101
        assert (await sandbox.ask("GET", f"/v2/requests/{request_id}", headers=key))[0] == 404
        _, faults = await sandbox.ask("GET", "/sandbox/faults")
        assert {fault["setting"] for fault in faults.values()} == {None}
        assert (await sandbox.bill())["jobs"][0]["faults"] == ["record_expired", "hex_request_id"]


async def test_a_caller_of_v1_is_let_go_when_it_closes(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path, time_scale=NEVER) as sandbox:
        call = asyncio.create_task(sandbox.ask("POST", f"/v1/{MODEL}", json=SMALL))
        await sandbox.bill_when(lambda total: bool(total["jobs"]))
        await sandbox.stop_serving()
        assert (await call)[0] == 502


async def test_what_a_crash_left_half_made_is_swept_at_the_start(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path) as sandbox:
        record = await sandbox.result()
    (tmp_path / "files" / "abc.part").write_bytes(b"half")

    async with RunningSandbox(tmp_path) as sandbox:
        assert [file.suffix for file in (tmp_path / "files").iterdir()] == [".mp4"]
        url = record["output"].replace(record["output"].split("/generations/")[0], sandbox.url)
        assert (await sandbox.session.get(url)).status == 200
