"""A stand-in for the upstream that costs next to nothing: for measuring the gateway, never for testing it.

It speaks as much of v1 (one long call) and v2 (submit, poll, result, download) as the gateway uses. Each request says itself
how long it takes and what it is answered with: `milliseconds`, `bytes`. No two answers are equal. What is real about an
upstream (its faults, its bill, its media) has the sandbox.

`python -m bench.speed.stub --port 9200 [--video FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import resource
import signal
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson

from bench.paid_once.ours import PROJECT
from bench.paid_once.programs import free_port
from bench.speed.machine import Cores, Measured, pinned
from bench.speed.servers import Sandbox

MILLISECONDS, SIZE = "milliseconds", "bytes"
"""Parameters of every model here: how long it takes, and how much it makes."""

_VIDEO = "video"
_COST_USD = "0.01"
_BACKLOG = 16_384
_UNIQUE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Stub(Sandbox):
    """The stub, as the programs that are put in front of it see it."""

    async def jobs(self) -> int:
        return (await self.counts())["sold"]

    async def counts(self) -> dict[str, int]:
        """What it has sold, how often it was polled, and how many calls it holds open now."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/stub/counts") as counts:
            told: dict[str, int] = await counts.json()
            return told


@asynccontextmanager
async def stub(root: Path, cores: Cores, *, video: Path | None = None) -> AsyncIterator[Stub]:
    """The stub in a process of its own, beside the load generator. `video` is what `bench-video` models answer with."""
    port = free_port()
    more: list[str | Path] = [] if video is None else ["--video", video]
    program = Measured(
        pinned([sys.executable, "-m", "bench.speed.stub", "--port", str(port), *more], cores.load),
        log=root / "stub.log", directory=PROJECT,
    )  # fmt: skip
    try:
        await program.start(until="Stub")
        yield Stub(f"http://127.0.0.1:{port}")
    finally:
        await program.stop()


def write_models(directory: Path) -> Sequence[str]:
    """Models that the stub makes, for a gateway in front of it: their names."""
    directory.mkdir()
    names = []
    for kind, (modality, media_type) in _MODELS.items():
        for protocol in ("v1", "v2"):
            names.append(f"bench-{kind}-{protocol}")
            (directory / f"{names[-1]}.yaml").write_text(
                _MODEL.format(title=names[-1], modality=modality, media_type=media_type, protocol=protocol)
            )
    return names


_MODELS = {
    "text": ("text-to-text", "text/plain"),
    "data": ("text-to-data", "application/octet-stream"),
    _VIDEO: ("text-to-video", "video/mp4"),
}
_MODEL = """\
title: {title}
modality: {modality}
media_type: {media_type}
protocol: {protocol}
source: inferred
deadline_seconds: 600
expected_seconds: 30
parameters:
  prompt: {{type: string, required: true}}
  milliseconds: {{type: integer, default: 0}}
  bytes: {{type: integer, default: 1024}}
price: {{kind: ceiling, usd: 0.01, source: inferred}}
example: {{prompt: anything}}
"""


@dataclass(slots=True)
class _Job:
    model: str
    size_bytes: int
    made_at: float


class _Books:
    """Everything that all connections share."""

    def __init__(self, origin: str, video: bytes) -> None:
        self.origin = origin
        self.video = video
        self.jobs: dict[str, _Job] = {}
        self.numbers = itertools.count(1)
        self.sold = self.polls = self.held = 0
        self._padding = b"." * (1 << 20)

    def content(self, name: str, model: str, size_bytes: int) -> tuple[str, list[bytes]]:
        """Media type and pieces of what `model` makes: no other job has the same."""
        unique = name.encode().ljust(_UNIQUE_BYTES, b".")
        if model.startswith(f"bench-{_VIDEO}"):
            # A box that players skip, behind a real film.
            return "video/mp4", [self.video, struct.pack(">I4s", 8 + len(unique), b"free") + unique]
        media_type = "text/plain" if model.startswith("bench-text") else "application/octet-stream"
        pieces = [unique[:size_bytes]]
        rest = size_bytes - _UNIQUE_BYTES
        while rest > 0:
            pieces.append(self._padding[:rest])
            rest -= len(self._padding)
        return media_type, pieces


