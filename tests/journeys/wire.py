"""A caller who writes what it likes to the socket, and reads when it likes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.journeys.running import MODEL, House, video

PATIENCE_SECONDS = 60.0
FAREWELL = b"GET /farewell HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
"""Is answered with 404, and ends the connection: whoever sends it last can read to the end."""

SMALL = json.dumps(video()).encode()
"""Asks for what the hit path keeps in memory."""

LARGE = json.dumps(video(width=640, height=640, num_frames=25)).encode()
"""Asks for what it keeps as an open file."""

_QUIET_SECONDS = 1.0
_MOST_REPETITIONS = 20
_TURNS = 6
_MOST_TURNS = 200
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_PASSING = re.compile(rb"(?<=\r\n)(Date|Age): [^\r\n]*")
_TIMES = re.compile(rb'"(?:queue|total)_time":[0-9.e-]+')
_LENGTH = re.compile(rb"Content-Length: [0-9]+")


def asking(
    body: bytes, *, key: str, model: str = MODEL, headers: Iterable[tuple[str, str]] = (), length: str = ""
) -> bytes:
    """A plain POST /v1/{model}, with more headers, or another Content-Length than the right one."""
    lines = [
        f"POST /v1/{model} HTTP/1.1",
        "Host: gateway",
        f"x-api-key: {key}",
        "Content-Type: application/json",
        f"Content-Length: {length or len(body)}",
        *(f"{name}: {value}" for name, value in headers),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1") + body


def fetching(target: str, *headers: str, method: str = "GET") -> bytes:
    """A plain GET of `target`."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: gateway", *headers, "", ""]).encode("latin-1")


@dataclass(frozen=True)
class Reply:
    """One answer, as it came."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def cache(self) -> str:
        """The Cache-Status without its key."""
        return self.headers["cache-status"].partition("; key=")[0].removeprefix("gateway; ")

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in small letters."""
        lines = self.head.decode().rstrip().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


class Wire:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._loop = asyncio.get_running_loop()
        self._come = bytearray()

    async def send(self, *pieces: bytes, turns: int = _TURNS) -> None:
        """Send the pieces one by one, so many turns of the loop apart: a gateway on this very loop reads each by itself."""
        for piece in pieces:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._loop.sock_sendall(self.socket, piece)
            for _ in range(turns if len(pieces) > 1 else 0):
                await asyncio.sleep(0)

    async def more(self) -> bytes:
        """Whatever comes next; nothing at the end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._loop.sock_recv(self.socket, 1 << 20)

    async def ask(self, request: bytes) -> Reply:
        """Send it, and read what is said."""
        await self.send(request)
        return await self.reply()

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next answer, whole; `head_only` where there is no body to come."""
        reply = await self.head()
        without = head_only or reply.status in {204, 304}
        return Reply(reply.head, b"" if without else await self.take(int(reply.headers["content-length"])))

    async def head(self) -> Reply:
        """The head of the next answer; its body is left where it is."""
        while b"\r\n\r\n" not in self._come:
            await self._come_on()
        head, blank, rest = bytes(self._come).partition(b"\r\n\r\n")
        self._come = bytearray(rest)
        return Reply(head + blank, b"")

    async def take(self, count: int) -> bytes:
        """So many bytes."""
        while len(self._come) < count:
            await self._come_on()
        taken = bytes(self._come[:count])
        del self._come[:count]
        return taken

    async def _come_on(self) -> None:
        more = await self.more()
        if not more:
            raise ConnectionResetError(f"closed after {bytes(self._come[:200])!r}")
        self._come += more

    async def try_to_send(self, request: bytes) -> bool:
        """Send a request to a gateway on this very loop, unless nobody has taken what was sent before."""
        sent = 0
        for _ in range(_MOST_TURNS):
            with suppress(BlockingIOError):
                sent += self.socket.send(request[sent:])
            if sent == len(request):
                break
            await asyncio.sleep(0)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return sent == len(request)

    async def rest(self, *, tell: bool = True) -> bytes:
        """All that comes until the other side closes. Where it waits for more, it is told, if it is, that there is none."""
        told = not tell
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    async with asyncio.timeout(None if told else _QUIET_SECONDS):
                        more = await self._loop.sock_recv(self.socket, 1 << 20)
                except TimeoutError:
                    told = True
                    with suppress(OSError):
                        self.socket.shutdown(socket.SHUT_WR)
                    continue
                except ConnectionResetError:
                    more = b""
                if not more:
                    rest, self._come = bytes(self._come), bytearray()
                    return rest
                self._come += more

    def end(self) -> None:
        """Send no more, and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Hang up without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@asynccontextmanager
async def wired(url: str, *, receive_bytes: int | None = None) -> AsyncIterator[Wire]:
    """A connection to `url`; with `receive_bytes`, to a caller whose kernel takes about so much ahead."""
    address = urlsplit(url)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
        yield Wire(sock)
    finally:
        sock.close()


async def conversation(url: str, *pieces: bytes, turns: int = _TURNS) -> bytes:
    """All that comes back for these pieces, and a farewell, until the connection ends."""
    async with wired(url) as wire:
        reading = asyncio.create_task(wire.rest())
        with suppress(ConnectionError):
            await wire.send(*pieces, FAREWELL, turns=turns)
        return await reading


async def learnt(house: House, wire: Wire, *requests: bytes) -> list[Reply]:
    """What is answered to each, once the hit path answers it; where there is none, the second time."""
    replies = []
    for request in requests:
        reply = await wire.ask(request)
        for _ in range(_MOST_REPETITIONS):
            known = await house.answered_by_heart()
            reply = await wire.ask(request)
            assert reply.status in {200, 206}, reply.head
            if not house.hit_path or await house.answered_by_heart() > known:
                break
        else:
            raise AssertionError(f"never learnt: {request!r}")
        replies.append(reply)
    return replies


def lasting(raw: bytes) -> bytes:
    """An answer, or several, without what differs from answer to answer: dates, ages, ids."""
    masked = _PASSING.sub(rb"\1: -", _UUID.sub(b"UUID", raw))
    if _TIMES.search(masked):
        masked = _LENGTH.sub(b"Content-Length: -", _TIMES.sub(b"TIME", masked))
    return masked
