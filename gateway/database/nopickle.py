"""diskcache without pickle and without files of its own: text -> a small value, bounded, on a thread of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import diskcache

from gateway.domain.errors import StorageUnavailable

P = ParamSpec("P")
T = TypeVar("T")
Value = str | bytes | int | float

_DATABASE = diskcache.core.DBNAME
_MODE_RAW = diskcache.core.MODE_RAW
_BUSY_TIMEOUT_SECONDS = 10.0

# What our Disk never writes: a pickled key or value, and a value that lies in a file of the row's choosing.
_FOREIGN_ROWS = f"raw IS NOT 1 OR mode IS NOT {_MODE_RAW} OR filename IS NOT NULL OR typeof(key) <> 'text' OR value IS NULL"


class RowRefused(ValueError):
    """A row of the database that we did not write: reading it could run somebody else's code."""


class NoPickleDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Keys are text; values are text, bytes and numbers, and lie in the database itself.

    diskcache's own Disk unpickles whatever the database says is pickled (CVE-2025-69872), and opens and removes
    whatever file name it finds there. This one does neither: whoever can write to the file can spoil entries, and
    no more than that.
    """

    def put(self, key: object) -> tuple[str, bool]:
        if type(key) is not str:
            raise TypeError(f"a key must be text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        if not raw or type(key) is not str:
            raise RowRefused("a key that is not plain text")
        return key

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, Value]:
        del key
        if read or type(value) not in (str, bytes, int, float):
            raise TypeError(f"a value must be text, bytes or a number, not {type(value).__name__}")
        return self.weigh(cast("Value", value)), _MODE_RAW, None, cast("Value", value)

    def fetch(self, mode: object, filename: object, value: object, read: object) -> Value:
        if mode != _MODE_RAW or filename is not None or read or type(value) not in (str, bytes, int, float):
            raise RowRefused("a value that is not plain text, bytes or a number")
        return cast("Value", value)

    def remove(self, file_path: object) -> None:
        """Nothing: no row of ours has a file, so a row that names one names somebody else's."""

    def weigh(self, value: Value) -> int:
        """How many bytes `value` counts for against the limit."""
        return len(value) if isinstance(value, (str, bytes)) else 0


