"""How fast each key may ask: a page of memory that every process of one storage directory shares, exact over all."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PLACES = 65_536
_BYTES = _PLACES * 8
_SECOND = 1_000_000
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of asking once, or would have come of it."""

    wait_seconds: float
    """Zero: it may go ahead, and is counted if it has asked. Else so long until one may, and nothing was counted."""

    left: int
    """How many more may come at this moment."""

    full_in_seconds: float
    """How long until all that may come at once may do so again."""


class Pace:
    """When each key may ask again.

    A place holds one number: the moment, in microseconds since the epoch, at which everything that was taken there is
    made good (the generic cell rate algorithm). All is whole numbers: of so many at the same moment exactly as many go
    ahead as may, however many processes ask. The page outlives them all.
    """

    def __init__(self, path: Path) -> None:
        """The page lies in `path`, which is made if it is not there. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._descriptor).st_size < _BYTES:
                # Never shortened: a process that reads beyond the end of a mapped file is killed.
                os.truncate(self._descriptor, _BYTES)
            self._file = mmap.mmap(self._descriptor, _BYTES)
        except OSError:
            os.close(self._descriptor)
            raise
        self._page = memoryview(self._file).cast("q")
        self._unguarded: set[int] = set()
        self._closed = False

    def take(self, place: int, now: float, *, requests: int, seconds: int, burst: int) -> Taken:
        """Ask once: of `requests` in `seconds` on average, `burst` at once, all at least one.

        Places that are a multiple of 65,536 apart are one.
        """
        place %= _PLACES
        each = -(-seconds * _SECOND // requests)  # Rounded up: never faster than was said.
        moment, allowed = round(now * _SECOND), each * burst
        alone = self._lock(place)
        try:
            good = self._good(place, moment, allowed)
            too_far = good + each - moment - allowed
            if too_far <= 0:
                good += each
                self._page[place] = good
        finally:
            if alone:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 8, place * 8)
        return _taken(good - moment, each, allowed, too_far)

    def look(self, place: int, now: float, *, requests: int, seconds: int, burst: int) -> Taken:
        """What asking now would come to; nothing is counted."""
        each = -(-seconds * _SECOND // requests)
        moment, allowed = round(now * _SECOND), each * burst
        good = self._good(place % _PLACES, moment, allowed)
        return _taken(good - moment, each, allowed, good + each - moment - allowed)

    def _good(self, place: int, moment: int, allowed: int) -> int:
        """When everything that was taken there is made good."""
        good = max(self._page[place], moment)
        # Nobody has taken so much: the clock was put back, or the rate was lowered.
        return moment if good - moment > allowed + _SECOND else good

    def _lock(self, place: int) -> bool:
        """Keep every other process from the place until it is unlocked; False: do without.

        Whoever has it, has it for two accesses to memory, and the system takes it from one that dies. One that was
        stopped in between is waited for, once and not for ever: this is a rate, and no money.
        """
        if place in self._unguarded:
            return False
        patience_ends = 0.0
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 8, place * 8)
            except BlockingIOError:
                moment = time.monotonic()
                patience_ends = patience_ends or moment + _PATIENCE_SECONDS
                if moment > patience_ends:
                    self._unguarded.add(place)
                    return False
                os.sched_yield()
            else:
                return True

    def close(self) -> None:
        """Let go of the page; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._page.release()
        with suppress(BufferError):
            self._file.close()
        os.close(self._descriptor)


def _taken(owed: int, each: int, allowed: int, too_far: int) -> Taken:
    """In microseconds: until all is made good, what one costs, what may be owed, and by how much one more is too much."""
    return Taken(
        wait_seconds=max(0, too_far) / _SECOND,
        left=max(0, allowed - owed) // each,
        full_in_seconds=owed / _SECOND,
    )
