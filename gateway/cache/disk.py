"""Cache entries in one local database file, with the hot ones in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gateway.database.marks import Marks
from gateway.database.nopickle import Index
from gateway.database.tidying import Slices
from gateway.domain.generation import Generation
from gateway.domain.identity import Fingerprint

_SCHEMA_VERSION = 2
_TOUCH_EVERY_SECONDS = 60.0
_LOOK_AGAIN_AFTER_SECONDS = 1.0
_LOOK_ALL_THE_SAME_AFTER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a scrape wants to know; counts are of this process since it opened the cache."""

    entries: int
    bytes_stored: int
    """`entries` and `bytes_stored` as of this process's last write or look into the database."""

    evicted: int
    unreadable: int
    """Entries that were dropped: not JSON, of another version, incomplete, or not ours (pickled, for example)."""


@dataclass(slots=True)
class _Remembered:
    generation: Generation
    place: int
    mark: int
    """Of `place`, from before the entry was read."""

    touched: float
    looked: float


class DiskGenerationCache:
    """Keeps the contract of `GenerationCache` in `directory`, within `max_bytes` of entries (a few hundred bytes each).

    The least recently used are evicted. A `put` that has returned survives the loss of power. Every method raises
    StorageUnavailable when the disk cannot say: an answer of None would have the same thing bought again.

    Other processes may use the same directory. What they put or forget is seen here at once where there are `marks`:
    each entry that is put, forgotten, evicted or refused changes the mark `entry:FINGERPRINT`, once that is committed.
    An entry in memory whose mark has changed is looked for in the database again; one whose mark has not, once a minute
    all the same, since a process may have died between its commit and its mark. Without marks it is once a second.

    Opening blocks, for some milliseconds, however many entries there are: it is to be done off the event loop, or before
    there is one. What a start has to look at besides is looked at behind everybody's back: whether the file is sound,
    rows that are not ours, a limit that is lower now (`settled`). Raises OSError, sqlite3.Error or StorageUnavailable
    when the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        max_remembered: int = 10_000,
        marks: Marks | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_remembered = max_remembered
        self._marks = marks
        self._trusted_seconds = (
            _LOOK_AGAIN_AFTER_SECONDS if marks is None else _LOOK_ALL_THE_SAME_AFTER_SECONDS
        )
        self._monotonic = monotonic
        # Changed on the index's thread only, in the order in which the database is: memory cannot fall behind it.
        self._remembered: OrderedDict[Fingerprint, _Remembered] = OrderedDict()
        self._evicted = self._unreadable = 0
        # What the loss of power takes from it is asked of the journal, and remembered again.
        self._index = Index(
            directory, max_bytes=max_bytes, synced=False, on_change=self._change_mark, monotonic=monotonic
        )
        self._index.tidy(self._make_room)

    async def get(self, fingerprint: Fingerprint) -> Generation | None:
        """As promised in the contract; what is in memory, and unchanged, costs no I/O and no thread."""
        remembered = self._remembered.get(fingerprint)
        if remembered is None:
            return await self._index.run(self._read, fingerprint)
        now = self._monotonic()
        if (
            remembered.mark == self._mark(remembered.place)
            and now - remembered.looked < self._trusted_seconds
        ):
            generation: Generation | None = remembered.generation
        else:
            generation = await self._index.run(self._look_again, fingerprint)
        if now - remembered.touched >= _TOUCH_EVERY_SECONDS:
            # The order of eviction wants to know, and callers need not wait until it does.
            remembered.touched = now
            self._index.later(self._note_use, fingerprint)
        return generation

    async def put(self, generation: Generation) -> None:
        """As promised in the contract. One that is cancelled may have been done."""
        await self._index.run(self._write, generation, _encode(generation))

    async def forget(self, fingerprint: Fingerprint) -> None:
        """As promised in the contract; nothing happens if it is not there. One that is cancelled may have been done."""
        await self._index.run(self._forget, fingerprint)

    def statistics(self) -> CacheStatistics:
        """Costs nothing: no disk is asked."""
        return CacheStatistics(
            entries=self._index.entries,
            bytes_stored=self._index.weight_bytes,
            evicted=self._evicted,
            unreadable=self._unreadable + self._index.refused,
        )

    async def settled(self) -> None:
        """Have what a start looks at looked at now, and return when it is done. Raises StorageUnavailable."""
        await self._index.settled()

    def close(self) -> None:
        """Finish what is being written and close the database; may be called twice."""
        self._index.close()

    # On any thread.

    def _mark(self, place: int) -> int:
        return 0 if self._marks is None else self._marks.read(place)

    def _change_mark(self, fingerprint: str) -> None:
        if self._marks is not None:
            self._marks.change(_mark_name(fingerprint))

    # While tidying.

    def _make_room(self) -> Slices:
        """The limit may be lower than it was."""
        while self._index.do(self._evict):
            yield

    # On the index's thread.

    def _look_again(self, fingerprint: Fingerprint) -> Generation | None:
        remembered = self._remembered.get(fingerprint)
        if remembered is None:
            return self._read(fingerprint)
        mark, now = self._mark(remembered.place), self._monotonic()
        if self._index.peek(fingerprint) != _encode(remembered.generation):
            return self._read(fingerprint)
        remembered.mark, remembered.looked = mark, now
        return remembered.generation

    def _read(self, fingerprint: Fingerprint) -> Generation | None:
        self._remembered.pop(fingerprint, None)
        place = Marks.place(_mark_name(fingerprint))
        mark = self._mark(place)
        entry = self._index.get(fingerprint)
        if entry is None:
            return None
        try:
            generation = _decode(entry, fingerprint)
        except (TypeError, ValueError):
            self._index.delete(fingerprint)
            self._unreadable += 1
            return None
        self._remember(generation, place, mark)
        self._index.use(fingerprint)
        return generation

    def _write(self, generation: Generation, entry: bytes) -> None:
        fingerprint = generation.fingerprint
        with self._index.transaction():
            self._index.set(fingerprint, entry)
            evicted = self._index.evict(keep=fingerprint)
        self._drop_evicted(evicted)
        # Another process may have been here since the commit, and have changed the mark before it is read here.
        place = Marks.place(_mark_name(fingerprint))
        mark = self._mark(place)
        if self._index.peek(fingerprint) == entry:
            self._remember(generation, place, mark)
        else:
            self._remembered.pop(fingerprint, None)

    def _forget(self, fingerprint: Fingerprint) -> None:
        self._remembered.pop(fingerprint, None)
        self._index.delete(fingerprint)

    def _evict(self) -> bool:
        """Whether there was something to evict."""
        evicted = self._index.evict()
        self._drop_evicted(evicted)
        return bool(evicted)

    def _drop_evicted(self, evicted: list[str]) -> None:
        self._evicted += len(evicted)
        for fingerprint in map(Fingerprint, evicted):
            self._remembered.pop(fingerprint, None)

    def _note_use(self, fingerprint: Fingerprint) -> None:
        self._index.use(fingerprint)
        if fingerprint in self._remembered:
            self._remembered.move_to_end(fingerprint)

    def _remember(self, generation: Generation, place: int, mark: int) -> None:
        now = self._monotonic()
        self._remembered[generation.fingerprint] = _Remembered(
            generation, place=place, mark=mark, touched=now, looked=now
        )
        self._remembered.move_to_end(generation.fingerprint)
        while len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


def _mark_name(fingerprint: str) -> str:
    return f"entry:{fingerprint}"


class _Entry(BaseModel):
    """What `_encode` writes, type by type; read strictly, where True is no number and 1.0 is no count."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    version: Literal[2]
    fingerprint: str
    model: str
    blobs: Annotated[list[tuple[str, int, str]], Field(min_length=1)]
    cost_micros: int
    purchase: str
    ticket: str
    made_at: float
    seconds: float | None
    seed: int | None


def _encode(generation: Generation) -> bytes:
    return orjson.dumps({"version": _SCHEMA_VERSION, **generation.to_json()})


def _decode(entry: object, fingerprint: Fingerprint) -> Generation:
    """Raises TypeError or ValueError for what `_encode` does not write for this fingerprint."""
    if not isinstance(entry, bytes):
        raise TypeError("an entry is bytes")
    generation = Generation.from_json(_Entry.model_validate_json(entry).model_dump())
    if generation.fingerprint != fingerprint:
        raise ValueError("of another fingerprint")
    return generation
