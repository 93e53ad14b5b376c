"""What is paid for and cannot be had: given up only when it is broken for good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.callers import Caller, Received, requests, seeded
from tests.chaos.invariants import examined
from tests.chaos.processes import world

pytestmark = pytest.mark.timeout(180)


async def test_silence_after_a_sale_is_looked_up_and_never_answered_by_buying_again(tmp_path: Path) -> None:
    received = Received()
    asked = requests(3)
    silences = (
        {"submit_dropped": {"count": 1}},
        *({"submit_error": {"count": 1, "status": s}} for s in (502, 504)),
    )
    async with world(tmp_path) as here, aiohttp.ClientSession() as session:
        gateway = await here.start()
        caller = Caller(here, session, received, url=lambda: gateway.url, chance=seeded(1))
        for (name, request), silence in zip(asked.items(), silences, strict=True):
            await here.faults(session, silence)
            await caller.have(request, name)
        gateway.process.terminate()
        assert await gateway.ended() == 0
        figures = await examined(here, session, received)

    assert figures.payments == 3


@pytest.mark.parametrize(
    "faults",
    [{"wrong_size": {"count": 1}}, {"download_corrupted": {"count": 3, "at": 0}}],
    ids=["made wrong", "broken on each way"],
)
async def test_a_result_that_stays_broken_is_written_off_and_what_comes_next_is_right(
    tmp_path: Path, faults: Mapping[str, Any]
) -> None:
    received = Received()
    ((name, request),) = requests(1).items()
    async with world(tmp_path) as here, aiohttp.ClientSession() as session:
        gateway = await here.start()
        await here.faults(session, faults)
        caller = Caller(here, session, received, url=lambda: gateway.url, chance=seeded(1))
        await caller.have(request, name)
        gateway.process.terminate()
        assert await gateway.ended() == 0
        figures = await examined(here, session, received, lost_at_most=1)
        evidence = [path.name for path in (here.storage / "blobs" / "quarantine").iterdir()]

    assert (figures.payments, figures.lost) == (2, 1)
    assert received.refusals.total() == 1
    assert evidence


async def test_a_result_on_a_host_that_is_not_allowed_stays_paid_for_until_it_is(tmp_path: Path) -> None:
    received = Received()
    ((name, request),) = requests(1).items()
    async with world(tmp_path) as here, aiohttp.ClientSession() as session:
        gateway = await here.start()
        await here.faults(session, {"foreign_result_host": {"count": 1, "host": "localhost"}})
        async with session.post(
            f"{gateway.url}/v1/ltx-2-19b-t2v", json=request, headers={"x-api-key": here.key}
        ) as answer:
            refused = answer.status, (await answer.json())["code"]
        gateway.kill_all()
        await gateway.ended()
        gateway = await here.start(settings={"upstream.result_hosts": ["127.0.0.1", "localhost"]})
        caller = Caller(here, session, received, url=lambda: gateway.url, chance=seeded(1))
        await caller.have(request, name)
        gateway.process.terminate()
        assert await gateway.ended() == 0
        figures = await examined(here, session, received)

    assert refused == (502, "result_unavailable")
    assert (figures.payments, figures.lost) == (1, 0)
