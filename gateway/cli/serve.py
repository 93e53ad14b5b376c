"""`gateway serve`"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.app import CannotStart, RunningGateway, running_gateway
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.settings import Settings
from gateway.telemetry import logs
from gateway.tenants.contract import TenantUnknown

_SANDBOX_START_SECONDS = 30.0
_DEMO_PROMPT = "A lighthouse in a storm, waves breaking over the rocks"


def serve(options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Run the gateway until it is told to stop (SIGTERM or Ctrl-C)."""
    settings = options.settings()
    logs.configure(settings.log.level)
    asyncio.run(_serve(options, settings))


async def _serve(options: Options, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_quit, stop)
    async with (
        _sandbox(options, settings) as sandbox_url,
        running_gateway(settings, environment=os.environ, sandbox_url=sandbox_url) as gateway,
    ):
        # What was built so far stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        print(await _greeting(settings, gateway), flush=True)
        await stop.wait()
        print("Stopping: no new work; generations under way may land.", flush=True)
        await gateway.drain()


def _stop_or_quit(stop: asyncio.Event) -> None:
    if stop.is_set():
        # Asked twice: whoever asks does not want to wait. The journal has everything.
        os._exit(1)
    stop.set()


async def _greeting(settings: Settings, gateway: RunningGateway) -> str:
    in_sandbox = settings.upstream.kind == "sandbox"
    upstream = (
        "the sandbox: no account, no money, no real video" if in_sandbox else settings.upstream.base_url
    )
    key = await _demo_key(gateway) if in_sandbox else None
    shown = "made by `gateway keys create TENANT`" if key is None else f"{key}   (tenant demo, made just now)"
    lines = [
        f"Gateway     {settings.listen.public_url or gateway.url}",
        f"Operations  {gateway.operations_url}/metrics",
        f"Tenant key  {shown}",
        f"Upstream    {upstream}",
        "",
    ]
    if key is not None:
        lines += [
            "Try it: the second time it comes from the cache, for nothing.",
            "",
            f"  curl -sS {gateway.url}/v1/ltx-2-19b-t2v -H 'x-api-key: {key}' -D - -o lighthouse.mp4 \\",
            f"""       -H 'Content-Type: application/json' -d '{{"prompt": "{_DEMO_PROMPT}"}}'""",
            "",
        ]
    return "\n".join(lines)


async def _demo_key(gateway: RunningGateway) -> str | None:
    """A key to try the gateway with; None where nobody is called `demo`."""
    try:
        return await gateway.keys.create("demo", "made at start")
    except TenantUnknown:
        return None


@asynccontextmanager
async def _sandbox(options: Options, settings: Settings) -> AsyncIterator[str | None]:
    """The sandbox as a process of its own, where one is asked for: its URL.

    It ends with this process, however that ends: when the pipe between them closes.
    """
    if settings.upstream.kind != "sandbox":
        yield None
        return
    overrides = [argument for override in options.set for argument in ("--set", override)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "sandbox", "--config", str(options.config), *overrides, "--until-eof",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for the gateway: the sandbox ends after it.
        process_group=0,
    )  # fmt: skip
    try:
        yield await _url_of(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(_SANDBOX_START_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _url_of(process: asyncio.subprocess.Process) -> str:
    """Where the sandbox listens, which is the first line that it says."""
    if process.stdout is None:
        raise CannotStart("The sandbox has no standard output.")
    try:
        async with asyncio.timeout(_SANDBOX_START_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    url = line.decode().split()[-1:]
    if not url:
        raise CannotStart("The sandbox did not start: what it says above is the reason.")
    return url[0]
