"""The gateway dies while it concludes requests that joined one purchase; then each tenant owes its share, and once."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import aiohttp
import pytest

from gateway.accounting.asking import Asked, By
from gateway.app.chargeback import opened_usage
from gateway.app.opening import opened_directory
from gateway.generation.purchasing import Step
from gateway.tenants.contract import Declared
from tests.chaos.processes import TENANT, Process, World, world
from tests.journeys.running import MODEL, PRICE_MICROS, video

SETTINGS = {"chargeback.payers": "split", "ledger.lease_seconds": 60}
OTHERS = ("film", "paint")
EVER = Asked(date(2026, 1, 1), date(2999, 12, 31), by=(By.TEAM,))

pytestmark = pytest.mark.timeout(240)


async def _keys(here: World) -> dict[str, str]:
    async with opened_directory(here.settings()) as directory:
        for tenant in OTHERS:
            await directory.put(Declared(tenant, budgets=()), who="a test")
        return {tenant: await directory.create(tenant, "of a test") for tenant in (TENANT, *OTHERS)}


async def _submit(session: aiohttp.ClientSession, gateway: Process, key: str) -> None:
    url = f"{gateway.url}/v2/{MODEL}"
    async with session.post(url, json=video(), headers={"x-api-key": key}) as answer:
        assert answer.status == 200, await answer.text()


def _pending(here: World) -> int:
    """How many requests have no outcome yet that is written down."""
    with closing(sqlite3.connect(f"file:{here.storage / 'ledger.sqlite3'}?mode=ro", uri=True)) as books:
        return int(books.execute("SELECT COUNT(*) FROM requests WHERE outcome IS NULL").fetchone()[0])


@pytest.mark.parametrize(
    ("step", "times"), [(Step.ANSWERED, 1), (Step.ANSWERED, 3), (Step.CONCLUDED, 1), (Step.CONCLUDED, 2)]
)
async def test_a_share_is_owed_once_wherever_the_gateway_dies_while_it_concludes(
    tmp_path: Path, step: Step, times: int
) -> None:
    async with world(tmp_path, settings=SETTINGS) as here, aiohttp.ClientSession() as session:
        keys = await _keys(here)
        doomed = await here.start(crash_at=f"{step.value}:{times}")
        await here.faults(session, {"poll_error": {"status": 502}})
        for key in keys.values():
            await _submit(session, doomed, key)
        await here.calm(session)
        assert await doomed.ended() == -9

        gateway = await here.start()
        async with asyncio.timeout(60):
            while await asyncio.to_thread(_pending, here):
                await asyncio.sleep(0.05)
        gateway.process.terminate()
        assert await gateway.ended() == 0
        async with opened_usage(here.settings()) as usage:
            report = await usage.report(EVER)
        books = await here.books()

    share = PRICE_MICROS // 3
    moved = {line.group[0]: line.figures.moved for line in report.lines}
    assert {tenant: moved[tenant].charged.micros for tenant in keys} == {
        TENANT: 0,
        "film": share,
        "paint": share,
    }
    assert moved[TENANT].credited.micros == 2 * share
    assert (books.spent_micros, books.discrepancies) == (PRICE_MICROS, [])
