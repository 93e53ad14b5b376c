"""Several workers on one port: one that dies is replaced, and takes nobody with it."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

from prometheus_client import multiprocess

from gateway.app.running import METRICS_VARIABLE
from gateway.cli import children
from gateway.cli.children import Child
from gateway.domain.errors import CannotStart
from gateway.settings import Settings
from gateway.telemetry.logs import log_for

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 30.0
_MARGIN_SECONDS = 10.0


@asynccontextmanager
async def running_workers(
    settings: Settings, arguments: Sequence[str], *, environment: Mapping[str, str]
) -> AsyncIterator[tuple[str, str]]:
    """`settings.listen.workers` workers, for as long as the block runs: where callers and operators reach them.

    `arguments` are what a worker is started with. At the end each gets the time that `shutdown.grace_seconds` gives.
    """
    async with AsyncExitStack() as stack:
        ports = [
            stack.enter_context(closing(_reserved(address.host, address.port)))
            for address in (settings.listen, settings.operations)
        ]
        listen, operations = (str(port.getsockname()[1]) for port in ports)
        counts = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-metrics-"))
        supervisor = _Supervisor(
            [
                *arguments,
                *("--set", f"listen.port={listen}", "--set", f"operations.port={operations}"),
            ],
            environment={**environment, METRICS_VARIABLE: counts},
            grace_seconds=settings.shutdown.grace_seconds,
            counts=Path(counts),
        )
        await supervisor.start(settings.listen.workers)
        stack.push_async_callback(supervisor.stop)
        yield (
            f"http://{settings.listen.host}:{listen}",
            f"http://{settings.operations.host}:{operations}",
        )


class _Supervisor:
    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        counts: Path,
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._grace_seconds = grace_seconds
        self._counts = counts
        self._workers: dict[int, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._log = log_for("supervisor")

    async def start(self, workers: int) -> None:
        """Start that many, and keep their number. Raises CannotStart when they cannot be started at all."""
        for place in range(workers):
            await self._start(place)
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(workers)]

    async def stop(self) -> None:
        """End them all, each with its grace."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        within_seconds = self._grace_seconds + _MARGIN_SECONDS
        await asyncio.gather(*(worker.stop(within_seconds) for worker in self._workers.values()))

    async def _start(self, place: int) -> None:
        starting = asyncio.create_task(children.start(self._arguments, environment=self._environment))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # All are to stop, and this one is neither here nor there: it is let in, to be shown out with the others.
            with suppress(CannotStart):
                self._workers[place] = await starting
            raise
        self._workers[place] = starting.result()

    async def _keep(self, place: int) -> None:
        """Replace the worker at `place` whenever it dies; ever more slowly if it dies again and again."""
        loop = asyncio.get_running_loop()
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            worker, started_at = self._workers[place], loop.time()
            status = await worker.process.wait()
            self._log.error("worker died", pid=worker.process.pid, status=status)
            multiprocess.mark_process_dead(  # type: ignore[no-untyped-call]  # it has no types
                worker.process.pid, str(self._counts)
            )
            if loop.time() - started_at > _STEADY_SECONDS:
                pause_seconds = _FIRST_PAUSE_SECONDS
            while True:
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
                try:
                    await self._start(place)
                except CannotStart as error:
                    self._log.error("worker not replaced", error=str(error))
                else:
                    break


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that holds a port for the workers, and to which the kernel deals nothing, since it does not listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # What is left for a minute of connections of a gateway that served the port alone is in nobody's way.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise CannotStart(
            f"Cannot listen on {host}:{port}: {error.strerror}. Stop what is listening there, or choose another "
            "port with --set (listen.port, operations.port)."
        ) from error
    return reserved
