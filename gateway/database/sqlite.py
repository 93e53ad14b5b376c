"""SQLite for everything that must survive a crash: one writer thread, group commit, rooms with tables of their own."""

from __future__ import annotations

import asyncio
import enum
import os
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from gateway.database.errors import DatabaseTooNew
from gateway.database.marks import Marks
from gateway.domain.errors import StorageUnavailable

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
"""What is to be done with the database: no waiting, no I/O of its own, and no transaction control."""

_BUSY_TIMEOUT_SECONDS = 10.0
_MOST_IN_ONE_COMMIT = 512
_SECONDS_BETWEEN_CHECKPOINTS = 0.25
_PATIENCE_SECONDS = 0.01
"""How long a patient piece of work waits for a commit that it can share."""

_LOG_PAGES = 4000
"""So long the log grows (16 MiB) before a commit waits for a checkpoint: more than is written between two of them."""


@dataclass(frozen=True, slots=True)
class _Job:
    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    landing: asyncio.Future[Any]


class _Word(enum.Enum):
    """What the writer is told beside its jobs."""

    COMMIT = enum.auto()
    """Those who were patient have waited long enough."""

    CLOSE = enum.auto()


class SqliteDatabase:
    """One database file.

    `write` returns once its work is on disk (WAL, synchronous=FULL): what was acknowledged survives the loss of
    power. All work that waits at the same moment shares one commit; each piece succeeds or fails by itself.
    Several processes may open the same file.
    """

    def __init__(self, path: Path, *, marks: Marks | None = None) -> None:
        """`marks`: where it is said what has changed; without them nobody is told."""
        self.path = path
        self.marks = marks
        self._changed: set[str] = set()
        # Prompts and hashes of keys are nobody else's: what SQLite puts beside the file gets the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._jobs: queue.SimpleQueue[_Job | _Word] = queue.SimpleQueue()
        self._patient: deque[_Job] = deque()
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="database-reader")
        self._writer = _connect_writer(path)
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only = ON")
        self._checkpoints = _connect(path)
        self._written, self._closing = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._write_until_closed, name="database-writer", daemon=True),
            threading.Thread(target=self._checkpoint_until_closed, name="database-checkpoints", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._closed = False

    def migrate(self, room: str, scripts: Sequence[str]) -> None:
        """Bring the room's tables to their newest form: script n leads from version n to n + 1.

        To be called before anything else uses the database. Raises DatabaseTooNew.
        """
        connection = _connect(self.path)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_versions (room TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )
            row = connection.execute("SELECT version FROM schema_versions WHERE room = ?", (room,)).fetchone()
            version = row[0] if row else 0
            if version > len(scripts):
                raise DatabaseTooNew(
                    f"The {room} tables in {self.path.name} have version {version}, and this gateway knows versions "
                    f"up to {len(scripts)}: run a newer gateway, or restore a backup made by this one."
                )
            for script in scripts[version:]:
                for statement in _statements(script):
                    connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_versions VALUES (?, ?) "
                "ON CONFLICT (room) DO UPDATE SET version = excluded.version",
                (room, len(scripts)),
            )
            connection.execute("COMMIT")
        finally:
            connection.close()

    async def write(self, work: Work[T], *, patient: bool = False) -> T:
        """What `work` returns, once it is on disk. What it raises passes, and it has then changed nothing.

        One that is `patient` makes no commit of its own while others come: it is done within ten milliseconds.
        A caller that is cancelled does not know whether the work was done: it may have been.
        Raises StorageUnavailable when the database is locked, full or broken; nothing was changed.
        """
        loop = asyncio.get_running_loop()
        landing: asyncio.Future[T] = loop.create_future()
        if self._closed:
            raise StorageUnavailable("The ledger is closed.")
        job = _Job(work, loop, landing)
        if not patient:
            self._jobs.put(job)
        else:
            self._patient.append(job)
            if len(self._patient) == 1:
                loop.call_later(_PATIENCE_SECONDS, self._jobs.put, _Word.COMMIT)
        return await landing

    def changes(self, name: str) -> None:
        """Say, from inside what is written, that it changes what `name` stands for.

        Its mark is another one after the commit, and before anybody is told of the commit.
        """
        self._changed.add(name)

    async def read(self, work: Work[T]) -> T:
        """What `work` returns; it sees everything that was written before, and can write nothing."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, work)

    async def survey(self, work: Work[T]) -> T:
        """As `read`, for what may take long: nobody who reads or writes meanwhile waits for it.

        `work` sees the database as it was at one moment.
        """
        return await asyncio.to_thread(self._survey, work)

    def _survey(self, work: Work[T]) -> T:
        try:
            with closing(_connect(self.path)) as connection:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")
                return work(connection)
        except (sqlite3.OperationalError, StopIteration) as error:
            raise _as_told(error) from error

    async def backup(self, destination: Path) -> None:
        """A consistent copy of everything that was committed when it began, while others go on writing.

        It is whole or not there. Raises FileExistsError if something is there already.
        """
        await asyncio.to_thread(self._back_up, destination)

    def _back_up(self, destination: Path) -> None:
        if destination.exists():
            raise FileExistsError(f"{destination} is there already: name a file that is not.")
        beside = destination.with_name(f".{destination.name}.incoming")
        beside.unlink(missing_ok=True)
        source, copy = _connect(self.path), sqlite3.connect(beside)
        try:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        finally:
            copy.close()
            source.close()
        handle = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        beside.rename(destination)

    def close(self) -> None:
        """Finish what is waiting and close the file; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(_Word.CLOSE)
        self._closing.set()
        self._written.set()
        for thread in self._threads:
            thread.join()
        self._readers.shutdown()
        self._reader.close()
        self._checkpoints.close()
        self._writer.close()

    def _read(self, work: Work[T]) -> T:
        try:
            return work(self._reader)
        except (sqlite3.OperationalError, StopIteration) as error:
            raise _as_told(error) from error

    def _write_until_closed(self) -> None:
        word: _Job | _Word = _Word.COMMIT
        while word is not _Word.CLOSE:
            batch: list[_Job] = []
            word = self._jobs.get()
            while isinstance(word, _Job):
                batch.append(word)
                if len(batch) >= _MOST_IN_ONE_COMMIT or self._jobs.empty():
                    break
                word = self._jobs.get()
            while self._patient:
                batch.append(self._patient.popleft())
            if batch:
                self._commit(batch)

    def _checkpoint_until_closed(self) -> None:
        """Bring what is in the log into the file beside the writing: who commits would wait for it, and it takes long."""
        while self._written.wait() and not self._closing.wait(_SECONDS_BETWEEN_CHECKPOINTS):
            self._written.clear()
            if self._closing.is_set():
                # Between the wait and the clearing: what woke us for the end is cleared away, and would not come again.
                return
            with suppress(sqlite3.Error):  # What stays in the log is as good, and the next one tries again.
                self._checkpoints.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _commit(self, batch: Sequence[_Job]) -> None:
        """Do all of `batch` in one transaction, and tell each caller only after the commit."""
        outcomes: list[tuple[_Job, object, BaseException | None]] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for job in batch:
                outcomes.append((job, *self._attempt(job.work)))  # noqa: PERF401 -- an error leaves the list
            self._writer.execute("COMMIT")
            self._written.set()
        except sqlite3.Error as error:
            self._give_up_transaction()
            outcomes = [(job, None, _unavailable(error)) for job in batch]
        self._change_marks()
        _deliver(outcomes)

    def _change_marks(self) -> None:
        # Also of what was rolled back: a mark too many costs somebody a look.
        changed, self._changed = self._changed, set()
        if self.marks is not None:
            for name in changed:
                self.marks.change(name)

    def _give_up_transaction(self) -> None:
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            # Closing gives up what cannot be rolled back. A connection that cannot be had now is tried for again by
            # the next batch, which fails alike until there is one.
            self._writer.close()
            with suppress(sqlite3.Error):
                self._writer = _connect_writer(self.path)

    def _attempt(self, work: Work[Any]) -> tuple[object, BaseException | None]:
        self._writer.execute("SAVEPOINT attempt")
        try:
            value = work(self._writer)
        except BaseException as error:
            if not self._writer.in_transaction:
                # Full disk and I/O errors roll the whole transaction back: nobody in this batch has written.
                raise sqlite3.OperationalError(str(error)) from error
            self._writer.execute("ROLLBACK TO attempt")
            self._writer.execute("RELEASE attempt")
            return None, _as_told(error)
        self._writer.execute("RELEASE attempt")
        return value, None


