"""Calls to the upstream on bare connections: purchases, and the questions that follow them.

A purchase gets a connection of its own: on one that was kept alive, a server's timely hanging up would look like silence
after a request. A question may travel on a kept one, and is asked once more where that proves to be gone.

Thousands of v1 calls may be open at once, for minutes each, and as many purchases are polled: so a call that waits is a
socket and little else, and a poll is a few lines of text each way. The HTTP client's session makes, for the same, an order
of magnitude more, of which nothing is used here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from gateway.upstream.limits import Limits

_ADDRESSES_SECONDS = 30.0
_KEPT_SECONDS = 15.0
_READ_BYTES = 1 << 18


class NotConnected(aiohttp.ClientError):
    """There never was a connection: not a byte has left."""


class Garbled(aiohttp.ClientError):
    """What came is no HTTP."""


class Once:
    """Bytes to be sent once: whoever waits for the answer, with thousands of others, perhaps, holds them no longer."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def take(self) -> bytes:
        """The bytes; from then on there are none."""
        content, self._content = self._content, b""
        return content


@dataclass(frozen=True, slots=True)
class OpenAnswer:
    """An answer whose head has arrived. Its body is still to come; whoever has it closes it."""

    status: int
    headers: Mapping[str, str]
    """Names in any case."""

    content: aiohttp.StreamReader
    """The body, unpacked."""

    connection: ResponseHandler
    keep: Callable[[ResponseHandler], None] | None = None
    """Takes the connection back that can be used again; None for one that is used once."""

    @property
    def content_type(self) -> str:
        """Without its parameters, in small letters; empty if it is not said."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def content_length(self) -> int | None:
        """As it travels; None if it is not said."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None

    def close(self) -> None:
        """Have done with it, whatever has come; may be called twice."""
        if self.keep is not None and self.content.is_eof() and not self.connection.should_close:
            self.keep(self.connection)
        else:
            self.connection.close()


class Calls:
    """Makes calls to one service, and hands their answers on open."""

    def __init__(self, origin: URL, *, headers: Mapping[str, str], limits: Limits) -> None:
        """`headers` go with each call."""
        self._host = origin.host or ""
        self._port = origin.port or 0
        # Made once, and at the start: it reads every authority that the machine trusts.
        self._tls = ssl.create_default_context() if origin.scheme == "https" else None
        self._head = "".join(
            f"{name}: {value}\r\n"
            for name, value in {
                "Host": origin.host_port_subcomponent or "",
                "Accept": "*/*",
                "Accept-Encoding": "gzip, deflate",
                **headers,
            }.items()
        )
        self._limits = limits
        self._addresses: Sequence[str] = ()
        self._addresses_until = 0.0
        self._kept: dict[ResponseHandler, float] = {}

    def close(self) -> None:
        """Hang up where nobody is asked any more."""
        for connection in self._kept:
            connection.close()
        self._kept.clear()

    async def post(self, target: str, body: Once) -> OpenAnswer:
        """POST JSON, once; `target` is the path, quoted. The caller sees to it that the wait has an end.

        Raises NotConnected or aiohttp.ConnectionTimeoutError when nothing was sent, and other kinds of
        aiohttp.ClientError when something may have been.
        """
        content = body.take()
        head = (
            f"POST {target} HTTP/1.1\r\n{self._head}Connection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        message = Once(head.encode("latin-1") + content)
        del content
        return await self._exchanged(await self._connected(), message)

    async def get(self, target: str) -> OpenAnswer:
        """GET, on a kept connection if there is one; else as `post`."""
        message = f"GET {target} HTTP/1.1\r\n{self._head}\r\n".encode("latin-1")
        if (kept := self._take()) is not None:
            with suppress(aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                return await self._exchanged(kept, Once(message), self._keep)
        return await self._exchanged(await self._connected(), Once(message), self._keep)

    def _keep(self, connection: ResponseHandler) -> None:
        self._kept[connection] = asyncio.get_running_loop().time()

    def _take(self) -> ResponseHandler | None:
        """The one that was used last: the others may rest, and be hung up on."""
        fresh_since = asyncio.get_running_loop().time() - _KEPT_SECONDS
        while self._kept:
            connection, used_at = self._kept.popitem()
            if used_at >= fresh_since and connection.is_connected() and not connection.should_close:
                return connection
            connection.close()
        return None

    async def _exchanged(
        self,
        connection: ResponseHandler,
        message: Once,
        keep: Callable[[ResponseHandler], None] | None = None,
    ) -> OpenAnswer:
        try:
            assert connection.transport is not None  # noqa: S101 -- connected just now, or looked at
            connection.transport.write(message.take())
            while True:
                head, content = await connection.read()
                if not 100 <= head.code < 200:
                    return OpenAnswer(head.code, head.headers, content, connection, keep)
        except HttpProcessingError as fault:
            connection.close()
            raise Garbled(str(fault)) from None
        except BaseException:
            connection.close()
            raise

    async def _connected(self) -> ResponseHandler:
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                return await self._connect()
        except TimeoutError as late:
            raise aiohttp.ConnectionTimeoutError("no connection in time") from late
        except OSError as fault:
            # Asked for anew next time: a service that has moved is not where it was.
            self._addresses_until = 0.0
            raise NotConnected(str(fault)) from fault

    async def _connect(self) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        addresses = await self._resolved(loop)
        for left, address in enumerate(addresses, start=1 - len(addresses)):
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop),
                    address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
            except OSError:
                if not left:
                    raise
            else:
                return connection
        raise AssertionError("the last address connects or raises")

    async def _resolved(self, loop: asyncio.AbstractEventLoop) -> Sequence[str]:
        if loop.time() >= self._addresses_until:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = tuple(dict.fromkeys(str(address[0]) for *_, address in found))
            self._addresses_until = loop.time() + _ADDRESSES_SECONDS
        return self._addresses


class _Connection(ResponseHandler):
    """Reads its answer by aiohttp's own parser, which it makes when the answer comes."""

    def data_received(self, data: bytes) -> None:
        if self._parser is None and data:
            self.set_response_params(read_until_eof=True, read_bufsize=_READ_BYTES)
        super().data_received(data)
