"""Looking now and then at what others work on: soon when few wait, and never too often in all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from gateway.domain.identity import Fingerprint

_TICK_SECONDS = 0.1
_LOOKS_A_SECOND = 50


def _never_changes(_: str) -> int:
    return 0


class Lookout:
    """For those who wait for a purchase that another process works on, or of which nobody knows whether it was made.

    A look costs a question to the journal, at which thousands may wait at once (an upstream that falls silent leaves as
    many unknown purchases). So there are at most fifty looks a second, and all share one timer. Who waits for something
    that is remembered meanwhile, by any process, looks at once: that is seen without asking.
    """

    def __init__(self, mark_of: Callable[[str], int] = _never_changes) -> None:
        """`mark_of`: the number that is another one after each change of what a name stands for."""
        self._mark_of = mark_of
        self._waiting: dict[asyncio.Future[None], tuple[str, int, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, fingerprint: Fingerprint) -> None:
        """Return when it is worth another look at what became of `fingerprint`."""
        loop = asyncio.get_running_loop()
        name = f"entry:{fingerprint}"
        pause_seconds = max(_TICK_SECONDS, len(self._waiting) / _LOOKS_A_SECOND)
        due_at = loop.time() + pause_seconds * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads load, hides nothing
        look: asyncio.Future[None] = loop.create_future()
        self._waiting[look] = (name, self._mark_of(name), due_at)
        if self._timer is None:
            self._timer = loop.call_later(_TICK_SECONDS, self._tick)
        try:
            await look
        finally:
            del self._waiting[look]

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for look, (name, mark, due_at) in self._waiting.items():
            if not look.done() and (now >= due_at or self._mark_of(name) != mark):
                look.set_result(None)
        self._timer = loop.call_later(_TICK_SECONDS, self._tick) if self._waiting else None
