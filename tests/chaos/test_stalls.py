"""An owner that is stopped for longer than its lease, is taken for dead, and wakes up."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.ledger.contract import State
from tests.chaos.callers import Caller, Received, requests, seeded
from tests.chaos.invariants import examined
from tests.chaos.processes import World, world

pytestmark = pytest.mark.timeout(180)


async def _until_it_is(here: World, state: State) -> None:
    async with asyncio.timeout(30):
        while [purchase.state for purchase in (await here.books()).purchases] != [state]:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("faults", "state"),
    [
        ({"submit_slow": {"count": 1, "seconds": 4}}, State.SENDING),
        ({"cold_start": {"count": 1, "seconds": 4}}, State.RUNNING),
    ],
    ids=["while it sends", "while it waits"],
)
async def test_who_wakes_up_after_another_took_over_neither_buys_nor_settles_again(
    tmp_path: Path, faults: Mapping[str, Any], state: State
) -> None:
    received = Received()
    ((name, request),) = requests(1).items()
    async with world(tmp_path) as here, aiohttp.ClientSession() as session:
        # The first has the duty of reconciling, and is not the one that is stalled.
        steady = await here.start()
        stalled = await here.start()
        await here.faults(session, faults)
        first = Caller(here, session, received, url=lambda: stalled.url, chance=seeded(1))
        second = Caller(here, session, received, url=lambda: steady.url, chance=seeded(1))
        waiting = asyncio.create_task(first.have(request, name))
        await _until_it_is(here, state)
        stalled.send(signal.SIGSTOP)
        await second.have(request, name)
        stalled.send(signal.SIGCONT)
        await waiting

        for gateway in (stalled, steady):
            gateway.process.terminate()
            assert await gateway.ended() == 0
        figures = await examined(here, session, received)

    assert received.counts["deliveries"] == 2
    assert figures.payments == 1


async def test_who_wakes_up_to_a_refusal_says_so_and_nobody_waits_for_the_history(tmp_path: Path) -> None:
    received = Received()
    ((name, request),) = requests(1).items()
    async with (
        world(tmp_path, settings={"reconcile.history_lag_seconds": 3600}) as here,
        aiohttp.ClientSession() as session,
    ):
        steady = await here.start()
        stalled = await here.start()
        await here.faults(session, {"submit_refused": {"count": 3}})
        first = Caller(here, session, received, url=lambda: stalled.url, chance=seeded(1))
        second = Caller(here, session, received, url=lambda: steady.url, chance=seeded(1))
        leaving = asyncio.create_task(first.have(request, name))
        await _until_it_is(here, State.SENDING)
        # Between its first try, which was refused, and its second.
        stalled.send(signal.SIGSTOP)
        waiting = asyncio.create_task(second.have(request, name))
        await _until_it_is(here, State.UNKNOWN)
        stalled.send(signal.SIGCONT)
        async with asyncio.timeout(60):
            await asyncio.gather(leaving, waiting)

        for gateway in (stalled, steady):
            gateway.process.terminate()
            assert await gateway.ended() == 0
        figures = await examined(here, session, received)

    assert figures.payments == 1
