"""What is done without being asked: leases renewed, tallies written down, loose ends picked up, old records dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.domain.clock import Clock
from gateway.domain.errors import GatewayError
from gateway.generation.service import GenerationService
from gateway.ledger.contract import Custody
from gateway.requests.contract import RequestRecords, Tallies
from gateway.telemetry.logs import log_for

_FLUSH_SECONDS = 1.0
_RESUME_SECONDS = 3.0
_FORGET_SECONDS = 3600.0


class Housekeeping:
    """Rounds that repeat for as long as `run` runs. A round that fails is logged, and tried again at its next time."""

    def __init__(
        self,
        *,
        service: GenerationService,
        custody: Custody,
        records: RequestRecords,
        tallies: Tallies,
        clock: Clock,
        lease_seconds: float,
        retention_seconds: float,
        count_stores: Callable[[], None],
    ) -> None:
        self._service = service
        self._custody = custody
        self._records = records
        self._tallies = tallies
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._retention_seconds = retention_seconds
        self._count_stores = count_stores
        self._log = log_for("housekeeping")

    async def run(self) -> None:
        """Go round until cancelled."""
        async with asyncio.TaskGroup() as rounds:
            # Three tries before a lease is up.
            rounds.create_task(self._repeat(self._custody.renew, self._lease_seconds / 3))
            rounds.create_task(self._repeat(self._write_down_counts, _FLUSH_SECONDS))
            rounds.create_task(self._repeat(self._service.resume, _RESUME_SECONDS))
            rounds.create_task(self._repeat(self._forget, _FORGET_SECONDS))

    async def _repeat(self, errand: Callable[[], Awaitable[object]], pause_seconds: float) -> None:
        while True:
            try:
                await errand()
            except GatewayError as error:
                self._log.warning("round failed", errand=errand.__name__, error=str(error))
            await asyncio.sleep(pause_seconds)

    async def _write_down_counts(self) -> None:
        self._count_stores()
        await self._tallies.flush()

    async def _forget(self) -> None:
        await self._records.forget_before(self._clock() - self._retention_seconds)
