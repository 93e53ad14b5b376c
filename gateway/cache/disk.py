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

from gateway.database.nopickle import Index
from gateway.domain.generation import Generation
from gateway.domain.identity import Fingerprint

_SCHEMA_VERSION = 2
_TOUCH_EVERY_SECONDS = 60.0
_LOOK_AGAIN_AFTER_SECONDS = 1.0


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
    touched: float
    looked: float


class DiskGenerationCache:
    """Keeps the contract of `GenerationCache` in `directory`, within `max_bytes` of entries (a few hundred bytes each).

    The least recently used are evicted. A `put` that has returned survives the loss of power. Every method raises
    StorageUnavailable when the disk cannot say: an answer of None would have the same thing bought again.

    Other processes may use the same directory. What they put or forget is seen here within a second: an entry in memory
    that was last looked for in the database longer ago than that is looked for again.

    Opening blocks: it is to be done off the event loop, or before there is one. Raises OSError, sqlite3.Error or
    StorageUnavailable when the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        max_remembered: int = 10_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_remembered = max_remembered
        self._monotonic = monotonic
        # Changed on the index's thread only, in the order in which the database is: memory cannot fall behind it.
        self._remembered: OrderedDict[Fingerprint, _Remembered] = OrderedDict()
        self._evicted = self._unreadable = 0
        self._index = Index(directory, max_bytes=max_bytes)
        try:
            self._evicted += len(self._index.do(self._index.evict))
        except BaseException:
            self._index.close()
            raise

    async def get(self, fingerprint: Fingerprint) -> Generation | None:
        """As promised in the contract; what is in memory costs no I/O and no thread, but for one look a second."""
        remembered = self._remembered.get(fingerprint)
        if remembered is None:
            return await self._index.run(self._read, fingerprint)
        now = self._monotonic()
        if now - remembered.looked >= _LOOK_AGAIN_AFTER_SECONDS:
            generation = await self._index.run(self._look_again, fingerprint)
        else:
            generation = remembered.generation
        if now - remembered.touched >= _TOUCH_EVERY_SECONDS:
            # The order of eviction wants to know; a durable write for each hit would be too much to tell it.
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

    def close(self) -> None:
        """Finish what is being written and close the database; may be called twice."""
        self._index.close()

    # On the index's thread.

    def _look_again(self, fingerprint: Fingerprint) -> Generation | None:
        remembered = self._remembered.get(fingerprint)
        if remembered is None or self._index.peek(fingerprint) != _encode(remembered.generation):
            return self._read(fingerprint)
        remembered.looked = self._monotonic()
        return remembered.generation

    def _read(self, fingerprint: Fingerprint) -> Generation | None:
        self._remembered.pop(fingerprint, None)
        entry = self._index.get(fingerprint)
        if entry is None:
            return None
        try:
            generation = _decode(entry, fingerprint)
        except (TypeError, ValueError):
            self._index.delete(fingerprint)
            self._unreadable += 1
            return None
        self._remember(generation)
        return generation

    def _write(self, generation: Generation, entry: bytes) -> None:
        with self._index.transaction():
            self._index.set(generation.fingerprint, entry)
            evicted = self._index.evict(keep=generation.fingerprint)
        self._evicted += len(evicted)
        for fingerprint in map(Fingerprint, evicted):
            self._remembered.pop(fingerprint, None)
        self._remember(generation)

    def _forget(self, fingerprint: Fingerprint) -> None:
        self._remembered.pop(fingerprint, None)
        self._index.delete(fingerprint)

    def _note_use(self, fingerprint: Fingerprint) -> None:
        self._index.get(fingerprint)
        if fingerprint in self._remembered:
            self._remembered.move_to_end(fingerprint)

    def _remember(self, generation: Generation) -> None:
        now = self._monotonic()
        self._remembered[generation.fingerprint] = _Remembered(generation, touched=now, looked=now)
        self._remembered.move_to_end(generation.fingerprint)
        while len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


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
