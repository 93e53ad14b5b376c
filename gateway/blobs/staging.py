"""A file on its way into the store: written beside, hashed, synced; nobody sees it before it has its name."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.domain.identity import Digest


class Staged:
    """A file on its way in.

    A cancelled task leaves its thread running, so a lock keeps writing and clearing away apart, and nothing is written
    once it is cleared away.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._busy = threading.Lock()
        self._descriptor: int | None = None
        self._discarded = False
        self._sha256 = hashlib.sha256()
        self.path = directory
        self.renamed = False

    def write(self, data: bytes) -> None:
        """The first makes the file."""
        with self.held():
            descriptor = self._opened() if self._descriptor is None else self._descriptor
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            self._sha256.update(data)

    def _opened(self) -> int:
        while True:
            descriptor, name = tempfile.mkstemp(dir=self._directory)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(descriptor)
                Path(name).unlink(missing_ok=True)
                raise
            if os.fstat(descriptor).st_nlink:
                self._descriptor, self.path = descriptor, Path(name)
                return descriptor
            # Another process was opening the store, and cleared it away before it was locked.
            os.close(descriptor)

    def digest(self) -> Digest:
        return Digest(self._sha256.hexdigest())

    def sync(self) -> None:
        with self.held():
            assert self._descriptor is not None, "written to before it is synced"  # noqa: S101 -- ours to get right
            os.fsync(self._descriptor)

    def rename(self, target: Path) -> None:
        """While `held`."""
        self.path.rename(target)
        self.renamed = True

    def discard(self) -> None:
        with self._busy:
            self._discarded = True
            if self._descriptor is None:
                return
            if not self.renamed:
                with suppress(OSError):  # the next start finds it
                    self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._busy:
            if self._discarded:
                raise RuntimeError("cleared away already; whoever wanted it has been cancelled")
            yield
