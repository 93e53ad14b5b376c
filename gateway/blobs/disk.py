"""Blobs as files on a local disk, named by their digest.

    sha256/ab/abcdef…   the blobs: the only thing here that cannot be made again
    incoming/           what is being written, each file locked (flock) by the process that writes it
    quarantine/         what did not match its digest, and what inspection refused (broken-…, and why); the newest few
    index/cache.db      sizes and times of use (diskcache); made again from the files when it is lost
    index/tidying.lock  held by the process that looks whether files and index agree

The files are the truth and the index is the book about them. Renaming, evicting and deleting are done inside the index's
writing transaction, so several processes may share the directory.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

import orjson

from gateway.blobs.contract import Inspection, LocalFile, OpenFile
from gateway.blobs.staging import Staged
from gateway.database.marks import Marks
from gateway.database.nopickle import Index, NoPickleDisk, Value, storage_faults
from gateway.database.tidying import Slices
from gateway.domain.errors import ResultBroken, StorageUnavailable
from gateway.domain.generation import Artifact, Blob
from gateway.domain.identity import Digest

P = ParamSpec("P")
T = TypeVar("T")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WRITE_BYTES = 1 << 20
_TOUCH_EVERY_SECONDS = 60.0
_QUARANTINED_FILES = 8
_BROKEN, _EVIDENCE = "broken-", ".json"
_MOST_REMEMBERED = 100_000
_LOOKED_AT_AT_ONCE = 200

# A file system stamps its files with a clock that ticks every few milliseconds; a change within the tick of the last
# one cannot be seen. So an identity is trusted only once it is clearly older than the look that vouched for it.
_TICK_NANOSECONDS = 100_000_000


@dataclass(frozen=True, slots=True)
class BlobStatistics:
    """What a scrape wants to know; counts are of this process since it opened the store."""

    entries: int
    bytes_stored: int
    """`entries` and `bytes_stored` as of this process's last write or look into the index."""

    evicted: int
    corrupted: int
    """Blobs that did not match their digest, and were put aside."""

    broken: int
    """Results that inspection refused: paid for, and put aside."""

    missing: int
    """Blobs that the index knew and the disk had not."""

    refused_rows: int
    """Rows of the index that were not ours to read, pickled ones for example; dropped."""


