"""Settings in, running gateway out: the one place that names implementations."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from gateway.blobs.disk import DiskBlobStore
from gateway.cache.disk import DiskGenerationCache
from gateway.catalog.contract import Catalog
from gateway.catalog.yaml_files import load_catalog
from gateway.database.marks import Marks
from gateway.database.owners import Duty, Owners
from gateway.database.pace import Pace
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import CannotStart, GatewayError, ModelUnknown
from gateway.domain.expectation import Expectation
from gateway.domain.generation import GenerationRequest
from gateway.domain.money import Money
from gateway.domain.tenant import Holder
from gateway.generation.drift import BalanceWatch, ForeignSpend
from gateway.generation.housekeeping import Errand, Housekeeping
from gateway.generation.inspection import inspect
from gateway.generation.lookout import Lookout
from gateway.generation.purchasing import OnUnknown, Purchasing, Step, pass_by
from gateway.generation.reconciliation import Reconciliation
from gateway.generation.scheduling import FairSlots
from gateway.generation.service import GenerationService
from gateway.http import routes
from gateway.http.account import Account
from gateway.http.blobs import Blobs
from gateway.http.front_door import FrontDoor
from gateway.http.generations import Generations
from gateway.http.hit_path.connection import HitPath
from gateway.http.hit_path.memory import Memory
from gateway.http.hit_path.repeats import Repeats
from gateway.http.hit_path.served import Served
from gateway.http.links import Links
from gateway.http.listening import listening
from gateway.http.operations import Operations
from gateway.http.request_ids import RequestIds
from gateway.ledger.contract import State
from gateway.ledger.sqlite import SqliteLedger
from gateway.requests.sqlite import SqliteRequestRecords, SqliteTallies
from gateway.settings import Settings, UpstreamSettings
from gateway.telemetry.metrics import BudgetReading, Metrics, Reading
from gateway.tenants.contract import Declared, Tenants
from gateway.tenants.sqlite import SqliteDirectory
from gateway.tenants.yaml_files import load_tenants
from gateway.upstream.limits import Limits
from gateway.upstream.secret import Secret
from gateway.upstream.segmind import SegmindUpstream

SYSTEM_CLOCK: Clock = time.time  # noqa: TID251 -- here it becomes the argument that everybody else is given

SANDBOX_KEY = "SG_0123456789abcdef"
"""The key of the sandbox's first account. It opens nothing else."""

_SEGMIND_HISTORY_URL = "https://api.spotprod.segmind.com"
_LINK_SECRET_BYTES = 32
_LEDGER = "ledger.sqlite3"

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
        directory = _prepared(settings.storage.directory)
        owners = Owners(directory / "owners")
        stack.callback(owners.close)
        duty = Duty(directory / "duty.lock")
        stack.callback(duty.close)
        marks = Marks(directory / "marks")
        stack.callback(marks.close)
        database = SqliteDatabase(directory / _LEDGER, marks=marks)
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
            _upstream(settings, catalog, metrics, environment, sandbox_url, clock)
        )
        slots = FairSlots(slots=settings.upstream.slots, most_waiting=settings.upstream.most_waiting)
        at_step = _crash_point(environment)
        purchasing = Purchasing(
            cache=cache,
            blobs=blobs,
            inspect=inspect,
            expectation_of=lambda request: _expectation(catalog, request),
            expected_seconds_of=lambda request: _expected_seconds(settings, catalog, request),
            ledger=ledger,
            custody=ledger,
            resolution=ledger,
            upstream=upstream,
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
            clock=clock,
            identify=lambda _tenant, key: tenants.caller(key),
            at_step=at_step,
        )
        stack.push_async_callback(tallies.flush)
        stack.push_async_callback(service.drain, 0.0)
        front, hit_path = _front(
            settings,
            directory,
            stack,
            marks,
            catalog,
            tenants,
            purchasing,
            service,
            blobs,
            ledger,
            tallies,
            metrics,
            clock,
        )

        def count_stores() -> None:
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

        async def read() -> Reading:
            count_stores()
            return await _reading(tenants, ledger, tallies, cache, blobs)

        async def obstacle() -> str | None:
            if service.closing:
                return "shutting down"
            try:
                await ledger.renew()
            except GatewayError as error:
                return str(error)
            return None

        operations = routes.operations(Operations(metrics=metrics, read=read, obstacle=obstacle))
        errands = _errands(
            settings, ledger, records, tallies, upstream, service, metrics, count_stores, duty, clock
        )
        errands = (*errands, Errand("write down uses", tenants.write_down_uses, 60.0))
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


