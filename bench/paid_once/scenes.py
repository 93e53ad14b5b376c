"""What the callers do, and what they and the upstream count. The same for every candidate."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

CALLERS = 20
USD_EACH = 0.416
"""What the upstream's page says that a video of its example's shape costs."""

UPSTREAM_SECONDS = 12.0
SLOW_UPSTREAM_SECONDS = 70.0
_HANGS_UP_AFTER_SECONDS = 2.0
_KILLED_AFTER_SECONDS = 4.0
_TRIES_AFTER_A_CRASH = 10
_PAUSE_SECONDS = 0.5
_BOUND_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """One and the same for all callers."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Bill:
    calls: int
    usd: float | None
    """None where what was bought is no video."""

    def since(self, earlier: Bill) -> Bill:
        usd = None if self.usd is None or earlier.usd is None else self.usd - earlier.usd
        return Bill(self.calls - earlier.calls, usd)


class Running(Protocol):
    """A candidate that is up, with nothing in its cache."""

    def request(self, number: int = 0) -> Request:
        """Equal numbers make equal requests."""
        ...

    async def bill(self) -> Bill:
        """What the upstream behind it has counted so far."""
        ...

    async def crash(self) -> None:
        """SIGKILL to all of its processes, and a start in the same place."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    status: str
    delivered: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of the result."""

    answers: Sequence[Answer]
    """The last of each caller who stayed."""

    bill: Bill
    cut_off: int = 0
    """How many callers lost a first try to a crash."""

    @property
    def delivered(self) -> int:
        return sum(answer.delivered for answer in self.answers)

    @property
    def statuses(self) -> str:
        counted = Counter(answer.status for answer in self.answers)
        told = ", ".join(f"{count} x {status}" for status, count in counted.most_common())
        return told + (f", after {self.cut_off} were cut off" if self.cut_off else "")


Scene = Callable[[Running, float], Awaitable[Seen]]


async def herd(candidate: Running, scale: float) -> Seen:  # noqa: ARG001 -- all scenes are called alike
    """20 identical requests at once."""
    async with _session() as session:
        request = candidate.request()
        answers = await asyncio.gather(*(_ask(session, request) for _ in range(CALLERS)))
    return Seen(answers, await candidate.bill())


async def again(candidate: Running, scale: float) -> Seen:
    """The same 20 again, after the first 20 were answered: only these are counted."""
    before = (await herd(candidate, scale)).bill
    seen = await herd(candidate, scale)
    return Seen(seen.answers, seen.bill.since(before))


async def hang_up(candidate: Running, scale: float) -> Seen:
    """One begins, 19 join; then the first hangs up."""
    async with _session() as session:
        request = candidate.request()
        first = asyncio.create_task(_ask(session, request))
        await _paid_for(candidate)
        others = asyncio.gather(*(_ask(session, request) for _ in range(CALLERS - 1)))
        await asyncio.sleep(_HANGS_UP_AFTER_SECONDS * scale)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return Seen(await others, await candidate.bill())


async def retry(candidate: Running, scale: float) -> Seen:  # noqa: ARG001 -- all scenes are called alike
    """One caller, who asks once more when the first answer is not the video."""
    async with _session() as session:
        first = await _ask(session, candidate.request())
        answers = [first] if first.delivered else [first, await _ask(session, candidate.request())]
    return Seen(answers, await candidate.bill())


async def crash(candidate: Running, scale: float) -> Seen:
    """20 identical requests; everything is killed while the upstream works; then all ask again, until they are answered."""
    async with _session() as session:
        began = time.monotonic()
        request = candidate.request()
        asked = asyncio.gather(*(_ask(session, request) for _ in range(CALLERS)))
        await _paid_for(candidate)
        await asyncio.sleep(_KILLED_AFTER_SECONDS * scale)
        await candidate.crash()
        first = Seen(await asked, await candidate.bill())
        request = candidate.request()
        answers = await asyncio.gather(*(_insist(session, request, began) for _ in range(CALLERS)))
    return Seen(answers, await candidate.bill(), cut_off=CALLERS - first.delivered)


async def budget(candidate: Running, scale: float) -> Seen:  # noqa: ARG001 -- all scenes are called alike
    """20 different requests at once, on a budget that has room for two."""
    async with _session() as session:
        answers = await asyncio.gather(
            *(_ask(session, candidate.request(number)) for number in range(CALLERS))
        )
    return Seen(answers, await candidate.bill())


def _session() -> aiohttp.ClientSession:
    # Callers are strangers to each other: each has a connection of its own.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=_BOUND_SECONDS),
        trust_env=False,
    )


async def _ask(session: aiohttp.ClientSession, request: Request, began: float | None = None) -> Answer:
    began = time.monotonic() if began is None else began
    try:
        async with session.request(
            request.method, request.url, data=request.body, headers=request.headers
        ) as response:
            body = await response.read()
            delivered = response.status == 200 and body[4:8] == b"ftyp"
            status = str(response.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        delivered, status = False, type(error).__name__
    return Answer(status, delivered, time.monotonic() - began)


async def _insist(session: aiohttp.ClientSession, request: Request, began: float) -> Answer:
    for _ in range(_TRIES_AFTER_A_CRASH - 1):
        answer = await _ask(session, request, began)
        if answer.delivered:
            return answer
        await asyncio.sleep(_PAUSE_SECONDS)
    return await _ask(session, request, began)


async def _paid_for(candidate: Running) -> None:
    async with asyncio.timeout(_BOUND_SECONDS):
        while not (await candidate.bill()).calls:  # noqa: ASYNC110 -- the count is another process's
            await asyncio.sleep(0.02)