class DiskBlobStore:
    """Keeps the contract of `BlobStore` in `directory`, within `max_bytes` of blobs.

    The least recently used are evicted. A blob that was just put is never its own put's victim, even if it alone is
    larger than the limit: it was paid for. Index, quarantine and what is being written come on top of the limit.

    A located path may be evicted before it is opened (FileNotFoundError: look again); once open, it can be read to its
    end, whatever becomes of its name.

    Opening blocks, for some milliseconds, however many blobs there are: it is to be done off the event loop, or before
    there is one. What a crash has left is cleared away behind everybody's back, by one process of all, and the index is
    brought to what lies on the disk (`settled`). Until then a blob that the index does not know is located all the same,
    and what is evicted is what the index knows. Raises OSError, sqlite3.Error or StorageUnavailable when the directory
    cannot be used.

    With `marks`, whatever becomes of a blob's file changes the mark `blob:DIGEST`, once it is done: another one was put
    in its place, it was put aside, deleted or evicted, or was found to be gone.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        quarantine_max_bytes: int = 256 << 20,
        marks: Marks | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = directory / "sha256"
        self._incoming = directory / "incoming"
        self._quarantine = directory / "quarantine"
        self._quarantine_max_bytes = quarantine_max_bytes
        self._marks = marks
        self._monotonic = monotonic
        self._verified: dict[Digest, _Identity] = {}
        self._touched: dict[Digest, float] = {}
        self._evicted = self._corrupted = self._broken = self._missing = 0
        for needed in (self._blobs, self._incoming, self._quarantine):
            needed.mkdir(parents=True, exist_ok=True)
            _fsync_directory(needed.parent)
        # What the loss of power takes from the index is found out from the files, which are synced before they are named.
        self._index = Index(
            directory / "index", max_bytes=max_bytes, disk=_SizesDisk, synced=False, monotonic=monotonic
        )
        self._index.tidy(self._recover)

    async def put(self, artifact: Artifact, inspect: Inspection) -> Blob:
        """As promised in the contract.

        A cancellation that comes while the file is getting its name is too late: then the blob is there, whole.
        """
        staged = Staged(self._incoming)
        try:
            size_bytes, rest = await self._receive(artifact, staged)
            # One thread does all that is left: going back and forth costs more than most of it.
            return await asyncio.to_thread(self._keep, staged, rest, size_bytes, artifact.media_type, inspect)
        except BaseException:
            # Waited for even when this task is cancelled: whoever sees the put end finds nothing half done.
            await asyncio.shield(asyncio.to_thread(staged.discard))
            raise

    async def locate(self, digest: Digest) -> LocalFile | None:
        """As promised in the contract.

        The bytes are hashed at the first look after the start, and again whenever the file is not the one that was
        looked at; otherwise this costs one `stat`. Raises StorageUnavailable when the disk cannot say.
        """
        if not _DIGEST.fullmatch(digest):
            return None
        path = self._path(digest)
        identity, sound = await _on_disk(self._examine, digest, path)
        if not await self._is_there(digest, identity, sound=sound):
            return None
        assert identity is not None  # noqa: S101 -- it is there
        return LocalFile(path, identity.size_bytes)

    async def open(self, digest: Digest) -> OpenFile | None:
        """As promised in the contract, at the cost of `locate`. Raises StorageUnavailable when the disk cannot say."""
        if not _DIGEST.fullmatch(digest):
            return None
        work = partial(self._examine_and_open, digest, self._path(digest))
        found = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            identity, sound, handle = await asyncio.shield(found)
        except asyncio.CancelledError:
            # Nobody is left to close what the thread has yet to open.
            found.add_done_callback(_close_opened)
            raise
        if not await self._is_there(digest, identity, sound=sound) or handle is None:
            return None
        assert identity is not None  # noqa: S101 -- it is there
        return OpenFile(handle, identity.size_bytes)

    async def _is_there(self, digest: Digest, identity: _Identity | None, *, sound: bool) -> bool:
        """Whether what was found is the blob; what is missing or broken is noted."""
        if identity is None:
            await self._index.run(self._note_missing, digest)
        elif not sound:
            await self._index.run(self._put_aside, digest, identity)
        else:
            self._touch(digest, identity.size_bytes)
            return True
        return False

    async def delete(self, digest: Digest) -> None:
        """As promised in the contract. Raises StorageUnavailable when the disk does not let it go."""
        if _DIGEST.fullmatch(digest):
            await self._index.run(self._delete, digest)

    def statistics(self) -> BlobStatistics:
        """Costs nothing: no disk is asked."""
        return BlobStatistics(
            entries=self._index.entries,
            bytes_stored=self._index.weight_bytes,
            evicted=self._evicted,
            corrupted=self._corrupted,
            broken=self._broken,
            missing=self._missing,
            refused_rows=self._index.refused,
        )

    async def settled(self) -> None:
        """Have what a start looks at looked at now, and return when it is done. Raises StorageUnavailable."""
        await self._index.settled()

    def close(self) -> None:
        """Finish what is being written to the index and close it; may be called twice."""
        self._index.close()

    # On any thread.

    async def _receive(self, artifact: Artifact, staged: Staged) -> tuple[int, bytes]:
        """How many bytes came, and the last of them: those that are not written yet."""
        announced, came, waiting = artifact.size_bytes, 0, bytearray()
        # No fault is translated around this loop: what the reader of the chunks raises is its own, a TimeoutError too.
        async for chunk in artifact.chunks:
            came += len(chunk)
            if announced is not None and came > announced:
                raise ResultBroken(
                    f"More came than was announced: {announced} bytes were, and there is more."
                )
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await _on_disk(staged.write, bytes(waiting))
                waiting.clear()
        if announced is not None and came < announced:
            raise ResultBroken(f"Less came than was announced: {came} of {announced} bytes.")
        return came, bytes(waiting)

    def _keep(
        self, staged: Staged, rest: bytes, size_bytes: int, media_type: str, inspect: Inspection
    ) -> Blob:
        """Write the `rest`, and have it all inspected, synced and published. A `discard` comes between any two of these."""
        with storage_faults():
            staged.write(rest)
        digest = staged.digest()
        try:
            inspect(staged.path, media_type)
        except ResultBroken as broken:
            evidence = _Evidence(str(broken), media_type, size_bytes, digest)
            with suppress(StorageUnavailable):  # what is wrong is told, even where it cannot be kept
                self._index.do(self._keep_evidence, staged, evidence)
            raise
        with storage_faults():
            staged.sync()
        self._index.do(self._publish, staged, digest, size_bytes)
        self._note_touch(digest, self._monotonic())
        staged.discard()
        return Blob(digest, size_bytes, media_type)

    def _examine(self, digest: Digest, path: Path) -> tuple[_Identity | None, bool]:
        """What lies at `path`, and whether it is what its name says."""
        looked_at = time.time_ns()  # the clock that stamps the files, whatever clock the gateway runs by
        try:
            identity = _Identity.of(path.lstat())
            if self._verified.get(digest) == identity:
                return identity, True
            sound = identity.is_file and _readable_sha256(path) == digest
        except FileNotFoundError:
            return None, False
        if sound and looked_at - identity.changed_ns > _TICK_NANOSECONDS:
            if len(self._verified) >= _MOST_REMEMBERED:
                self._verified.clear()
            self._verified[digest] = identity
        return identity, sound

    def _examine_and_open(
        self, digest: Digest, path: Path
    ) -> tuple[_Identity | None, bool, IO[bytes] | None]:
        with storage_faults():
            identity, sound = self._examine(digest, path)
            try:
                return identity, sound, path.open("rb") if sound else None
            except FileNotFoundError:
                # Dropped between being looked at and being opened.
                return identity, sound, None

    def _touch(self, digest: Digest, size_bytes: int) -> None:
        """Note the use for the order of eviction.

        diskcache would turn each read into a durable write; a minute is exact enough for videos that stay for weeks, so
        it is told once a minute and blob, behind the answer's back.
        """
        now = self._monotonic()
        touched = self._touched.get(digest)
        if touched is not None and now - touched < _TOUCH_EVERY_SECONDS:
            return
        self._note_touch(digest, now)
        self._index.later(self._note_use, digest, size_bytes)

    def _note_touch(self, digest: Digest, now: float) -> None:
        if len(self._touched) >= _MOST_REMEMBERED:
            self._touched.clear()
        self._touched[digest] = now

    def _path(self, digest: Digest) -> Path:
        return self._blobs / digest[:2] / digest

    def _change_mark(self, digest: Digest) -> None:
        if self._marks is not None:
            self._marks.change(f"blob:{digest}")

    # On the index's thread.

    def _publish(self, staged: Staged, digest: Digest, size_bytes: int) -> None:
        path = self._path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            _fsync_directory(self._blobs)
        with staged.held():
            known = True
            try:
                with self._index.transaction():
                    known = path.exists()
                    self._index.set(digest, size_bytes)
                    victims = self._index.evict(keep=digest)
                    # Over whatever is there: the same bytes, or a broken copy of them.
                    staged.rename(path)
                    _fsync_directory(path.parent)
            except BaseException:
                if staged.renamed and not known:
                    path.unlink(missing_ok=True)
                raise
            finally:
                self._change_mark(digest)
        self._remove_evicted(victims)

    def _remove_evicted(self, victims: list[str]) -> None:
        """Remove files whose rows are gone; after the commit, or a put that fails would have cost others their blobs.

        What stays behind when this is cut short is found again when the store is opened.
        """
        if not victims:
            return
        with self._index.transaction():
            for victim in map(Digest, victims):
                if victim not in self._index:  # else another process has just put it again
                    self._unlink(victim)
                    self._evicted += 1

    def _unlink(self, digest: Digest) -> None:
        self._path(digest).unlink(missing_ok=True)
        self._change_mark(digest)
        self._verified.pop(digest, None)
        self._touched.pop(digest, None)

    def _delete(self, digest: Digest) -> None:
        with self._index.transaction():
            self._index.delete(digest)
            self._unlink(digest)

    def _note_missing(self, digest: Digest) -> None:
        if digest not in self._index:
            return  # never there, or deleted, or evicted
        with self._index.transaction():
            if not self._path(digest).exists() and self._index.delete(digest):
                self._missing += 1
                self._change_mark(digest)

    def _note_use(self, digest: Digest, size_bytes: int) -> None:
        if self._index.get(digest) is not None:
            self._index.use(digest)
            return
        victims: list[str] = []
        with self._index.transaction():
            # Dropped from the index by hand, or by another process that is just evicting it: it is in use, so it stays.
            if self._path(digest).exists():
                self._index.set(digest, size_bytes)
                victims = self._index.evict(keep=digest)
        self._remove_evicted(victims)

    def _put_aside(self, digest: Digest, judged: _Identity) -> None:
        path = self._path(digest)
        with self._index.transaction():
            # Somebody else may have put it aside, or a put may have replaced it by a whole one, since it was judged.
            with suppress(FileNotFoundError):
                if _Identity.of(path.lstat()) == judged:
                    path.replace(self._quarantine / digest)
                    self._change_mark(digest)
                    self._corrupted += 1
                    self._index.delete(digest)
            self._trim_quarantine()

    def _keep_evidence(self, staged: Staged, evidence: _Evidence) -> None:
        self._broken += 1
        path = self._quarantine / f"{_BROKEN}{evidence.sha256}"
        with staged.held(), self._index.transaction():
            staged.rename(path)
            path.with_suffix(_EVIDENCE).write_bytes(evidence.written(path.stat().st_mtime))
            self._trim_quarantine()

    def _trim_quarantine(self) -> None:
        aside: list[tuple[int, int, Path]] = []
        for entry in self._quarantine.iterdir():
            with suppress(FileNotFoundError):  # whoever looks through the evidence may remove it, too
                if entry.suffix != _EVIDENCE:
                    seen = entry.lstat()
                    aside.append((seen.st_ctime_ns, seen.st_size, entry))
                elif not entry.with_suffix("").exists():
                    entry.unlink()
        kept_bytes = 0
        for count, (_, size_bytes, entry) in enumerate(sorted(aside, reverse=True), start=1):
            kept_bytes += size_bytes
            if count > _QUARANTINED_FILES or (kept_bytes > self._quarantine_max_bytes and count > 1):
                entry.unlink(missing_ok=True)
                entry.with_suffix(_EVIDENCE).unlink(missing_ok=True)

    def _make_room(self) -> bool:
        """Whether there was something to evict."""
        victims = self._index.evict()
        self._remove_evicted(victims)
        return bool(victims)

    def _agree(self, digests: Sequence[Digest]) -> None:
        """Have the index know those of `digests` that are there, and no others."""
        with self._index.transaction():
            for digest in digests:
                try:
                    seen = self._path(digest).lstat()
                except FileNotFoundError:
                    if self._index.delete(digest):
                        self._missing += 1
                        self._change_mark(digest)
                else:
                    # A file without a row is whole: it was synced before it got its name.
                    if digest not in self._index:
                        self._index.set(digest, seen.st_size, used_at=seen.st_mtime)

    # While tidying.

    def _recover(self) -> Slices:
        """Clear away what a crash left, bring the index to what lies on the disk, and both within the limit."""
        for path in self._incoming.iterdir():
            _remove_if_abandoned(path)
        yield
        for folder in range(256):
            yield from self._compare(f"{folder:02x}")
        while self._index.do(self._make_room):
            yield

    def _compare(self, folder: str) -> Slices:
        found = self._files(folder)
        # Others come and go meanwhile: what differs here is looked at once more in a transaction.
        differing = [Digest(name) for name in found ^ self._index.keys_between(folder, f"{folder}g")]
        for start in range(0, len(differing), _LOOKED_AT_AT_ONCE):
            self._index.do(self._agree, differing[start : start + _LOOKED_AT_AT_ONCE])
            yield
        yield

    def _files(self, folder: str) -> frozenset[str]:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._blobs / folder) as entries:
            return frozenset(
                name for entry in entries if _DIGEST.fullmatch(name := entry.name) and name.startswith(folder)
            )
        return frozenset()


class _SizesDisk(NoPickleDisk):
    """The rows hold their blobs' sizes, and weigh as much as their blobs."""

    def weigh(self, value: Value) -> int:
        return value if isinstance(value, int) else super().weigh(value)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What can be said of a file that was refused: nothing of who asked, for what, or where it came from."""

    reason: str
    media_type: str
    size_bytes: int
    sha256: Digest

    def written(self, received_at: float) -> bytes:
        """As JSON; `received_at` by the clock that stamps the files, in seconds since the epoch."""
        received = datetime.fromtimestamp(received_at, UTC).isoformat(timespec="seconds")
        return orjson.dumps({**asdict(self), "received_at": received}, option=orjson.OPT_INDENT_2)


@dataclass(frozen=True, slots=True)
class _Identity:
    """By what a file is known again without reading it."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    is_file: bool

    @classmethod
    def of(cls, seen: os.stat_result) -> _Identity:
        return cls(seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, stat.S_ISREG(seen.st_mode))


async def _on_disk(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, done in a thread; what the disk raises becomes StorageUnavailable."""

    def translated() -> T:
        with storage_faults():
            return work(*args, **kwargs)

    return await asyncio.to_thread(translated)


def _close_opened(found: asyncio.Future[tuple[_Identity | None, bool, IO[bytes] | None]]) -> None:
    if not found.cancelled() and found.exception() is None and (handle := found.result()[2]) is not None:
        handle.close()


def _readable_sha256(path: Path) -> str | None:
    """The digest of the bytes; None where they cannot be read back (a bad sector)."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    """Remove a staged file unless the process that writes it lives and holds its lock."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            path.unlink()
        finally:
            os.close(descriptor)
