"""A page of memory that every process of one storage directory sees: who remembers something learns that it changed."""

from __future__ import annotations

import mmap
import os
import secrets
import zlib
from contextlib import suppress
from pathlib import Path

_PLACES = 4096
_BYTES = _PLACES * 8


class Marks:
    """One mark for each name: a number that is another one after each change of what the name stands for.

    Whoever changes something calls `change` after the change is committed and before anybody is told of it. Whoever
    remembers something reads the mark *before* reading what is remembered, and trusts the memory for as long as the
    mark is the same. That costs no system call, in any process, and a reader may be late by no more than a change that
    nobody has been told of yet.

    Names share places: a change of one may look like a change of another, never the other way round. A mark is random
    and not a count, so two processes that change the same one at the same time need no lock between them. A process
    that dies between its commit and its `change` leaves a memory that is out of date; the next process to open the page
    changes all marks, and what must not depend on that (a revoked key) is looked at every second besides.
    """

    def __init__(self, path: Path) -> None:
        """The page lies in `path`, which is made if it is not there. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < _BYTES:
                # Never shortened: a process that reads beyond the end of a mapped file is killed.
                os.truncate(descriptor, _BYTES)
            self._file = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        # One aligned store of eight bytes each: nobody reads half a mark.
        self.page = memoryview(self._file).cast("Q")
        """All marks, for whoever reads several at once; to be changed by `change` alone."""
        self._file[:] = secrets.token_bytes(_BYTES)

    @staticmethod
    def place(name: str) -> int:
        """Where the mark of `name` is."""
        return zlib.crc32(name.encode("utf-8", "surrogatepass")) % _PLACES

    def read(self, place: int) -> int:
        """The mark at that place, as it is now."""
        return self.page[place]

    def change(self, name: str) -> None:
        """Say that what `name` stands for is not what it was."""
        self.page[self.place(name)] = secrets.randbits(64)

    def close(self) -> None:
        """Let go of the page; may be called twice."""
        self.page.release()
        with suppress(BufferError):
            self._file.close()
