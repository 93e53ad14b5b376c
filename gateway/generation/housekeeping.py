"""What is done without being asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gateway.domain.errors import GatewayError
from gateway.telemetry.logs import log_for


@dataclass(frozen=True, slots=True)
class Errand:
    """Something that is to be done again and again."""

    name: str
    run: Callable[[], Awaitable[object]]
    pause_seconds: float
    """Between the end of one time and the beginning of the next."""


class Housekeeping:
    """Runs errands for as long as `run` runs. One that fails is logged, and tried again at its next time."""

    def __init__(self, errands: Sequence[Errand]) -> None:
        self._errands = errands
        self._log = log_for("housekeeping")

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as rounds:
            for errand in self._errands:
                rounds.create_task(self._repeat(errand))

    async def _repeat(self, errand: Errand) -> None:
        while True:
            try:
                await errand.run()
            except GatewayError as error:
                self._log.warning("errand failed", errand=errand.name, error=str(error))
            await asyncio.sleep(errand.pause_seconds)
