"""Many slow downloads of something large, all at once: how much memory they cost. `python -m bench.speed.downloads [--quick]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Never
from urllib.parse import urlsplit

from bench.speed import servers
from bench.speed.load import on_the_wire
from bench.speed.machine import Cores, Measured, cores, stop_when_told
from bench.speed.questions import sound, write_models
from bench.speed.servers import Sandbox, Server

_BAR_MB = 64.0
_SIZE_BYTES = 20 << 20
_READ_BYTES = 128 * 1024
_READS_A_SECOND = 16
_RECEIVE_BUFFER_BYTES = 64 * 1024
_LOOKS_EVERY_SECONDS = 0.1
_BOUND_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Seen:
    clients: int
    whole: int
    """How many got every byte."""

    before_bytes: int
    most_bytes: int
    """The resident memory of the gateway before, and its most while they read."""

    @property
    def grown_megabytes(self) -> float:
        return (self.most_bytes - self.before_bytes) / 1e6


async def download_together(server: Server, *, clients: int, size_bytes: int) -> Seen:
    """All ask at once; each reads two megabytes a second, and no faster."""
    asked = sound(size_bytes)
    (body,) = await server.warm([asked])
    wire = on_the_wire(asked.of(server))
    before = server.program.resident_bytes()
    looks = [before]
    watching = asyncio.create_task(_watch(server.program, looks))
    readers = [asyncio.create_task(_download(server.url, wire, len(body))) for _ in range(clients)]
    try:
        whole = sum(await asyncio.gather(*readers))
    finally:
        for task in (watching, *readers):
            task.cancel()
        await asyncio.gather(watching, *readers, return_exceptions=True)
    return Seen(clients, whole, before, max(looks))


async def _watch(program: Measured, looks: list[int]) -> None:
    while True:
        looks.append(program.resident_bytes())
        await asyncio.sleep(_LOOKS_EVERY_SECONDS)


async def _download(url: str, wire: bytes, body_bytes: int) -> bool:
    """Whether every byte came."""
    loop = asyncio.get_running_loop()
    buffer = bytearray(_READ_BYTES)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        # What the system would buffer for a slow reader is not slowness that the server sees.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        where = urlsplit(url)
        try:
            await loop.sock_connect(connection, (where.hostname, where.port))
            await loop.sock_sendall(connection, wire)
            head = b""
            while b"\r\n\r\n" not in head:
                head += await loop.sock_recv(connection, 4096) or _gone()
            status, received = head[9:12], len(head.partition(b"\r\n\r\n")[2])
            due = loop.time()
            while received < body_bytes:
                allowed = _READ_BYTES
                while allowed and received < body_bytes:
                    count = await loop.sock_recv_into(connection, memoryview(buffer)[:allowed]) or _gone()
                    allowed -= count
                    received += count
                due += 1 / _READS_A_SECOND
                await asyncio.sleep(due - loop.time())
        except OSError:
            return False
    return status == b"200" and received == body_bytes


def _gone() -> Never:
    raise ConnectionResetError


async def _run(options: argparse.Namespace) -> dict[str, object]:
    stop_when_told()
    where = cores()
    if where.load:
        os.sched_setaffinity(0, where.load)
    with tempfile.TemporaryDirectory(prefix="downloads-") as name:
        root = Path(name)
        models = await asyncio.to_thread(write_models, root / "models")
        async with (
            asyncio.timeout(_BOUND_SECONDS),
            servers.sandbox(root, where, models=models) as sandbox,
        ):
            seen = [
                await _once(root / f"{number}", sandbox, where, models, options)
                for number in range(options.repetitions)
            ]
    return {"name": "downloads", "rows": [_row(seen)], "notes": []}


async def _once(
    root: Path, sandbox: Sandbox, where: Cores, models: Path, options: argparse.Namespace
) -> Seen:
    """With a gateway of its own: what one has grown by, another would not grow by again."""
    settings = [f"models={models}", *options.set]
    async with servers.gateway(root, sandbox, where, settings=settings) as gateway:
        seen = await download_together(gateway, clients=options.clients, size_bytes=options.size_bytes)
    told = f"{seen}: grew by {seen.grown_megabytes:.1f} MB"
    print(told, file=sys.stderr, flush=True)  # noqa: T201 -- progress, for who waits
    return seen


def _row(seen: Sequence[Seen]) -> dict[str, object]:
    grown = [one.grown_megabytes for one in seen]
    clients, missed = seen[0].clients, sum(one.clients - one.whole for one in seen)
    return {
        "what": f"{clients} clients download 20 MB at once, 2 MB/s each: memory grows by",
        "bar": f"< {_BAR_MB:g} MB",
        "value": median(grown),
        "unit": " MB",
        "low": min(grown),
        "high": max(grown),
        "met": median(grown) < _BAR_MB and not missed,
        "note": f"{missed} did not get every byte" if missed else "",
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.downloads", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: under twenty seconds")
    parser.add_argument("--clients", type=int, help="who download at once (default: 500; quick: 100)")
    parser.add_argument("--repetitions", type=int, help="each with a new gateway (default: 3; quick: 1)")
    parser.add_argument("--size-bytes", type=int, default=_SIZE_BYTES, help="of each (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], help="a setting of the gateway, as it takes it")
    options = parser.parse_args()
    options.clients = options.clients or (100 if options.quick else 500)
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(asyncio.run(_run(_options()))))  # noqa: T201 -- its result
