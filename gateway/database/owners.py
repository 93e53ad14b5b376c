"""Who works on this storage: each process has a name there, and whether it lives is a matter of one lock."""

from __future__ import annotations

import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path


class Owners:
    """The processes that share a storage directory, this one among them.

    Each holds a lock (flock) on a file of its own name, which the kernel drops when the process ends, however it
    ends. No process id is compared, so none can be mistaken for a newer one's.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self.name = uuid.uuid4().hex
        """What this process is called in the journal."""
        self._lock = os.open(directory / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def is_alive(self, name: str) -> bool:
        """Whether the process of that name still lives."""
        if name == self.name:
            return True
        try:
            handle = os.open(self._directory / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            # Dead, and now that nobody can take its name any more, forgotten.
            with suppress(FileNotFoundError):
                (self._directory / name).unlink()
            return False
        finally:
            os.close(handle)

    def close(self) -> None:
        """Leave: what this process still owns may be adopted from now on."""
        with suppress(FileNotFoundError):
            (self._directory / self.name).unlink()
        os.close(self._lock)


class Duty:
    """What one process of all that share a storage directory has to do, and no second one at the same time."""

    def __init__(self, path: Path) -> None:
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def is_ours(self) -> bool:
        """Whether it is this process's: it is as soon as nobody else has it, and stays so until `close`."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Leave it to another."""
        os.close(self._lock)