class _Connection(asyncio.Protocol):
    """One caller; one request at a time."""

    def __init__(self, books: _Books) -> None:
        self._books = books
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._close_after = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- a server of streams makes no others
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- why is nobody's concern
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._books.held -= 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = 0
        lowered = head.lower()
        if (at := lowered.find(b"content-length:")) >= 0:
            length = int(lowered[at + 15 : lowered.find(b"\r\n", at) if b"\r\n" in lowered[at:] else None])
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, target, _ = head.split(b" ", 2)
        self._close_after = b"connection: close" in lowered
        self._answer_to(method.decode(), target.decode(), rest[:length])

    def _answer_to(self, method: str, target: str, body: bytes) -> None:
        books = self._books
        path = target.partition("?")[0].strip("/").split("/")
        match method, path:
            case "POST", [("v1" | "v2") as protocol, model]:
                self._sell(protocol, model, orjson.loads(body))
            case "GET", ["v2", "requests", name, "status"] if job := books.jobs.get(name):
                books.polls += 1
                done = asyncio.get_running_loop().time() >= job.made_at
                self._json(
                    {"request_id": name, "status": "COMPLETED" if done else "PROCESSING", "metrics": {}}
                )
            case "GET", ["v2", "requests", name] if name in books.jobs:
                self._json(
                    {
                        "request_id": name,
                        "status": "COMPLETED",
                        "output": f"{books.origin}/files/{name}",
                        "metrics": {"cost": float(_COST_USD), "inference_time": 0.0},
                    }
                )
            case "GET", ["files", name] if job := books.jobs.pop(name, None):
                self._send(*books.content(name, job.model, job.size_bytes))
            case "GET", ["v1", "get-user-credits"]:
                self._json({"credits": 1e6 - books.sold * float(_COST_USD)})
            case "GET", ["inference-request", "request-history"]:
                self._json({"data": [], "total": 0})
            case "GET", ["stub", "counts"]:
                self._json({"sold": books.sold, "polls": books.polls, "held": books.held})
            case _:
                self._json({"error": f"Request {path[-1]} not found"}, status="404 Not Found")

    def _sell(self, protocol: str, model: str, asked: dict[str, object]) -> None:
        books = self._books
        seconds, size_bytes = int(str(asked.get(MILLISECONDS, 0))) / 1000, int(str(asked.get(SIZE, 1024)))
        name = f"{next(books.numbers):032x}"
        books.sold += 1
        loop = asyncio.get_running_loop()
        if protocol == "v2":
            books.jobs[name] = _Job(model, size_bytes, loop.time() + seconds)
            self._json({"request_id": name, "status": "QUEUED"})
        elif seconds:
            books.held += 1
            self._timer = loop.call_later(seconds, self._deliver, name, model, size_bytes)
        else:
            self._deliver(name, model, size_bytes)

    def _deliver(self, name: str, model: str, size_bytes: int) -> None:
        if self._timer is not None:
            self._timer = None
            self._books.held -= 1
        headers = f"x-request-id: {name}\r\nx-cost: {_COST_USD}\r\nx-generation-time: 0.0\r\n"
        self._send(*self._books.content(name, model, size_bytes), headers)

    def _json(self, content: dict[str, object], status: str = "200 OK") -> None:
        self._send("application/json", [json.dumps(content).encode()], status=status)

    def _send(
        self, media_type: str, pieces: Sequence[bytes], headers: str = "", status: str = "200 OK"
    ) -> None:
        if self._transport is None:
            return
        length = sum(map(len, pieces))
        head = f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n{headers}\r\n"
        if length < 1 << 16:
            self._transport.write(b"".join([head.encode(), *pieces]))
        else:
            self._transport.write(head.encode())
            for piece in pieces:
                self._transport.write(piece)
        if self._close_after:
            self._transport.close()


async def _serve(port: int, video: bytes) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    books = _Books(f"http://127.0.0.1:{port}", video)
    server = await loop.create_server(lambda: _Connection(books), "127.0.0.1", port, backlog=_BACKLOG)
    gc.collect()
    gc.freeze()
    print(f"Stub  {books.origin}", flush=True)  # noqa: T201 -- whoever started it waits for this line
    await stop.wait()
    server.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.stub", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--video", type=Path, help="what models called bench-video-... answer with")
    return parser.parse_args()


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options = _options()
    asyncio.run(_serve(options.port, options.video.read_bytes() if options.video else b""))
