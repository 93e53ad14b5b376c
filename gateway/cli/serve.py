"""`gateway serve`"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Annotated

from cyclopts import Parameter

from gateway.app.opening import opened_directory
from gateway.app.running import running_gateway
from gateway.cli import children, tenants
from gateway.cli.collector import settle_in
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.cli.supervisor import running_workers
from gateway.database.errors import DatabaseTooNew
from gateway.documents.yaml_files import DocumentInvalid
from gateway.domain.errors import CannotStart, GatewayError, TenantUnknown
from gateway.settings import Settings
from gateway.telemetry import logs
from gateway.telemetry.logs import log_for
from gateway.tenants.contract import Keys

_SANDBOX_STOP_SECONDS = 30.0
_SAME_WORD_SECONDS = 1.0
"""A signal may arrive twice, to the process and to its group, and be one word all the same."""

_DEMO_PROMPT = "A lighthouse in a storm, waves breaking over the rocks"


def serve(
    options: Options = FILE_AND_ENVIRONMENT,
    *,
    workers: int | None = None,
    worker_of: Annotated[str | None, Parameter(show=False)] = None,
) -> None:
    """Run the gateway until it is told to stop (SIGTERM or Ctrl-C).

    Parameters
    ----------
    workers
        How many processes serve the port; listen.workers if it is left out.
    worker_of
        This is a worker of another `gateway serve`, whose sandbox, if it has one, is there.
    """
    if workers is not None:
        options = options.having(f"listen.workers={workers}")
    settings = options.settings()
    logs.configure(settings.log.level)
    _allow_open_files()
    if worker_of is not None:
        asyncio.run(_work(settings, sandbox_url=worker_of or None))
    else:
        asyncio.run(_serve(options, settings))


def _allow_open_files() -> None:
    """As many as the system lets us have: each who waits is one, and so may be what is waited for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call unlimited what they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(options: Options, settings: Settings) -> None:
    stop = _told_to_stop()
    async with AsyncExitStack() as closing:
        sandbox_url = await closing.enter_async_context(_sandbox(options, settings))
        keys: Keys | None = None
        if settings.listen.workers > 1:
            arguments = ["serve", *options.arguments(), "--worker-of", sandbox_url or ""]
            url, operations_url = await closing.enter_async_context(
                running_workers(settings, arguments, environment=os.environ)
            )
            drain = None
        else:
            gateway = await closing.enter_async_context(
                running_gateway(settings, environment=os.environ, sandbox_url=sandbox_url)
            )
            url, operations_url, drain = gateway.url, gateway.operations_url, gateway.drain
            keys = gateway.keys
        settle_in()
        key = await _demo_key(settings, keys) if sandbox_url else None
        closing.enter_context(_told_to_apply(options))
        print(_greeting(settings, url, operations_url, key), flush=True)
        await stop.wait()
        print("Stopping: no new work; generations under way may land.", flush=True)
        if drain is not None:
            await drain()


async def _work(settings: Settings, *, sandbox_url: str | None) -> None:
    """Serve beside other workers, until told to stop or until the supervisor is gone."""
    stop = _told_to_stop()
    # The supervisor applies the file of tenants, once for all.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    asyncio.get_running_loop().add_reader(sys.stdin, _read_to_the_end, stop)
    async with running_gateway(
        settings, environment=os.environ, sandbox_url=sandbox_url, shared_ports=True
    ) as gateway:
        settle_in()
        print(f"Worker  {gateway.url}", flush=True)
        await stop.wait()
        await gateway.drain()


def _told_to_stop() -> asyncio.Event:
    """Set by SIGTERM and by Ctrl-C. Told again a while later, the process ends where it stands."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    told_at = 0.0

    def tell() -> None:
        nonlocal told_at
        if not stop.is_set():
            told_at = loop.time()
            stop.set()
        elif loop.time() - told_at > _SAME_WORD_SECONDS:
            # Whoever asks twice does not want to wait. The journal has everything.
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    return stop


@contextmanager
def _told_to_apply(options: Options) -> Iterator[None]:
    """While the block runs, SIGHUP applies the file of tenants; one with mistakes changes nothing, and is told of."""
    loop, log = asyncio.get_running_loop(), log_for("tenants")
    under_way: set[asyncio.Task[None]] = set()

    async def apply() -> None:
        try:
            changes = await tenants.applied(options.settings(), who="SIGHUP")
        except (CannotStart, DatabaseTooNew, DocumentInvalid, GatewayError) as error:
            log.error("tenants not applied", error=str(error))  # noqa: TRY400 -- the text says it all
        else:
            log.info("tenants applied", changes=[change.what for change in changes])

    def tell() -> None:
        task = loop.create_task(apply())
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    loop.add_signal_handler(signal.SIGHUP, tell)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in under_way:
            task.cancel()


def _read_to_the_end(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin)
        stop.set()


def _greeting(settings: Settings, url: str, operations_url: str, key: str | None) -> str:
    in_sandbox = settings.upstream.kind == "sandbox"
    # Every address of the machine is an address to listen on, and none to be pasted.
    url = settings.listen.public_url or url.replace("//0.0.0.0:", "//127.0.0.1:")
    upstream = (
        "the sandbox: no account, no money, no real video" if in_sandbox else settings.upstream.base_url
    )
    shown = "made by `gateway keys create TENANT`" if key is None else f"{key}   (tenant demo, made just now)"
    lines = [
        f"Gateway     {url}",
        f"Operations  {operations_url}/metrics",
        f"Tenant key  {shown}",
        f"Upstream    {upstream}",
        "",
    ]
    if key is not None:
        lines += [
            "Try it: the second time it comes from the cache, for nothing.",
            "",
            f"  curl -sS {url}/v1/ltx-2-19b-t2v -H 'x-api-key: {key}' -D - -o lighthouse.mp4 \\",
            f"""       -H 'Content-Type: application/json' -d '{{"prompt": "{_DEMO_PROMPT}"}}'""",
            "",
        ]
    return "\n".join(lines)


async def _demo_key(settings: Settings, keys: Keys | None) -> str | None:
    """A key to try the gateway with; None where nobody is called `demo`. `keys` are opened where they are not yet."""
    try:
        if keys is not None:
            return await keys.create("demo", "made at start")
        async with opened_directory(settings) as opened:
            return await opened.create("demo", "made at start")
    except TenantUnknown:
        return None


@asynccontextmanager
async def _sandbox(options: Options, settings: Settings) -> AsyncIterator[str | None]:
    """The sandbox as a process of its own, where one is asked for: its URL."""
    if settings.upstream.kind != "sandbox":
        yield None
        return
    arguments = ["sandbox", *options.arguments(), "--until-eof"]
    sandbox = await children.start(arguments, environment=os.environ)
    try:
        yield sandbox.url
    finally:
        await sandbox.stop(_SANDBOX_STOP_SECONDS)
