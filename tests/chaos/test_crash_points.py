"""The gateway dies at each step of a purchase; then the same caller asks again, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from gateway.generation.purchasing import Step
from tests.chaos.callers import Caller, Received, requests, seeded
from tests.chaos.invariants import examined
from tests.chaos.processes import Process, world

QUICK = {"reconcile.history_lag_seconds": 1, "ledger.lease_seconds": 60}
"""Nothing is under way to the sandbox once the one process is dead; and only who is dead, and not slow, is taken for it."""

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize("step", Step, ids=lambda step: step.value)
async def test_a_gateway_that_dies_at_any_step_pays_once_whether_it_restarts_or_another_takes_over(
    tmp_path: Path, step: Step
) -> None:
    received = Received()
    asked = requests(2)
    async with world(tmp_path, settings=QUICK) as here, aiohttp.ClientSession() as session:
        # Two neighbours on one storage; the one that dies comes back, and the other one never stops.
        doomed, steady = await asyncio.gather(here.start(crash_at=f"{step.value}:1"), here.start())
        now: list[Process] = [doomed]
        caller = Caller(here, session, received, url=lambda: now[0].url, chance=seeded(1))

        first, second = asked
        waiting = asyncio.create_task(caller.have(asked[first], first))
        assert await doomed.ended() == -9
        now[0] = steady
        await waiting
        now[0] = await here.start(crash_at=f"{step.value}:1")
        waiting = asyncio.create_task(caller.have(asked[second], second))
        await now[0].ended()
        steady.kill_all()
        await steady.ended()
        now[0] = await here.start()
        await waiting

        # Everything is there already, for whoever asks a third time.
        for name, request in asked.items():
            await caller.have(request, name)
        outcomes = [await caller.outcome(identity) for identity in sorted(received.issued)]
        now[0].process.terminate()
        assert await now[0].ended() == 0
        figures = await examined(here, session, received)

    assert set(outcomes) <= {"COMPLETED"}
    # From its ticket on, a purchase is collected; before, its outcome is looked up.
    unknown = '"purchase resolved"' in here.log.read_text()
    assert unknown == (step in (Step.SENDING, Step.SUBMITTED))
    assert figures.payments == len(asked)
