"""Requests sent at their own times, whatever becomes of those before: no slow answer makes the load lighter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.paid_once.scenes import Request


@dataclass(frozen=True, slots=True)
class Trip:
    """One request and its answer."""

    status: int
    """0 where none came."""

    seconds: float
    """From the first byte sent to the last byte received."""

    size_bytes: int
    """Of the answer's body."""


class _Caller(asyncio.Protocol):
    """A connection that is kept; answers have to say how long they are."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._left = 0
        self._status = self._size = 0
        self._began = 0.0
        self._trip: asyncio.Future[Trip] | None = None

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- a stream's
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- why, does not matter here
        self._transport = None
        self._arrive(0)

    def send(self, message: bytes) -> asyncio.Future[Trip]:
        assert self._transport is not None  # noqa: S101 -- only a usable one is sent with
        self._trip = asyncio.get_running_loop().create_future()
        self._head, self._left, self._size, self._status = b"", 0, 0, 0
        self._began = time.perf_counter()
        self._transport.write(message)
        return self._trip

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._status = int(head[9:12])
            lowered = head.lower()
            at = lowered.find(b"content-length:")
            self._size = self._left = int(lowered[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0
            self._left -= len(body)
        else:
            self._left -= len(data)
        if self._left <= 0:
            self._arrive(self._status)

    def _arrive(self, status: int) -> None:
        if self._trip is not None and not self._trip.done():
            self._trip.set_result(Trip(status, time.perf_counter() - self._began, self._size))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class OpenLoop:
    """Sends on connections of its own, as many as it needs; they stay open between `run`s."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Caller]] = {}

    async def run(self, requests: Sequence[Request], *, rate: float) -> Sequence[Trip]:
        """`rate` requests a second, in their order, each once."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        trips = []
        for number, request in enumerate(requests):
            if (wait := began + number / rate - loop.time()) > 0:
                await asyncio.sleep(wait)
            trips.append(asyncio.create_task(self._send(request)))
        return await asyncio.gather(*trips)

    async def _send(self, request: Request) -> Trip:
        where = urlsplit(request.url)
        idle = self._idle.setdefault(where.netloc, [])
        caller = None
        while idle and caller is None:
            # The one that was used last: a kept connection that is used is not hung up on.
            caller = idle.pop() if idle[-1].usable else (idle.pop(), None)[1]
        if caller is None:
            _, caller = await asyncio.get_running_loop().create_connection(
                _Caller, where.hostname or "", where.port or 0
            )
        trip = await caller.send(message(request))
        if caller.usable:
            idle.append(caller)
        return trip

    def close(self) -> None:
        for idle in self._idle.values():
            for caller in idle:
                caller.close()


async def trip(url: str, sent: bytes, arriving: asyncio.Semaphore) -> Trip:
    """One request on a connection of its own, which is made and written to within `arriving`. Raises OSError."""
    where = urlsplit(url)
    async with arriving:
        _, caller = await asyncio.get_running_loop().create_connection(
            _Caller, where.hostname or "", where.port or 0
        )
        answer = caller.send(sent)
        # A turn of the loop, in which others are answered.
        await asyncio.sleep(0)
    try:
        return await answer
    finally:
        caller.close()


def message(request: Request) -> bytes:
    """The request as it goes over the wire."""
    where = urlsplit(request.url)
    lines = [f"{request.method} {where.path} HTTP/1.1", f"Host: {where.netloc}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines += [f"Content-Length: {len(request.body or b'')}", "", ""]
    return "\r\n".join(lines).encode() + (request.body or b"")


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
