"""Alerts on their way: sent when they are due, again and again at growing pauses, and written down each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gateway.alerts.contract import Alerts, Delivery, Messenger, Progress, State
from gateway.domain.clock import Clock
from gateway.telemetry.logs import log_for
from gateway.telemetry.metrics import Metrics

PAUSES_SECONDS: Sequence[float] = (
    5, 300, 1800, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600,
)  # fmt: skip
"""From each try to the next: three days in all, as Standard Webhooks advises."""

_LONGEST_ASKED_SECONDS = 24 * 3600
"""No receiver puts an alert off for longer than this at a time."""

_SPREAD = 0.1
_AT_ONCE = 20
_GONE = 410


class Delivering:
    """Sends what is due. What is sent while the process dies is sent once more, under the same id: at least once."""

    def __init__(
        self,
        *,
        alerts: Alerts,
        messenger: Messenger,
        metrics: Metrics,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        """`chance`: a number from 0 to 1, another one each time; what failed together is not tried again together."""
        self._alerts = alerts
        self._messenger = messenger
        self._metrics = metrics
        self._clock = clock
        self._chance = chance
        self._log = log_for("alerts")

    async def send_due(self) -> None:
        """Send everything that is due by now, and come back when all of it is written down. Raises StorageUnavailable."""
        while due := await self._alerts.due(self._clock(), limit=_AT_ONCE):
            deliveries = await asyncio.gather(
                *(self._messenger.send(each.alert.id, each.alert.message) for each in due)
            )
            for progress, delivery in zip(due, deliveries, strict=True):
                await self._write_down(progress, delivery)

    async def _write_down(self, progress: Progress, delivery: Delivery) -> None:
        alert, tries = progress.alert, len(progress.deliveries) + 1
        again_at = self._again_at(delivery, tries)
        state = await self._alerts.write_down(alert.id, delivery, again_at=again_at)
        self._metrics.webhook_deliveries.labels(_OUTCOMES[state]).inc()
        told = {"alert": alert.id, "tenant": alert.tenant, "status": delivery.status, "tries": tries}
        match state:
            case State.DELIVERED:
                self._log.info("alert delivered", **told)
            case State.PENDING:
                self._log.warning("alert not delivered", error=delivery.error, again_at=again_at, **told)
            case _:
                self._log.error("alert given up", error=delivery.error, **told)

    def _again_at(self, delivery: Delivery, tries: int) -> float | None:
        # Gone is the one answer that says: never again.
        if not delivery.error or delivery.status == _GONE or tries > len(PAUSES_SECONDS):
            return None
        chance = self._chance()
        pause_seconds = PAUSES_SECONDS[tries - 1] * (1 + _SPREAD * (2 * chance - 1))
        # Never before the receiver wants to be asked again.
        asked_seconds = min(delivery.retry_after_seconds or 0.0, _LONGEST_ASKED_SECONDS) * (
            1 + _SPREAD * chance
        )
        return self._clock() + max(pause_seconds, asked_seconds)


_OUTCOMES = {State.DELIVERED: "delivered", State.PENDING: "failed", State.GIVEN_UP: "given_up"}
