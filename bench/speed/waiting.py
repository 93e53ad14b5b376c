"""Callers of v1 who wait: what each costs in memory, and all of them in processor time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.paid_once.scenes import Request
from bench.speed.servers import Server

_AT_ONCE = 100
_ANSWERED_WITHIN_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Waited:
    callers: int
    answered: int
    early: int
    """How many had an answer before the memory was read: they did not wait."""

    asked_upstream: int
    """How many generations were asked of the upstream for all of them."""

    bytes_each: float
    cores: float
    """What the server used while all waited and nothing came or went."""


async def wait_together(server: Server, requests: Sequence[Request], *, hold_seconds: float) -> Waited:
    """All ask at once, and the upstream holds them for `hold_seconds`.

    Memory is read when half of that time is over; processor time over the quarter that follows.
    """
    passed_on = await server.passed_on()
    before = server.program.resident_bytes()
    began = time.monotonic()
    asking = asyncio.Semaphore(_AT_ONCE)
    callers = [asyncio.create_task(_ask(request, asking)) for request in requests]
    try:
        await asyncio.sleep(hold_seconds / 2)
        early = sum(caller.done() for caller in callers)
        memory = server.program.resident_bytes() - before
        cpu, looked = server.program.cpu_seconds(), time.monotonic()
        await asyncio.sleep(began + hold_seconds * 0.75 - time.monotonic())
        cores = (server.program.cpu_seconds() - cpu) / (time.monotonic() - looked)
        async with asyncio.timeout(_ANSWERED_WITHIN_SECONDS):
            statuses = await asyncio.gather(*callers)
    finally:
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
    return Waited(
        len(requests),
        sum(status == 200 for status in statuses),
        early,
        await server.passed_on() - passed_on,
        memory / len(requests),
        cores,
    )


async def _ask(request: Request, asking: asyncio.Semaphore) -> int | None:
    """The status of the answer; None where there is none."""
    where = urlsplit(request.url)
    lines = [f"{request.method} {where.path} HTTP/1.1", f"Host: {where.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines += [f"Content-Length: {len(request.body or b'')}", "", ""]
    try:
        async with asking:
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write("\r\n".join(lines).encode() + (request.body or b""))
            await writer.drain()
    except OSError:
        return None
    try:
        status = (await reader.read()).split(b" ", 2)[1:2]
    except OSError:
        return None
    else:
        return int(status[0]) if status else None
    finally:
        writer.close()