def _connect_writer(path: Path) -> sqlite3.Connection:
    connection = _connect(path)
    connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_SECONDS
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _statements(script: str) -> Sequence[str]:
    """The statements of a script, one by one: `executescript` would end the transaction around them."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    if pending.strip():
        raise ValueError(f"unfinished statement: {pending.strip()[:60]}")
    return statements


def _as_told(error: BaseException) -> BaseException:
    """What becomes of an error of somebody's work on its way to the caller."""
    match error:
        case sqlite3.OperationalError():
            return _unavailable(error)
        case StopIteration():
            # As it leaves a coroutine: no future can hold it, and whoever awaits that one would wait for ever.
            told = RuntimeError("work raised StopIteration")
            told.__cause__ = error
            return told
        case _:
            return error


def _unavailable(error: BaseException) -> StorageUnavailable:
    unavailable = StorageUnavailable(f"The ledger cannot be used right now ({error}); try again shortly.")
    unavailable.__cause__ = error
    return unavailable


def _deliver(outcomes: Sequence[tuple[_Job, object, BaseException | None]]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, object, BaseException | None]]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, theirs)
        except RuntimeError:
            # The loop has closed: nobody is left to be told. What was committed stays committed.
            continue


def _settle(outcomes: Sequence[tuple[_Job, object, BaseException | None]]) -> None:
    for job, value, error in outcomes:
        landing = cast("asyncio.Future[object]", job.landing)
        if landing.done():
            continue
        if error is not None:
            landing.set_exception(error)
        else:
            landing.set_result(value)
