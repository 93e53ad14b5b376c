"""When to ask again: often where an answer is likely, seldom elsewhere, and never too often in all."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Iterator

from gateway.upstream.limits import Limits

_USUAL_FROM = 0.9
"""From this share of the expected time on, the end is expected any moment."""

_USUAL_UNTIL = 1.5
_SHARE_OF_WHAT_IS_LEFT = 0.4
_SHARE_OF_THE_USUAL = 0.015
_SHARE_OF_WHAT_IS_OVERDUE = 0.05


def pause_seconds(elapsed_seconds: float, expected_seconds: float, limits: Limits) -> float:
    """How long to wait before the next poll of what was bought so long ago, and usually takes so long.

    On the way there, a part of what is left; around the usual time, a small share of it, which is how late the news
    is at most; then longer again with what it is overdue. Between `poll_first_seconds` and `poll_longest_seconds`.
    """
    usual_from, usual_until = _USUAL_FROM * expected_seconds, _USUAL_UNTIL * expected_seconds
    pause = _SHARE_OF_THE_USUAL * expected_seconds
    if elapsed_seconds < usual_from:
        pause = max(pause, _SHARE_OF_WHAT_IS_LEFT * (usual_from - elapsed_seconds))
    else:
        pause += _SHARE_OF_WHAT_IS_OVERDUE * max(0.0, elapsed_seconds - usual_until)
    return min(max(pause, limits.poll_first_seconds), limits.poll_longest_seconds)


def pauses(expected_seconds: float | None, elapsed_seconds: float, limits: Limits) -> Iterator[float]:
    """The waits between the polls of one purchase, of which so much time has passed; each is shaken, so that those who
    were bought together are not polled together. Never ends; to be asked for when the wait begins.
    """
    began_at = asyncio.get_running_loop().time() - elapsed_seconds
    growing_seconds = limits.poll_first_seconds
    while True:
        if expected_seconds is None:
            pause = growing_seconds
            growing_seconds = min(growing_seconds * limits.poll_factor, limits.poll_longest_seconds)
        else:
            elapsed = asyncio.get_running_loop().time() - began_at
            pause = pause_seconds(elapsed, expected_seconds, limits)
        yield pause * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads load, hides nothing


class Turns:
    """So many turns a second, however many ask for one; 0 is no limit. Those that were worth it do not count.

    Who can wait least goes first: each says how long it could wait, and that is kept. Nobody is passed over for ever,
    since whoever comes later with the same patience is due later.
    """

    def __init__(self, per_second: float) -> None:
        self._seconds_between = 1 / per_second if per_second else 0.0
        self._next_at = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, patience_seconds: float) -> None:
        """Return when it is this one's turn."""
        if not self._seconds_between:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if not self._waiting and now >= self._next_at:
            self._next_at = now + self._seconds_between
            return
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (now + patience_seconds, next(self._arrivals), turn))
        if self._timer is None:
            self._timer = loop.call_at(self._next_at, self._give)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It came at the very moment of leaving: somebody else can use it.
                self.was_worth_it()
            raise

    def was_worth_it(self) -> None:
        """Said after a turn: another one may follow in its place."""
        self._next_at -= self._seconds_between
        if self._timer is not None:
            self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(self._next_at, self._give)

    def _give(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        self._next_at = max(self._next_at, now - self._seconds_between)
        while self._waiting and self._next_at <= now:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                self._next_at += self._seconds_between
        if self._waiting:
            self._timer = loop.call_at(self._next_at, self._give)