def _front(
    settings: Settings,
    directory: Path,
    stack: AsyncExitStack,
    marks: Marks,
    catalog: Catalog,
    keys: SqliteDirectory,
    purchasing: Purchasing,
    service: GenerationService,
    blobs: DiskBlobStore,
    ledger: SqliteLedger,
    tallies: SqliteTallies,
    metrics: Metrics,
    clock: Clock,
) -> tuple[web.Application, HitPath | None]:
    """What callers reach, and the short way to what is cached, where that is wanted."""
    request_ids = RequestIds()
    memory = Memory(
        marks=marks,
        catalog=catalog,
        look_up=purchasing.look_up,
        blobs=blobs,
        statements=ledger,
        clock=clock,
        monotonic=asyncio.get_running_loop().time,
        most_bytes=settings.listen.hit_path_max_bytes,
    )
    stack.callback(memory.close)
    hit_path: HitPath | None = None
    if settings.listen.hit_path:
        served = Served(metrics, tallies)
        tallies.feed_from(served.hand_over)
        repeats = Repeats(settings.listen.hit_path_max_bytes)
        hit_path = HitPath(
            memory, repeats, marks, served, keys, request_ids, clock, settings.listen.max_body_bytes
        )
    pace = Pace(directory / "pace")
    stack.callback(pace.close)
    front_door = FrontDoor(
        keys=keys,
        metrics=metrics,
        request_ids=request_ids,
        pace=pace,
        clock=clock,
        max_body_bytes=settings.listen.max_body_bytes,
        body_timeout_seconds=settings.listen.body_timeout_seconds,
    )
    links = Links(_link_secret(directory), lifetime_seconds=settings.links.lifetime_seconds, clock=clock)
    front = routes.front(
        front_door=front_door,
        generations=Generations(
            front_door=front_door,
            catalog=catalog,
            service=service,
            blobs=blobs,
            statements=ledger,
            links=links,
            public_url=settings.listen.public_url,
            clock=clock,
            on_hit=memory.learn_hit if hit_path else lambda *_: None,
        ),
        account=Account(front_door, catalog, ledger, tallies, clock),
        blobs=Blobs(blobs, links, on_fetch=memory.learn_link if hit_path else lambda *_: None),
    )
    return front, hit_path


def declared(settings: Settings) -> tuple[Catalog, Sequence[Declared]]:
    """The models and the tenants in the files that the settings name. Raises DocumentInvalid."""
    catalog = load_catalog(settings.models)
    return catalog, load_tenants(settings.tenants, models=[model.name for model in catalog])


