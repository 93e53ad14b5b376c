"""Settings in, running gateway out."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from gateway.app.alerting import opened_alerting
from gateway.app.chargeback import opened_transfers, upstream_name, usage_of
from gateway.app.errands import standing_errands
from gateway.app.front import opened_front, opened_front_door
from gateway.app.opening import LEDGER, SYSTEM_CLOCK, declared, prepared
from gateway.app.reading import reading
from gateway.app.upstream import expectation_of, expected_seconds_of, is_ceiling, opened_upstream
from gateway.blobs.disk import DiskBlobStore
from gateway.cache.disk import DiskGenerationCache
from gateway.database.marks import Marks
from gateway.database.owners import Duty, Owners
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import GatewayError
from gateway.generation.estimating import Estimator
from gateway.generation.housekeeping import Errand, Housekeeping
from gateway.generation.inspection import inspect
from gateway.generation.lookout import Lookout
from gateway.generation.purchasing import OnUnknown, Purchasing, Step, pass_by
from gateway.generation.scheduling import FairSlots
from gateway.generation.service import GenerationService
from gateway.http import routes
from gateway.http.admin import Admin
from gateway.http.alerts import AlertLog
from gateway.http.listening import listening
from gateway.http.operations import Operations
from gateway.http.usage import UsageReports
from gateway.ledger.sqlite import SqliteLedger
from gateway.requests.sqlite import SqliteRequestRecords, SqliteTallies
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics, Reading
from gateway.tenants.sqlite import SqliteDirectory

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where workers of one port keep what each has counted, by the name under which prometheus_client looks for it."""

