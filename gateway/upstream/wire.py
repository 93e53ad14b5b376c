"""Every call that carries the key."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from contextlib import ExitStack
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from gateway.upstream.answers import Answer, Silence
from gateway.upstream.calls import Calls, NotConnected, Once, OpenAnswer
from gateway.upstream.downloads import NETWORK_FAULTS, OnCall, Response, word
from gateway.upstream.limits import Limits
from gateway.upstream.secret import Secret

_LONGEST_QUOTE = 500

_Outcome = TypeVar("_Outcome", Answer | Silence, OpenAnswer | Answer | Silence)


def segment(name: str) -> str:
    """`name` as one segment of a path, whatever it holds."""
    return quote(name, safe="")


class Wire:
    """Asks, and answers with values: a network's error holds the request's headers, and so the key.

    No redirect is followed. A GET may be sent twice, where a kept connection proves to be gone; a POST never is.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: Secret,
        calls: Calls,
        questions: aiohttp.ClientSession,
        limits: Limits,
        on_call: OnCall,
    ) -> None:
        self._path = URL(base_url).raw_path.rstrip("/")
        self._api_key = api_key
        self._calls = calls
        self._buying_at_once = asyncio.Semaphore(limits.connections)
        self._asking_at_once = asyncio.Semaphore(limits.connections)
        self._questions = questions
        self._limits = limits
        self._on_call = on_call

    def quote(self, text: str) -> str:
        """A text of the upstream's, fit for callers: without keys, on one line, of sane length, without its full stop."""
        # In any case of letters: a host's name comes in small ones.
        clean = re.sub(rf"{re.escape(self._api_key.reveal())}|SG_[0-9A-Z]+", "...", text, flags=re.IGNORECASE)
        clean = " ".join("".join(c if c.isprintable() else " " for c in clean).split())
        return (clean if len(clean) <= _LONGEST_QUOTE else clean[:_LONGEST_QUOTE] + "...").removesuffix(".")

    async def submit(self, path: str, body: Once) -> Answer | Silence:
        """POST a purchase, once."""
        started_at = asyncio.get_running_loop().time()
        return self._counted("submit", await self._bought(path, body), started_at)

    async def ask(self, operation: str, path: str, *, base_url: str | None = None) -> Answer | Silence:
        """GET something that costs nothing; `base_url` for another service of the upstream's."""
        asked = self._looked_up(base_url + path) if base_url else self._asked(path)
        started_at = asyncio.get_running_loop().time()
        return self._counted(operation, await asked, started_at)

    async def submit_and_wait(self, path: str, body: Once) -> OpenAnswer | Answer | Silence:
        """POST a v1 purchase, once: a success is answered open, its body still to come, and to be closed."""
        started_at = asyncio.get_running_loop().time()
        return self._counted("submit", await self._awaited(path, body), started_at)

    def _counted(self, operation: str, outcome: _Outcome, started_at: float) -> _Outcome:
        status = outcome.word if isinstance(outcome, Silence) else str(outcome.status)
        self._on_call(operation, status, asyncio.get_running_loop().time() - started_at)
        return outcome

    async def _asked(self, path: str) -> Answer | Silence:
        async with self._asking_at_once:
            return await self._answered(self._calls.get(self._path + path))

    async def _bought(self, path: str, body: Once) -> Answer | Silence:
        async with self._buying_at_once:
            return await self._answered(self._calls.post(self._path + path, body))

    async def _answered(self, call: Awaitable[OpenAnswer]) -> Answer | Silence:
        with ExitStack() as closing:
            response: OpenAnswer | None = None
            try:
                async with asyncio.timeout(self._limits.answer_seconds):
                    response = await call
                    closing.callback(response.close)
                    return Answer(response.status, response.headers, await self._read(response))
            except NETWORK_FAULTS as fault:
                return _broken_off(response, fault)

    async def _looked_up(self, url: str) -> Answer | Silence:
        """Of another service of the upstream's: seldom, and not worth a connection of its own."""
        with ExitStack() as closing:
            response: aiohttp.ClientResponse | None = None
            try:
                async with asyncio.timeout(self._limits.answer_seconds):
                    # The ways into the path are quoted already, and are not to be unquoted.
                    response = await self._questions.get(
                        URL(url, encoded=True),
                        headers={"x-api-key": self._api_key.reveal()},
                        allow_redirects=False,
                    )
                    closing.callback(response.close)
                    return Answer(response.status, response.headers, await self._read(response))
            except NETWORK_FAULTS as fault:
                return _broken_off(response, fault)

    async def _awaited(self, path: str, body: Once) -> OpenAnswer | Answer | Silence:
        try:
            async with asyncio.timeout(self._limits.v1_answer_seconds):
                response = await self._calls.post(self._path + path, body)
        except NETWORK_FAULTS as fault:
            return _silence(fault)
        if 200 <= response.status < 300:
            return response
        with ExitStack() as closing:
            closing.callback(response.close)
            try:
                async with asyncio.timeout(self._limits.answer_seconds):
                    return Answer(response.status, response.headers, await self._read(response))
            except NETWORK_FAULTS:
                return Answer(response.status, response.headers, b"")

    async def _read(self, response: Response) -> bytes:
        return await body_of(response, self._limits.answer_max_bytes)


async def body_of(response: Response, max_bytes: int) -> bytes:
    """A whole body, unpacked; what is longer counts as a fault of the network."""
    read = bytearray()
    while chunk := await response.content.readany():
        read += chunk
        if len(read) > max_bytes:
            raise aiohttp.ClientPayloadError(f"longer than {max_bytes} bytes")
    return bytes(read)


def _broken_off(response: Response | None, fault: Exception) -> Answer | Silence:
    if response is not None and response.status >= 300:
        # The verdict has arrived; only its explanation is lost.
        return Answer(response.status, response.headers, b"")
    return _silence(fault)


def _silence(fault: Exception) -> Silence:
    # Only these are raised before there is a connection; after any other, bytes may have left.
    never_connected = isinstance(
        fault, NotConnected | aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    )
    return Silence(word(fault), connected=not never_connected)
