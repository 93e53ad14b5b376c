"""Files of the upstream, fetched without its key and only from the hosts that are allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from yarl import URL

from gateway.domain.errors import ResultGone, ResultUnavailable
from gateway.domain.generation import Artifact
from gateway.upstream.answers import Quote
from gateway.upstream.calls import NotConnected
from gateway.upstream.limits import Limits, growing
from gateway.upstream.products import declared_media_type

OnCall = Callable[[str, str, float], None]
"""Told of every call: the operation, the status or the word for its lack, the seconds that it took."""

NETWORK_FAULTS = (aiohttp.ClientError, OSError)
"""What aiohttp raises when the network fails; TimeoutError is an OSError."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 3
_SNIFFED_BYTES = 16


class Response(Protocol):
    """An answer whose body is still to come, whichever client has asked."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> aiohttp.StreamReader: ...

    @property
    def content_length(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file of which the first bytes are here."""

    response: aiohttp.ClientResponse
    first_bytes: bytes


class Downloads:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        hosts: frozenset[str],
        schemes: frozenset[str],
        limits: Limits,
        quote: Quote,
        on_call: OnCall,
    ) -> None:
        self._session = session
        self._hosts = hosts
        self._schemes = schemes
        self._limits = limits
        self._quote = quote
        self._on_call = on_call

    def allowed(self, url: str) -> URL:
        """`url`, fit to be fetched; ResultUnavailable, which names host and setting, if it is not."""
        try:
            parsed = URL(url)
            host, port = parsed.host, parsed.port
        except ValueError:
            host, port = None, None
        if host is None or port is None:
            raise ResultUnavailable(
                "The upstream gave an address for the result that is none. It stays paid for."
            )
        if host not in self._hosts:
            raise ResultUnavailable(
                f"The upstream put the result on the host {self._quote(host)}, which is not among result_hosts. "
                "It is paid for and stays so; once the operator has added the host it is fetched, not bought again."
            )
        if parsed.scheme not in self._schemes or parsed.user is not None or parsed.password is not None:
            raise ResultUnavailable(
                f"The upstream gave an address on {host} for the result that is not plain "
                f"{' or '.join(sorted(self._schemes))}. It stays paid for."
            )
        return parsed

    @asynccontextmanager
    async def opened(self, url: URL) -> AsyncIterator[Artifact]:
        """The file as an artifact, its first bytes at hand.

        Raises ResultUnavailable or, when the file is not there any more, ResultGone; from the artifact's chunks too.
        """
        opened = await self._first_bytes(url)
        try:
            yield artifact(opened.response, opened.first_bytes, limits=self._limits, on_call=self._on_call)
        finally:
            opened.response.close()

    async def _first_bytes(self, url: URL) -> _Opened:
        """Until a first byte is given on, a fault is nobody's but ours to repair."""
        backoffs = growing(self._limits.download_backoff_seconds)
        attempts_left = self._limits.download_attempts
        while True:
            outcome = await self._try(url)
            if isinstance(outcome, _Opened):
                return outcome
            attempts_left -= 1
            if attempts_left <= 0:
                raise outcome
            await asyncio.sleep(next(backoffs))

    async def _try(self, url: URL) -> _Opened | ResultUnavailable:
        for _ in range(_MOST_REDIRECTS + 1):
            outcome = await self._open(url)
            if not isinstance(outcome, str):
                return outcome
            url = self.allowed(outcome)
        return ResultUnavailable(
            "The upstream sends the download of the result round in circles. It stays paid for."
        )

    async def _open(self, url: URL) -> _Opened | str | ResultUnavailable:
        """One request: the file, or the address that it redirects to, or what is wrong."""
        started = asyncio.get_running_loop().time()
        outcome: _Opened | str | ResultUnavailable
        with ExitStack() as closing:
            try:
                response = await self._session.get(url, allow_redirects=False)
                closing.callback(response.close)
                status = str(response.status)
                if isinstance(outcome := await self._outcome(response), _Opened):
                    closing.pop_all()
            except NETWORK_FAULTS as fault:
                status = word(fault)
                outcome = ResultUnavailable(
                    f"The download of the result failed ({status}). It stays paid for."
                )
        self._on_call("download", status, asyncio.get_running_loop().time() - started)
        return outcome

    async def _outcome(self, response: aiohttp.ClientResponse) -> _Opened | str | ResultUnavailable:
        if response.status in _REDIRECTS and (location := response.headers.get("location")):
            try:
                return str(response.url.join(URL(location)))
            except ValueError:
                return location
        if response.status in {403, 404, 410}:
            return ResultGone(
                f"The upstream made the result and does not have its file any more ({response.status}). It was paid for."
            )
        if response.status != 200:
            return ResultUnavailable(
                f"The download of the result was answered with {response.status}. It stays paid for."
            )
        if (response.content_length or 0) > self._limits.artifact_max_bytes:
            return _too_long(self._limits)
        first_bytes = await beginning(response, self._limits)
        return (
            _Opened(response, first_bytes)
            if first_bytes
            else ResultUnavailable("The upstream's file of the result is empty. It stays paid for.")
        )


async def beginning(response: Response, limits: Limits) -> bytes:
    """A body's first bytes, enough to tell its kind; fewer only if it ends there."""
    read = b""
    async with asyncio.timeout(limits.download_read_seconds):
        while len(read) < _SNIFFED_BYTES and (chunk := await response.content.readany()):
            read += chunk
    return read


def artifact(response: Response, first_bytes: bytes, *, limits: Limits, on_call: OnCall) -> Artifact:
    """An open response as an artifact. Its chunks raise ResultUnavailable when the body breaks off."""
    packed = response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}
    return Artifact(
        media_type=declared_media_type(response.headers, first_bytes),
        chunks=_chunks(response, first_bytes, limits, on_call),
        # The length of what is packed says nothing of what comes out.
        size_bytes=None if packed else response.content_length,
    )


async def _chunks(
    response: Response, first_bytes: bytes, limits: Limits, on_call: OnCall
) -> AsyncIterator[bytes]:
    chunk, size_bytes = first_bytes, 0
    while chunk:
        size_bytes += len(chunk)
        if size_bytes > limits.artifact_max_bytes:
            raise _too_long(limits)
        yield chunk
        # Translated here and not around the yield: what the reader does with a chunk is its own affair.
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limits.download_read_seconds):
                chunk = await response.content.readany()
        except NETWORK_FAULTS as fault:
            on_call("download", word(fault), asyncio.get_running_loop().time() - started)
            raise ResultUnavailable(
                f"The download of the result broke off after {size_bytes} bytes ({word(fault)}). It stays paid for."
            ) from fault


def _too_long(limits: Limits) -> ResultUnavailable:
    return ResultUnavailable(
        f"The result is longer than {limits.artifact_max_bytes} bytes, which is more than is taken. It stays paid for."
    )


def word(fault: Exception) -> str:
    """A network fault in one word, for metrics and texts."""
    match fault:
        case aiohttp.ClientConnectorError() | NotConnected():
            return "refused"
        case TimeoutError():
            return "timeout"
        case _:
            return "disconnected"
