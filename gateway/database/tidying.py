"""Work that nobody waits for: in slices, with pauses between them, on a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing

Slices = Generator[None, None, None]
"""Work that yields between its slices, where it may be made to wait, or to stop."""

_PAUSE_FOR_EACH_SECOND = 9.0
_LONGEST_PAUSE_SECONDS = 1.0
_JOIN_SECONDS = 0.02


class Tidying:
    """Does `work` behind everybody's back, once for each `begin`.

    It starts after a while, because the first moments after a start are the callers', and takes a tenth of one thread's
    time. Whoever waits for it (`settled`) has it start at once and not pause. What goes wrong ends that round, and is
    told to those who wait for it; there is always a next start.
    """

    def __init__(self, work: Callable[[], Slices], *, name: str, begin_after_seconds: float = 2.0) -> None:
        self._work = work
        self._begin_after_seconds = begin_after_seconds
        self._rounds: queue.SimpleQueue[Future[None] | None] = queue.SimpleQueue()
        self._last: Future[None] | None = None
        # Set when there is nothing to pause for any more: somebody waits, or it is over.
        self._hurried = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Do it (again)."""
        self._last = Future()
        self._rounds.put(self._last)

    @property
    def hurried(self) -> bool:
        """Whether somebody waits for it."""
        return self._hurried.is_set()

    async def settled(self) -> None:
        """Return when what was begun last is done, or given up because of `close`. Raises what went wrong."""
        self._hurried.set()
        if self._last is not None:
            await asyncio.shield(asyncio.wrap_future(self._last))

    def close(self, interrupt: Callable[[], None]) -> None:
        """Stop before the next slice, and `interrupt` the one under way, if it can be; may be called twice."""
        self._closed = True
        self._hurried.set()
        self._rounds.put(None)
        while self._thread.is_alive():
            # Again and again: what is interrupted just before it begins is not interrupted.
            interrupt()
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        while (landing := self._rounds.get()) is not None:
            try:
                self._go_through()
            except BaseException as error:  # noqa: BLE001 -- told to whoever waits
                if not self._closed:  # else it was interrupted
                    landing.set_exception(error)
                    continue
            landing.set_result(None)

    def _go_through(self) -> None:
        with closing(self._work()) as slices:
            self._hurried.wait(self._begin_after_seconds)
            while not self._closed:
                began = time.monotonic()
                try:
                    next(slices)
                except StopIteration:
                    return
                pause_seconds = (time.monotonic() - began) * _PAUSE_FOR_EACH_SECOND
                self._hurried.wait(min(pause_seconds, _LONGEST_PAUSE_SECONDS))