class Index:
    """A bounded table of text -> small value, durable, shared by any number of processes.

    diskcache opens a connection for each thread that touches it and closes only its own thread's, so there is one
    thread: `run` and `later` bring work there, and the methods under `Rows` may be called from such work only.
    What `run` has returned from survives the loss of power. Values that are not ours are refused, dropped and counted.

    A database that is no database any more is set aside as `cache.db.broken`, and an empty one is begun.
    """

    def __init__(self, directory: Path, *, max_bytes: int, disk: type[NoPickleDisk] = NoPickleDisk) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._disk = disk
        self.refused = 0
        """Rows dropped because we did not write them."""
        self.entries = 0
        self.weight_bytes = 0
        """What the entries weigh together; this and `entries` as of this process's last work here."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        try:
            self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, done on the index's thread, one after the other.

        A caller that is cancelled does not know whether it was done. Raises StorageUnavailable for what disk and
        database raise; what else `work` raises passes.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: self._work(work, *args, **kwargs))

    def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for whoever opens a room: blocks until it is done."""
        return self._thread.submit(lambda: self._work(work, *args, **kwargs)).result()

    def later(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have `work` done some time, for what may also not be done: nobody hears of a disk that does not take it."""

        def quietly() -> None:
            with suppress(StorageUnavailable):
                self._work(work, *args, **kwargs)

        self._thread.submit(quietly)

    def close(self) -> None:
        """Finish what is waiting and close the database; may be called twice."""
        with suppress(RuntimeError):  # shut down already
            self._thread.submit(self._close)
        self._thread.shutdown()

    # Rows: on the index's thread only.

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing; no other process writes meanwhile. May be nested."""
        return cast("AbstractContextManager[None]", self._cache.transact())

    def get(self, key: str) -> Value | None:
        """The value, which counts as a use (and is a write); None if there is none, or none of ours."""
        try:
            return cast("Value | None", self._cache.get(key))
        except RowRefused:
            self._cache.delete(key)
            self.refused += 1
            return None

    def peek(self, key: str) -> object:
        """The value as it lies there, whoever wrote it; not a use, and not a write. None if there is none."""
        row = self._reader.execute("SELECT value FROM Cache WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def set(self, key: str, value: Value) -> None:
        self._cache.set(key, value)

    def delete(self, key: str) -> bool:
        """Whether it was there."""
        return bool(self._cache.delete(key))

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def items(self) -> dict[str, Value]:
        """All rows that are committed, read without counting as a use."""
        return dict(self._reader.execute("SELECT key, value FROM Cache").fetchall())

    def evict(self, keep: str | None = None) -> list[str]:
        """Delete the least recently used rows, all but `keep`, until the rest is within the limit; their keys."""
        evicted: list[str] = []
        with self.transaction():
            excess = self._weight() - self._max_bytes
            if excess <= 0:
                return evicted
            # diskcache's own culling is switched off (cull_limit=0): it takes a fixed number of rows, whatever they
            # weigh, and when the clock was set back it takes the row that is just being written. The writing
            # transaction is open, so the order cannot change under this second connection.
            with closing(self._reader.cursor()) as rows:
                rows.execute("SELECT key, size FROM Cache WHERE key IS NOT ? ORDER BY access_time", (keep,))
                for key, size in rows:
                    if excess <= 0:
                        break
                    excess -= size
                    evicted.append(key)
            for key in evicted:
                self._cache.delete(key)
        return evicted

    def _work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with storage_faults():
            try:
                return work(*args, **kwargs)
            except (sqlite3.Error, diskcache.Timeout):
                # A commit that failed leaves its transaction open; a new connection starts with a clean slate.
                self._cache.close()
                raise
            finally:
                with suppress(sqlite3.Error):
                    self._count()

    def _count(self) -> None:
        self.entries = len(self._cache)
        self.weight_bytes = self._weight()

    def _weight(self) -> int:
        return int(self._cache.reset("size"))

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        # Workers start together: what one of them has found broken, another may have made anew meanwhile.
        with _alone_in(self._directory):
            self._open_alone()

    def _open_alone(self) -> None:
        try:
            self._reader = self._connect_and_sweep()
        except sqlite3.OperationalError:
            raise  # locked, unreadable, full: the file itself may be sound
        except sqlite3.DatabaseError:
            self._set_aside()
            self._reader = self._connect_and_sweep()
        self._cache = diskcache.Cache(
            str(self._directory),
            timeout=_BUSY_TIMEOUT_SECONDS,
            disk=self._disk,
            eviction_policy="least-recently-used",
            size_limit=self._max_bytes,
            cull_limit=0,
            sqlite_synchronous=2,
        )
        self._count()

    def _connect_and_sweep(self) -> sqlite3.Connection:
        """A second connection; foreign rows are gone before diskcache sees them."""
        connection: Any = sqlite3.connect(
            self._directory / _DATABASE, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None
        )
        try:
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)  # noqa: TRY301 -- handled with what SQLite itself raises
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'Cache'").fetchone():
                self.refused += connection.execute(f"DELETE FROM Cache WHERE {_FOREIGN_ROWS}").rowcount
        except BaseException:
            connection.close()
            raise
        return cast("sqlite3.Connection", connection)

    def _set_aside(self) -> None:
        for suffix in ("-wal", "-shm"):
            (self._directory / f"{_DATABASE}{suffix}").unlink(missing_ok=True)
        (self._directory / _DATABASE).replace(self._directory / f"{_DATABASE}.broken")

    def _close(self) -> None:
        self._cache.close()
        self._reader.close()


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """While this lasts, every other process that asks for the same waits."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def storage_faults() -> Iterator[None]:
    """What disk and database raise, as StorageUnavailable; only around code of ours, never around a caller's."""
    try:
        yield
    except OSError as error:
        raise _unavailable(error.strerror or type(error).__name__) from error
    except sqlite3.Error as error:
        raise _unavailable(str(error)) from error
    except diskcache.Timeout as error:
        raise _unavailable("its index is busy, or cannot be written") from error


def _unavailable(reason: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"The gateway's storage is not available ({reason}). Try again later; what was bought is not lost."
    )
