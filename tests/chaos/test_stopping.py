"""The gateway is told to stop at a moment when nobody would expect it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from tests.chaos.processes import alive_in, kill, world


async def test_a_worker_that_is_just_being_started_when_all_are_to_stop_is_waited_for_as_well(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as here:
        gateway = await here.start(workers=2)
        first, second = gateway.workers
        kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while set(gateway.workers) <= {first, second}:
                await asyncio.sleep(0.005)
        gateway.process.terminate()
        code = await gateway.process.wait()
        left = alive_in(gateway.pid)
        log = here.log.read_text()

    assert (code, left) == (0, [])
    assert "Traceback" not in log