@asynccontextmanager
async def opened_directory(
    settings: Settings, *, applying: bool = True, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[SqliteDirectory]:
    """The tenants and their keys alone, for commands; a gateway may be running on the same ledger.

    With `applying`, the file of tenants is applied where none ever was: keys can be made before the first start.
    """
    with (
        _opened_database(_prepared(settings.storage.directory)) as database,
        closing(SqliteDirectory(database, clock=clock)) as directory,
    ):
        if applying and not await directory.was_applied():
            _, said = declared(settings)
            await directory.apply(said, who="first use", if_other=True)
        yield directory


@asynccontextmanager
async def opened_ledger(settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[SqliteLedger]:
    """The ledger alone, for commands; a gateway may be running on it. Raises CannotStart if there is none yet."""
    directory = settings.storage.directory
    # A new one would be empty, and in perfect order.
    if not (directory / _LEDGER).is_file():
        raise CannotStart(
            f"There is no ledger in storage.directory {directory}: no gateway has run on it yet."
        )
    with _opened_database(directory) as database:
        yield SqliteLedger(
            database,
            clock=clock,
            owner="command",
            is_alive=lambda _owner: True,
            lease_seconds=settings.ledger.lease_seconds,
        )


@contextmanager
def _opened_database(directory: Path) -> Iterator[SqliteDatabase]:
    """The database for a command: a gateway that is running on it is told what the command changes."""
    with (
        closing(Marks(directory / "marks")) as marks,
        closing(SqliteDatabase(directory / _LEDGER, marks=marks)) as database,
    ):
        yield database


@asynccontextmanager
async def _upstream(
    settings: Settings,
    catalog: Catalog,
    metrics: Metrics,
    environment: Mapping[str, str],
    sandbox_url: str | None,
    clock: Clock,
) -> AsyncIterator[SegmindUpstream]:
    ours = settings.upstream
    pace = _pace(settings)
    if ours.kind == "sandbox":
        base_url = sandbox_url or f"http://{settings.sandbox.host}:{settings.sandbox.port}"
        key, hosts, history_url = Secret(SANDBOX_KEY), frozenset({settings.sandbox.host}), base_url
    else:
        base_url, key, hosts = ours.base_url, _account_key(ours, environment), ours.result_hosts
        is_segmind = base_url == UpstreamSettings().base_url
        history_url = ours.history_url or (_SEGMIND_HISTORY_URL if is_segmind else base_url)

    def on_call(operation: str, status: str, _seconds: float) -> None:
        metrics.upstream_requests.labels(operation, status).inc()

    async with SegmindUpstream.open(
        base_url=base_url,
        api_key=key,
        clock=clock,
        on_call=on_call,
        result_hosts=hosts,
        history_url=history_url,
        protocols={model.name: model.protocol for model in catalog},
        text_models=frozenset(
            model.name for model in catalog if model.media_type.startswith(("text/", "application/json"))
        ),
        limits=Limits(
            connections=ours.connections,
            connect_seconds=ours.connect_timeout_seconds,
            answer_seconds=ours.answer_timeout_seconds,
            submit_attempts=ours.submit_attempts,
            poll_first_seconds=ours.poll_first_seconds * pace,
            poll_longest_seconds=ours.poll_longest_seconds * pace,
            polls_per_second=ours.polls_per_second,
        ),
    ) as upstream:
        yield upstream


def _account_key(upstream: UpstreamSettings, environment: Mapping[str, str]) -> Secret:
    if upstream.api_key_file is not None:
        try:
            key = upstream.api_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CannotStart(
                f"upstream.api_key_file: the file cannot be read ({error.strerror}); it is to hold the account's key."
            ) from error
        source = "the file that upstream.api_key_file names"
    else:
        variable = upstream.api_key_env or ""
        key = environment.get(variable, "").strip()
        source = f"the environment variable {variable} (upstream.api_key_env)"
    if not key:
        raise CannotStart(
            f"The upstream account's key is missing: put it into {source}, or set upstream.kind to sandbox "
            "to try the gateway without an account."
        )
    return Secret(key)


def _errands(
    settings: Settings,
    ledger: SqliteLedger,
    records: SqliteRequestRecords,
    tallies: SqliteTallies,
    upstream: SegmindUpstream,
    service: GenerationService,
    metrics: Metrics,
    count_stores: Callable[[], None],
    duty: Duty,
    clock: Clock,
) -> Sequence[Errand]:
    reconciliation = Reconciliation(
        resolution=ledger,
        statements=ledger,
        history=upstream,
        clock=clock,
        history_lag_seconds=settings.reconcile.history_lag_seconds,
        result_lifetime_seconds=settings.upstream.recollect_seconds,
    )
    watch = BalanceWatch(ask_credits=upstream.credits, statements=ledger)
    foreign = ForeignSpend(history=upstream, resolution=ledger, statements=ledger, clock=clock)

    async def write_down_counts() -> None:
        count_stores()
        await tallies.flush()

    async def reconcile() -> None:
        # What is asked of the upstream is asked by one process for all.
        if duty.is_ours():
            await reconciliation.settle_unknowns()

    async def watch_the_account() -> None:
        if duty.is_ours():
            seen = await watch.look()
            metrics.upstream_credits.set(seen.credits.usd_number)
            metrics.upstream_drift.set(seen.drift.usd_number)

    async def watch_for_foreign_spend() -> None:
        if duty.is_ours():
            metrics.foreign_spend.set((await foreign.total()).usd_number)

    async def forget() -> None:
        await records.forget_before(clock() - settings.requests.retention_seconds)

    interval_seconds = settings.reconcile.interval_seconds
    return (
        # Three tries before a lease is up.
        Errand("renew", ledger.renew, settings.ledger.lease_seconds / 3),
        Errand("write down counts", write_down_counts, 1.0),
        Errand("resume", service.resume, 3.0),
        Errand("reconcile", reconcile, interval_seconds),
        Errand("watch the account", watch_the_account, interval_seconds),
        Errand("watch for foreign spend", watch_for_foreign_spend, max(interval_seconds, 600.0)),
        Errand("forget", forget, 3600.0),
    )


async def _reading(
    tenants: Tenants,
    ledger: SqliteLedger,
    tallies: SqliteTallies,
    cache: DiskGenerationCache,
    blobs: DiskBlobStore,
) -> Reading:
    reserved: dict[str, Money] = {tenant.name: Money.ZERO for tenant in tenants}
    for (tenant_name, _), amount in (await ledger.reserved()).items():
        reserved[tenant_name] = reserved.get(tenant_name, Money.ZERO) + amount
    saved: dict[tuple[str, str, str], Money] = {}
    for place, tally in (await tallies.totals()).items():
        saved[*place, "hit"] = tally.saved_by_hits
        saved[*place, "collapsed"] = tally.saved_by_joining
    budgets = [
        BudgetReading(holder.name, balance.budget.label, balance.limit, balance.remaining)
        for holder in (Holder(tenant.name, "", tenant.budgets) for tenant in tenants)
        for balance in await ledger.balances_of([holder])
    ]
    open_purchases = await ledger.counts()
    return Reading(
        spent=await ledger.spent(),
        saved=saved,
        reserved=reserved,
        unknown=await ledger.unknown(),
        paid_and_lost=await ledger.lost(),
        budgets=budgets,
        cache_entries=cache.statistics().entries,
        blob_bytes=blobs.statistics().bytes_stored,
        in_flight=sum(count for state, count in open_purchases.items() if state is not State.UNKNOWN),
        waiting=open_purchases.get(State.QUEUED, 0),
    )


def _expectation(catalog: Catalog, request: GenerationRequest) -> Expectation | None:
    try:
        return catalog.find(request.model).expectation(request.parameters)
    except ModelUnknown:
        # It was bought while the model was in the catalogue.
        return None


def _expected_seconds(settings: Settings, catalog: Catalog, request: GenerationRequest) -> float | None:
    try:
        return catalog.find(request.model).expected_seconds(request.parameters) * _pace(settings)
    except ModelUnknown:
        # As above.
        return None


def _pace(settings: Settings) -> float:
    """What works fifty times as fast is asked fifty times as often."""
    is_sandbox = settings.upstream.kind == "sandbox"
    return min(1.0, max(settings.sandbox.time_scale, 0.01)) if is_sandbox else 1.0


def _prepared(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"storage.directory {directory} cannot be made: {error.strerror}.") from error
    return directory


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


def _link_secret(directory: Path) -> bytes:
    """What links to media are signed with: made at the first start, so that links outlive the process."""
    path = directory / "links.key"
    if not path.exists():
        # Several may start at once: it gets its name when it is whole, and the first stays.
        with tempfile.NamedTemporaryFile(dir=directory) as file, suppress(FileExistsError):
            file.write(secrets.token_bytes(_LINK_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
            path.hardlink_to(file.name)
    secret = path.read_bytes()
    if len(secret) != _LINK_SECRET_BYTES:
        raise CannotStart(
            "links.key under storage.directory is not whole: remove it, and links will be made anew."
        )
    return secret


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
