"""Alerts: who raises them, and who sends them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from gateway.accounting.budget_watch import BudgetWatch
from gateway.alerts.delivering import Delivering
from gateway.alerts.signing import SigningSecret
from gateway.alerts.sqlite import SqliteAlerts
from gateway.alerts.webhooks import WebhookMessenger
from gateway.app.opening import SYSTEM_CLOCK, existing_database
from gateway.database.marks import Marks
from gateway.database.owners import Duty
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import CannotStart
from gateway.generation.housekeeping import Errand
from gateway.ledger.sqlite import SqliteLedger
from gateway.settings import AlertSettings, Settings
from gateway.telemetry.metrics import Metrics
from gateway.tenants.sqlite import SqliteDirectory

_SECONDS_BETWEEN_DELIVERIES = 1.0


@dataclass(frozen=True, slots=True)
class Alerting:
    """The parts that the rest of a gateway has to do with."""

    alerts: SqliteAlerts
    watch: BudgetWatch
    errands: Sequence[Errand]


async def opened_alerting(
    settings: Settings,
    environment: Mapping[str, str],
    stack: AsyncExitStack,
    database: SqliteDatabase,
    marks: Marks,
    tenants: SqliteDirectory,
    ledger: SqliteLedger,
    metrics: Metrics,
    duty: Duty,
    clock: Clock,
) -> Alerting:
    """Raises CannotStart where alerts are to be sent, and there is nothing to sign them with."""
    ours = settings.alerts
    alerts = SqliteAlerts(database)
    watch = BudgetWatch(
        tenants=tenants,
        keys=tenants,
        statements=ledger,
        alerts=alerts,
        metrics=metrics,
        clock=clock,
        mark_of=lambda name: marks.read(marks.place(name)),
        thresholds=ours.thresholds,
        projected=ours.projected,
        to_be_sent=ours.webhook_url is not None,
    )

    stack.push_async_callback(watch.tell_refused)

    async def watch_budgets() -> None:
        await watch.tell_refused()
        # The books are looked at by one process for all, and by that process everything is sent.
        if duty.is_ours():
            await watch.look()

    async def forget() -> None:
        if duty.is_ours():
            await alerts.forget_before(clock() - ours.retention_seconds)

    errands = [
        Errand("watch budgets", watch_budgets, ours.interval_seconds),
        Errand("forget alerts", forget, 3600.0),
    ]
    if ours.webhook_url is not None:
        messenger = await stack.enter_async_context(opened_messenger(ours, environment, clock=clock))
        delivering = Delivering(
            alerts=alerts, messenger=messenger, metrics=metrics, clock=clock, chance=random.random
        )

        async def send_alerts() -> None:
            if duty.is_ours():
                await delivering.send_due()

        errands.append(
            Errand("send alerts", send_alerts, min(ours.interval_seconds, _SECONDS_BETWEEN_DELIVERIES))
        )
    return Alerting(alerts, watch, errands)


@asynccontextmanager
async def opened_messenger(
    settings: AlertSettings, environment: Mapping[str, str], *, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[WebhookMessenger]:
    """What takes messages to `alerts.webhook_url`. Raises CannotStart where that or its secret is missing."""
    if settings.webhook_url is None:
        raise CannotStart("alerts.webhook_url is not set: alerts are in the log and the metrics alone.")
    async with WebhookMessenger.open(
        url=settings.webhook_url,
        secret=_signing_secret(settings, environment),
        clock=clock,
        timeout_seconds=settings.timeout_seconds,
    ) as messenger:
        yield messenger


@asynccontextmanager
async def opened_alerts(settings: Settings) -> AsyncIterator[SqliteAlerts]:
    """The alerts alone, for commands. Raises CannotStart if no gateway has run yet."""
    with existing_database(settings.storage.directory) as database:
        yield SqliteAlerts(database)


def _signing_secret(settings: AlertSettings, environment: Mapping[str, str]) -> SigningSecret:
    if settings.webhook_secret_file is not None:
        try:
            text = settings.webhook_secret_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise CannotStart(
                f"alerts.webhook_secret_file: the file cannot be read ({why}); it is to hold the secret that signs alerts."
            ) from error
        source = "the file that alerts.webhook_secret_file names"
    else:
        variable = settings.webhook_secret_env or ""
        text = environment.get(variable, "")
        source = f"the environment variable {variable} (alerts.webhook_secret_env)"
    try:
        return SigningSecret(text)
    except ValueError as error:
        raise CannotStart(
            f"The secret that signs alerts cannot be used: {error}. Put `whsec_` and the base64 of 24 to 64 random bytes "
            f"into {source}, or leave out alerts.webhook_url."
        ) from None
