"""The gateway dies at each step of a purchase; then the same caller asks again, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from gateway.generation.purchasing import Step
from gateway.ledger.contract import State
from tests.chaos.callers import Caller, Received, requests, seeded
from tests.chaos.invariants import examined
from tests.chaos.processes import Process, World, world
from tests.journeys.running import MODEL

QUICK = {"reconcile.history_lag_seconds": 1, "ledger.lease_seconds": 60}
"""Nothing is under way to the sandbox once the one process is dead; and only who is dead, and not slow, is taken for it."""

WITHOUT_A_TICKET = (Step.SENDING, Step.SUBMITTED)

pytestmark = pytest.mark.timeout(240)


def _speaks_v1(here: World) -> None:
    """The model is asked for with one long call, whose answer nobody else can read."""
    file = here.directory / "models" / f"{MODEL}.yaml"
    text = file.read_text()
    assert "protocol: v2" in text
    file.write_text(text.replace("protocol: v2", "protocol: v1"))


async def _tidied(here: World) -> None:
    """What was being received when its process died is cleared away, a while after the next start."""
    async with asyncio.timeout(60):
        while any((here.storage / "blobs" / "incoming").iterdir()):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("protocol", ["v2", "v1"])
@pytest.mark.parametrize(
    "step", [step for step in Step if step is not Step.RESERVED], ids=lambda step: step.value
)
async def test_a_gateway_that_dies_at_any_step_pays_once_whether_it_restarts_or_another_takes_over(
    tmp_path: Path, step: Step, protocol: str
) -> None:
    received = Received()
    asked = requests(2)
    async with world(tmp_path, settings=QUICK) as here, aiohttp.ClientSession() as session:
        if protocol == "v1":
            _speaks_v1(here)
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
        await _tidied(here)
        now[0].process.terminate()
        assert await now[0].ended() == 0
        figures = await examined(here, session, received)

    assert set(outcomes) <= {"COMPLETED"}
    # From its ticket on, a purchase is collected; before, its outcome is looked up. While the bytes of one long call come,
    # its ticket is being written down.
    if (step, protocol) != (Step.RECEIVED, "v1"):
        unknown = '"purchase resolved"' in here.log.read_text()
        assert unknown == (step in WITHOUT_A_TICKET)
    assert figures.payments == len(asked)


async def test_what_the_journal_alone_would_tell_otherwise_is_concluded_before_it_is_answered(
    tmp_path: Path,
) -> None:
    """Fetched again, it costs nothing; by the journal alone it would be somebody else's purchase that was joined."""
    received = Received()
    asked = requests(1)
    ((name, request),) = asked.items()
    async with world(tmp_path, settings=QUICK) as here, aiohttp.ClientSession() as session:
        now = [await here.start()]
        caller = Caller(here, session, received, url=lambda: now[0].url, chance=seeded(1))
        await caller.have(request, name)
        now[0].process.terminate()
        assert await now[0].ended() == 0
        for blob in (here.storage / "blobs" / "sha256").rglob("*"):
            if blob.is_file():
                blob.unlink()
        now[0] = await here.start(crash_at=f"{Step.ANSWERED.value}:1")
        await caller.have(request, name)
        await _tidied(here)
        now[0].process.terminate()
        # It came to its end without having passed the step at which it was to die.
        assert await now[0].ended() == 0
        figures = await examined(here, session, received)

    assert figures.payments == 1
    assert '"lost result recovered"' in here.log.read_text()


async def test_a_gateway_that_dies_while_a_purchase_waits_for_its_slot_has_not_bought_it(
    tmp_path: Path,
) -> None:
    received = Received()
    asked = requests(2)
    settings = {**QUICK, "upstream.slots": 1}
    async with world(tmp_path, settings=settings) as here, aiohttp.ClientSession() as session:
        await here.faults(session, {"cold_start": {"count": 1, "seconds": 3}})
        now = [await here.start(crash_at=f"{Step.RESERVED.value}:1")]
        caller = Caller(here, session, received, url=lambda: now[0].url, chance=seeded(1))
        first, second = asked
        waiting = [asyncio.create_task(caller.have(asked[first], first))]
        async with asyncio.timeout(60):
            while [purchase.state for purchase in (await here.books()).purchases] != [State.RUNNING]:
                await asyncio.sleep(0.05)
        # The only slot is taken: this one's money is held, and it waits.
        waiting.append(asyncio.create_task(caller.have(asked[second], second)))
        assert await now[0].ended() == -9
        states = [purchase.state for purchase in (await here.books()).purchases]
        now[0] = await here.start()
        await asyncio.gather(*waiting)
        now[0].process.terminate()
        assert await now[0].ended() == 0
        figures = await examined(here, session, received)

    assert states == [State.QUEUED, State.RUNNING]
    assert '"purchase resolved"' not in here.log.read_text()
    assert figures.payments == len(asked)
