"""`gateway sandbox`"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Annotated

from cyclopts import Parameter

from gateway.app.opening import SYSTEM_CLOCK
from gateway.app.upstream import SANDBOX_KEY
from gateway.catalog.yaml_files import load_catalog
from gateway.cli.collector import settle_in
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.http.listening import listening
from gateway.sandbox.server import create_sandbox
from gateway.settings import Settings
from gateway.telemetry import logs


def sandbox(
    options: Options = FILE_AND_ENVIRONMENT,
    *,
    until_eof: Annotated[bool, Parameter(show=False, negative=())] = False,
) -> None:
    """Run the stand-in for the upstream until it is told to stop.

    Parameters
    ----------
    until_eof
        Stop when standard input ends, too: with whoever holds its other end.
    """
    settings = options.settings()
    logs.configure(settings.log.level)
    asyncio.run(_run(settings, until_eof=until_eof))


async def _run(settings: Settings, *, until_eof: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        loop.add_reader(sys.stdin, _read_to_the_end, loop, stop)
    application = create_sandbox(
        catalog=load_catalog(settings.models),
        directory=settings.sandbox_directory,
        public_url=None,
        time_scale=settings.sandbox.time_scale,
        clock=SYSTEM_CLOCK,
    )
    host, port = settings.sandbox.host, settings.sandbox.port
    async with listening(application, host, port, settings.listen.keepalive_seconds) as url:
        settle_in()
        print(f"Sandbox  {url}", flush=True)
        if not until_eof:
            print(f"Key      {SANDBOX_KEY}   (its first account; no real video, no real money)", flush=True)
            print(f"Bill     {url}/sandbox/bill", flush=True)
        await stop.wait()


def _read_to_the_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin)
        stop.set()
