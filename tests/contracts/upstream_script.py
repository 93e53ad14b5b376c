"""An upstream that does exactly what its script says, byte by byte where it matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire."""

    connection: int
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(
    status: int = 200,
    body: object = b"",
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str | None = "application/json",
    announced: int | None = None,
) -> Reply:
    """A whole answer; with `announced`, one that promises another length and then hangs up."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = len(content) if announced is None else announced
        lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {length}"]
        lines += [f"Content-Type: {content_type}"] if content_type else []
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()
        if announced is not None:
            writer.close()

    return reply


def raw(content: bytes) -> Reply:
    """Just these bytes, then the connection closes."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    return reply


hang_up = raw(b"")


def silent(content: bytes = b"") -> Reply:
    """These bytes, and then nothing more until the other side leaves."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        await reader.read()
        writer.close()

    return reply


class ScriptedServer:
    """Each target plays its replies one after the other, and the last one again and again."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.url = ""
        self.open_connections = 0
        self.most_connections = 0
        self._connections = 0
        self._scripts: dict[tuple[str, str], list[Reply]] = {}
        self._changed = asyncio.Condition()
        self._talks: set[asyncio.Task[None]] = set()

    def on(self, method: str, target: str, *replies: Reply) -> None:
        self._scripts[method, target] = list(replies)

    def seen(self, method: str, target: str | None = None) -> list[Request]:
        return [r for r in self.requests if r.method == method and target in {None, r.target}]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._changed, asyncio.timeout(20):
            await self._changed.wait_for(condition)

    async def saw(self, method: str, target: str, times: int = 1) -> None:
        await self.until(lambda: len(self.seen(method, target)) >= times)

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.create_task(self._talk(reader, writer))
        self._talks.add(talk)
        self.open_connections += 1
        self.most_connections = max(self.most_connections, self.open_connections)
        # However the talk ends, by the other side's leaving or by our stopping, it ends here.
        await asyncio.wait([talk])
        if not talk.cancelled() and isinstance(fault := talk.exception(), Exception):
            assert isinstance(fault, ConnectionError | asyncio.IncompleteReadError), fault
        self._talks.discard(talk)
        self.open_connections -= 1
        writer.close()
        await self._note()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = self._connections
        while not writer.is_closing():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            method, target, _ = first.split(" ")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(Request(connection, method, target, headers, body))
            await self._note()
            script = self._scripts.get((method, target), [answer(400, b"not in the script")])
            reply = script.pop(0) if len(script) > 1 else script[0]
            await reply(reader, writer)

    async def stop(self) -> None:
        for talk in self._talks:
            talk.cancel()
        await self.until(lambda: self.open_connections == 0)


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield scripted
    finally:
        server.close()
        await scripted.stop()
