"""diskcache without pickle and without files of its own: text -> a small value, bounded, on a thread of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import diskcache

from gateway.database.tidying import Slices, Tidying
from gateway.domain.errors import StorageUnavailable

P = ParamSpec("P")
T = TypeVar("T")
Value = str | bytes | int | float

_DATABASE = diskcache.core.DBNAME
_MODE_RAW = diskcache.core.MODE_RAW
_BUSY_TIMEOUT_SECONDS = 10.0

_TIDYING_LOCK = "tidying.lock"
_LOCK_EVERY_SECONDS = 0.01
_ROWS_IN_A_SLICE = 5000
_MOST_EVICTED_AT_ONCE = 1000
_USES_WAIT_SECONDS = 10.0
_MOST_USES_WAITING = 1000

# What our Disk never writes: a pickled key or value, a value that lies in a file of the row's choosing, a weight that
# is no number.
_FOREIGN_ROW = (
    f"raw IS NOT 1 OR mode IS NOT {_MODE_RAW} OR filename IS NOT NULL OR typeof(key) <> 'text' OR value IS NULL "
    "OR typeof(size) <> 'integer'"
)


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


_SCHEMA = frozenset(
    [
        "Settings",
        "Cache",
        "Cache_key_raw",
        "Cache_expire_time",
        "Cache_access_time",
        "Settings_count_insert",
        "Settings_count_delete",
        "Settings_size_insert",
        "Settings_size_update",
        "Settings_size_delete",
    ]
)
"""The tables, indexes and triggers that diskcache makes."""


class _Table(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """diskcache.Cache writes all its settings whenever it is opened, some thirty commits, each of them synced.

    This one writes them where they are not what they should be, or where something of the table is not there.
    """

    def __init__(self, directory: str, *, disk: type[NoPickleDisk], **settings: object) -> None:
        # All that its own constructor sets besides what is in the table of settings.
        self._directory = directory
        self._timeout = _BUSY_TIMEOUT_SECONDS
        self._local = threading.local()
        self._txn_id = None
        self._disk = disk(directory)
        try:
            is_there = {name for (name,) in self._con.execute("SELECT name FROM sqlite_master")} >= _SCHEMA
            known = dict(self._con.execute("SELECT key, value FROM Settings")) if is_there else {}
            if is_there and settings.items() <= known.items():
                for name, value in known.items():
                    setattr(self, name, value)
                return
        except BaseException:
            self.close()
            raise
        self.close()
        super().__init__(directory, timeout=_BUSY_TIMEOUT_SECONDS, disk=disk, **settings)


class Index:
    """A bounded table of text -> small value, durable, shared by any number of processes.

    diskcache opens a connection for each thread that touches it and closes only its own thread's, so there is one
    thread: `run` and `later` bring work there, and the methods under `Rows` may be called from such work only.
    What `run` has returned from survives the loss of power (where it is `synced`). Values that are not ours are refused, dropped and counted.

    Opening does not look at the rows, however many there are. What a start is to find out about them is found out
    behind everybody's back, by one process of all (`tidy`): whether the file is sound, and which rows are not ours.

    A database that is no database any more, or turns out to be broken later, is set aside as `cache.db.broken`, and an
    empty one is begun; every other process goes over to that with its next work.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        disk: type[NoPickleDisk] = NoPickleDisk,
        synced: bool = True,
        on_change: Callable[[str], None] = lambda _key: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is told each key whose row is another, or gone, once that is committed.

        Not `synced`, the last changes may not survive the loss of power, for whoever can tell from elsewhere what they
        were. The rest does, and no change by halves.
        """
        self._directory = directory
        self._path = directory / _DATABASE
        self._max_bytes = max_bytes
        self._disk = disk
        self._synced = synced
        self._on_change = on_change
        self._monotonic = monotonic
        self.refused = 0
        """Rows dropped because we did not write them."""
        self.entries = 0
        self.weight_bytes = 0
        """What the entries weigh together; this and `entries` as of this process's last work here."""
        self._in_transaction = False
        self._changed: list[str] = []
        self._uses: dict[str, None] = {}
        self._first_use_at = 0.0
        self._tidying: Tidying | None = None
        self._tidier: sqlite3.Connection | None = None
        self._left_to_another = False
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
        """As `run`, for whoever opens or tidies a room: blocks until it is done."""
        return self._thread.submit(lambda: self._work(work, *args, **kwargs)).result()

    def later(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have `work` done some time, for what may also not be done: nobody hears of a disk that does not take it."""

        def quietly() -> None:
            with suppress(StorageUnavailable):
                self._work(work, *args, **kwargs)

        self._thread.submit(quietly)

    def tidy(self, also: Callable[[], Slices]) -> None:
        """Begin to look whether all is in order, and then do `also`. To be called once, by whoever opened the index.

        If another process is at it, it is left to that one. Whenever a broken database was set aside, it is done again.
        """
        self._tidying = Tidying(lambda: self._tidy(also), name="index-tidying")
        self._tidying.begin()

    async def settled(self) -> None:
        """Have the tidying hurried, and return when it is done. Raises StorageUnavailable where it could not be done."""
        if self._tidying is not None:
            if self._left_to_another:
                self._tidying.begin()
            await self._tidying.settled()

    def close(self) -> None:
        """Finish what is waiting, give up tidying, and close the database; may be called twice."""
        if self._tidying is not None:
            self._tidying.close(self._interrupt_tidier)
        with suppress(RuntimeError):  # shut down already
            self._thread.submit(self._close)
        self._thread.shutdown()

    # Rows: on the index's thread only.

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; no other process writes meanwhile. May be nested."""
        if self._in_transaction:
            yield
            return
        self._in_transaction = True
        try:
            with self._cache.transact():
                self._write_uses()
                yield
        finally:
            self._in_transaction = False
            # After a failure too: it costs others no more than a look.
            changed, self._changed = self._changed, []
            for key in changed:
                self._on_change(key)

    def get(self, key: str) -> Value | None:
        """The value; None if there is none, or none of ours. It is neither a write nor, by itself, a use."""
        row = self._rows.execute(
            "SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1", (key,)
        ).fetchone()
        if row is None:
            return None
        try:
            return self._cache.disk.fetch(*row, read=False)  # type: ignore[no-any-return]  # it is a NoPickleDisk
        except RowRefused:
            self.delete(key)
            self.refused += 1
            return None

    def peek(self, key: str) -> object:
        """The value as it lies there, whoever wrote it. None if there is none."""
        row = self._rows.execute("SELECT value FROM Cache WHERE key = ? AND raw = 1", (key,)).fetchone()
        return None if row is None else row[0]

    def use(self, key: str) -> None:
        """Note that `key` was used just now, for the order of eviction.

        It is written down with the next change of the table: a durable write for each use would be too much. Where
        nothing changes, uses are written down together, when the first of them is ten seconds old or a thousand are.
        """
        if not self._uses:
            self._first_use_at = self._monotonic()
        self._uses.pop(key, None)  # the last use counts
        self._uses[key] = None
        waited_seconds = self._monotonic() - self._first_use_at
        if waited_seconds >= _USES_WAIT_SECONDS or len(self._uses) >= _MOST_USES_WAITING:
            with self.transaction():
                pass

    def set(self, key: str, value: Value, *, used_at: float | None = None) -> None:
        """`used_at` is when it was used last, in seconds since the epoch: now, if it is not said."""
        with self.transaction():
            self._cache.set(key, value)
            if used_at is not None:
                self._rows.execute(
                    "UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1", (used_at, key)
                )
            self._changed.append(key)

    def delete(self, key: str) -> bool:
        """Whether it was there."""
        with self.transaction():
            self._changed.append(key)
            return bool(self._cache.delete(key))

    def __contains__(self, key: str) -> bool:
        return key in self._cache

    def evict(self, keep: str | None = None) -> list[str]:
        """Delete the least recently used rows, all but `keep`, until the rest is within the limit; their keys.

        No more than a thousand at once: what is left after that goes with the next call.
        """
        evicted: list[tuple[int, str]] = []
        with self.transaction():
            excess = self._weight() - self._max_bytes
            if excess <= 0:
                return []
            # diskcache's own culling is switched off (cull_limit=0): it takes a fixed number of rows, whatever they
            # weigh, and when the clock was set back it takes the row that is just being written.
            with closing(self._rows.cursor()) as rows:
                rows.execute(
                    f"SELECT rowid, key, size FROM Cache WHERE key IS NOT ? AND NOT ({_FOREIGN_ROW}) "
                    "ORDER BY access_time",
                    (keep,),
                )
                for rowid, key, size in rows:
                    if excess <= 0 or len(evicted) == _MOST_EVICTED_AT_ONCE:
                        break
                    excess -= size
                    evicted.append((rowid, key))
            self._rows.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid, _ in evicted])
            self._changed += [key for _, key in evicted]
        return [key for _, key in evicted]

    # While tidying: on its thread only.

    def keys_between(self, first: str, beyond: str) -> frozenset[str]:
        """The keys from `first` on that come before `beyond`, as they are committed."""
        assert self._tidier is not None, "for what is done while tidying"  # noqa: S101 -- ours to get right
        rows = self._tidier.execute("SELECT key FROM Cache WHERE key >= ? AND key < ?", (first, beyond))
        return frozenset(key for (key,) in rows)

    def _tidy(self, also: Callable[[], Slices]) -> Slices:
        assert self._tidying is not None  # noqa: S101 -- it is what runs this
        lock = os.open(self._directory / _TIDYING_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _locked(lock):
                self._left_to_another = not self._tidying.hurried
                if self._left_to_another:
                    return
                time.sleep(_LOCK_EVERY_SECONDS)
                yield
            with storage_faults():
                yield from self._look_through()
                yield from also()
        finally:
            os.close(lock)
            self._close_tidier()

    def _look_through(self) -> Slices:
        inode = self._open_tidier()
        yield
        try:
            assert self._tidier is not None  # noqa: S101 -- just opened
            ((verdict,),) = self._tidier.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)  # noqa: TRY301 -- handled with what SQLite itself raises
            yield
            yield from self._sweep(self._tidier)
        except sqlite3.DatabaseError as error:
            if not _is_broken(error):
                raise
            self._close_tidier()
            self.do(self._begin_anew, inode)
            self._open_tidier()

    def _sweep(self, tidier: sqlite3.Connection) -> Slices:
        """Drop the rows that are not ours, a few thousand looked at in one go."""
        done: int | None = -(2**63)
        while done is not None:
            low = done
            (high,) = tidier.execute(
                "SELECT max(rowid) FROM (SELECT rowid FROM Cache WHERE rowid > ? ORDER BY rowid LIMIT ?)",
                (low, _ROWS_IN_A_SLICE),
            ).fetchone()
            slice_ = (low, low if high is None else high)
            foreign = f"FROM Cache WHERE rowid > ? AND rowid <= ? AND ({_FOREIGN_ROW})"
            if tidier.execute(f"SELECT 1 {foreign} LIMIT 1", slice_).fetchone():
                self.do(self._drop, foreign, slice_)
            done = high
            yield

    def _open_tidier(self) -> int:
        with _alone_in(self._directory):
            self._tidier = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            inode: int = self._path.stat().st_ino
            return inode

    def _close_tidier(self) -> None:
        if self._tidier is not None:
            self._tidier.close()
            self._tidier = None

    def _interrupt_tidier(self) -> None:
        with suppress(AttributeError, sqlite3.ProgrammingError):  # closed just now
            self._tidier.interrupt()  # type: ignore[union-attr]  # None is an AttributeError

    # On the index's thread.

    def _drop(self, foreign: str, slice_: tuple[int, int]) -> None:
        with self.transaction():
            keys = self._rows.execute(f"SELECT key {foreign}", slice_).fetchall()
            self._rows.execute(f"DELETE {foreign}", slice_)
            self._changed += [key for (key,) in keys if isinstance(key, str)]
        self.refused += len(keys)

    def _work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with storage_faults():
            self._follow()
            try:
                return self._try(work, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
            self._begin_anew(self._inode)
            if self._tidying is not None:
                self._tidying.begin()
            return self._try(work, *args, **kwargs)

    def _try(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except (sqlite3.Error, diskcache.Timeout):
            self._give_up_transaction()
            raise
        finally:
            with suppress(sqlite3.Error):
                self._count()

    def _count(self) -> None:
        self.entries = len(self._cache)
        self.weight_bytes = self._weight()

    def _weight(self) -> int:
        weight: int = self._cache.reset("size")
        return weight

    def _write_uses(self) -> None:
        uses, self._uses = self._uses, {}
        for key in uses:
            with suppress(RowRefused):  # found when it is read, or by the sweep
                self._cache.get(key)

    @property
    def _rows(self) -> sqlite3.Connection:
        """The connection of diskcache: what is asked there is in its transaction."""
        return cast("sqlite3.Connection", self._cache._con)  # noqa: SLF001 -- it has no public name

    # Every connection is made while no other process can set the file aside: else it would find half of it.

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        # Workers start together: what one of them has found broken, another may have made anew meanwhile.
        with _alone_in(self._directory):
            self._open_alone()

    def _open_alone(self) -> None:
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_broken(error):
                raise  # locked, unreadable, full: the file itself may be sound
            self._set_aside()
            self._connect()
        self._inode = self._path.stat().st_ino

    def _connect(self) -> None:
        self._cache = _Table(
            str(self._directory),
            disk=self._disk,
            eviction_policy="least-recently-used",
            size_limit=self._max_bytes,
            cull_limit=0,
            sqlite_synchronous=2 if self._synced else 1,
        )
        self._count()

    def _follow(self) -> None:
        """Go where the others are, if one of them has set the database aside."""
        try:
            if self._path.stat().st_ino == self._inode:
                return
        except FileNotFoundError:
            pass  # removed by hand
        self._cache.close()
        self._open()

    def _give_up_transaction(self) -> None:
        """A commit that failed leaves its transaction open. What cannot be rolled back is given up with its connection.

        Not with every one: a new connection wants room on the disk, and what lies there can be read without.
        """
        try:
            if self._rows.in_transaction:
                self._rows.execute("ROLLBACK")
        except sqlite3.Error:
            self._reconnect()

    def _reconnect(self) -> None:
        with _alone_in(self._directory):
            self._cache.close()
            with suppress(sqlite3.Error):
                _ = self._rows

    def _begin_anew(self, broken: int) -> None:
        """Set the database aside, unless another process has done it, and begin an empty one."""
        with _alone_in(self._directory):
            self._cache.close()
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == broken:
                    self._set_aside()
            self._open_alone()

    def _set_aside(self) -> None:
        # The log goes first: one without its database would be taken for the new one's.
        for suffix in ("-wal", "-shm"):
            self._path.with_name(f"{_DATABASE}{suffix}").unlink(missing_ok=True)
        self._path.replace(self._path.with_name(f"{_DATABASE}.broken"))

    def _close(self) -> None:
        with suppress(StorageUnavailable, sqlite3.Error), storage_faults():
            if self._uses:
                with self.transaction():
                    pass
        self._cache.close()


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    """Whether it says that the file is no database (any more), and not that it is locked, full or cannot be read."""
    if type(error) is not sqlite3.DatabaseError:
        return False
    code = getattr(error, "sqlite_errorcode", None)  # none where it is our own verdict
    return code is None or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    return StorageUnavailable(f"The gateway's storage is not available ({reason}); try again later.")