CRASH_VARIABLE = "GATEWAY_CRASH_AT"
"""Where a test says at which step of a purchase the process is to die."""


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that answers."""

    url: str
    operations_url: str
    keys: SqliteDirectory
    service: GenerationService
    shutdown_grace_seconds: float

    async def drain(self) -> None:
        """Take no new work, and wait for what is under way for as long as the settings say."""
        await self.service.drain(self.shutdown_grace_seconds)


@asynccontextmanager
async def running_gateway(
    settings: Settings,
    *,
    environment: Mapping[str, str],
    sandbox_url: str | None = None,
    shared_ports: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[RunningGateway]:
    """The gateway, listening, for as long as the block runs.

    `sandbox_url` is where the sandbox listens, for `upstream.kind: sandbox`. With `shared_ports`, other processes may
    listen on the same ports, and the kernel deals the connections out. Raises CannotStart, DocumentInvalid.
    """
    catalog, said = declared(settings)
    metrics = Metrics(shared_directory=environment.get(METRICS_VARIABLE))
    async with AsyncExitStack() as stack:
        directory = prepared(settings.storage.directory)
        owners = Owners(directory / "owners")
        stack.callback(owners.close)
        duty = Duty(directory / "duty.lock")
        stack.callback(duty.close)
        marks = Marks(directory / "marks")
        stack.callback(marks.close)
        database = SqliteDatabase(directory / LEDGER, marks=marks)
        stack.callback(database.close)
        tenants = SqliteDirectory(database, clock=clock)
        stack.callback(tenants.close)
        await tenants.apply(said, who="start", if_other=True)
        ledger = SqliteLedger(
            database,
            clock=clock,
            owner=owners.name,
            is_alive=owners.is_alive,
            lease_seconds=settings.ledger.lease_seconds,
            in_force=tenants.in_force,
        )
        records = SqliteRequestRecords(database, clock=clock, owner=owners.name, is_alive=owners.is_alive)
        tallies = SqliteTallies(database)
        transfers = opened_transfers(database, settings, stack)
        cache = await asyncio.to_thread(
            DiskGenerationCache,
            directory / "cache",
            max_bytes=settings.storage.entries_max_bytes,
            marks=marks,
        )
        stack.callback(cache.close)
        blobs = await asyncio.to_thread(
            DiskBlobStore, directory / "blobs", max_bytes=settings.storage.max_bytes, marks=marks
        )
        stack.callback(blobs.close)
        upstream = await stack.enter_async_context(
            opened_upstream(settings, catalog, metrics, environment, sandbox_url, clock)
        )
        slots = FairSlots(slots=settings.upstream.slots, most_waiting=settings.upstream.most_waiting)
        at_step = _crash_point(environment)
        estimator = Estimator(
            evidence=ledger,
            expected_seconds_of=lambda request: expected_seconds_of(settings, catalog, request),
            is_ceiling=lambda request: is_ceiling(catalog, request),
            clock=clock,
            learns=settings.prices.hold == "learned",
        )
        purchasing = Purchasing(
            cache=cache,
            blobs=blobs,
            inspect=inspect,
            expectation_of=lambda request: expectation_of(catalog, request),
            expected_seconds_of=lambda request: expected_seconds_of(settings, catalog, request),
            ledger=ledger,
            custody=ledger,
            resolution=ledger,
            upstream=upstream,
            estimator=estimator,
            slots=slots,
            lookout=Lookout(lambda name: marks.read(marks.place(name))),
            metrics=metrics,
            clock=clock,
            recollect_seconds=settings.upstream.recollect_seconds,
            on_unknown=OnUnknown(settings.reconcile.on_unknown),
            unknown_wait_seconds=settings.reconcile.wait_seconds,
            at_step=at_step,
        )
        service = GenerationService(
            purchasing=purchasing,
            custody=ledger,
            records=records,
            tallies=tallies,
            transfers=transfers,
            clock=clock,
            identify=lambda _tenant, key: tenants.caller(key),
            at_step=at_step,
        )
        stack.push_async_callback(tenants.write_down_uses)
        stack.push_async_callback(tallies.flush)
        stack.push_async_callback(service.drain, 0.0)
        alerting = await opened_alerting(
            settings, environment, stack, database, marks, tenants, ledger, metrics, duty, clock
        )
        front_door = opened_front_door(
            settings, directory, stack, tenants, metrics, clock, alerting.watch.note
        )
        administration = routes.administration(
            admin=Admin(front_door, tenants, tenants, tenants, ledger, catalog, clock),
            alerts=AlertLog(front_door, alerting.alerts, tenants),
            usage=UsageReports(
                front_door,
                usage_of(database, ledger, transfers, tallies, tenants, clock),
                upstream_name(settings),
                clock,
            ),
        )
        served_on = settings.admin.served_on
        front, hit_path = opened_front(
            settings,
            directory,
            stack,
            marks,
            catalog,
            front_door,
            administration if served_on == "listen" else (),
            tenants,
            purchasing,
            service,
            estimator,
            slots,
            blobs,
            ledger,
            tallies,
            transfers,
            metrics,
            clock,
        )

        count_stores = partial(_count_stores, metrics, blobs, cache)

        async def read() -> Reading:
            count_stores()
            return await reading(tenants, ledger, tallies, cache, blobs, clock())

        operations = routes.operations(
            Operations(metrics=metrics, read=read, obstacle=partial(_obstacle, service, ledger)),
            front_door=front_door,
            administration=administration if served_on == "operations" else (),
        )
        errands = (
            *standing_errands(
                settings,
                ledger,
                records,
                tallies,
                transfers,
                upstream,
                service,
                metrics,
                count_stores,
                duty,
                clock,
            ),
            *alerting.errands,
            Errand("write down uses", tenants.write_down_uses, 60.0),
        )
        housekeeping = asyncio.create_task(Housekeeping(errands).run())
        stack.push_async_callback(_cancelled, housekeeping)
        listen = settings.listen
        operations_url = await stack.enter_async_context(
            listening(
                operations,
                settings.operations.host,
                settings.operations.port,
                listen.keepalive_seconds,
                shared_port=shared_ports,
            )
        )
        url = await stack.enter_async_context(
            listening(
                front,
                listen.host,
                listen.port,
                listen.keepalive_seconds,
                shared_port=shared_ports,
                hit_path=hit_path,
            )
        )
        yield RunningGateway(url, operations_url, tenants, service, settings.shutdown.grace_seconds)


def _count_stores(metrics: Metrics, blobs: DiskBlobStore, cache: DiskGenerationCache) -> None:
    stored, remembered = blobs.statistics(), cache.statistics()
    metrics.count_stores(
        evictions=stored.evicted,
        corrupt={
            "blob": stored.corrupted,
            "missing": stored.missing,
            "broken": stored.broken,
            "entry": remembered.unreadable,
        },
    )


async def _obstacle(service: GenerationService, ledger: SqliteLedger) -> str | None:
    """Why no new work can be taken; None when it can."""
    if service.closing:
        return "shutting down"
    try:
        await ledger.renew()
    except GatewayError as error:
        return str(error)
    return None


def _crash_point(environment: Mapping[str, str]) -> Callable[[Step], None]:
    """For tests of what a crash leaves: `GATEWAY_CRASH_AT=sending:3` kills the process at its third `sending`."""
    step, _, count = environment.get(CRASH_VARIABLE, "").partition(":")
    if not step:
        return pass_by
    crash_at, left = Step(step), int(count or 1)

    def crash(reached: Step) -> None:
        nonlocal left
        if reached is crash_at:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return crash


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
