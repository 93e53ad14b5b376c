"""digest -> bytes; immutable, whole or absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from gateway.domain.generation import Artifact, Blob
from gateway.domain.identity import Digest

Inspection = Callable[[Path, str], None]
"""Reads a staged file of a media type, in a thread; raises ResultBroken if it is not what it should be.

What else it should be, its caller knows: `functools.partial(inspect, expectation=...)`.
"""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A blob as a file that may be read for as long as it is held open."""

    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A blob that is open: it can be read to its end, whatever happens to it in the store."""

    handle: IO[bytes]
    size_bytes: int


class BlobStore(Protocol):
    """Content-addressed: a digest names the same bytes for ever.

    A blob is either wholly there or not there. A `put` that fails, is cut or is cancelled leaves nothing behind, but
    for evidence of what `inspect` refused; one that has returned survives the loss of power.
    Every method raises StorageUnavailable when the storage does not answer: then nobody knows whether a blob is there.
    """

    async def put(self, artifact: Artifact, inspect: Inspection) -> Blob:
        """Write beside, hash, `inspect`, fsync, rename.

        Raises ResultBroken when fewer or more bytes came than were announced, or when `inspect` says so;
        StorageUnavailable when the disk does not take it. What the reader of `chunks` raises passes unchanged.

        What `inspect` refuses is counted and put aside with the reason, where nobody is served from, as far as there
        is room: it came whole, and was paid for.
        """

    async def locate(self, digest: Digest) -> LocalFile | None:
        """The blob's whereabouts; None if it is not there, or no longer what its digest says.

        A blob that does not match its digest is counted, put aside and never located again.
        """

    async def open(self, digest: Digest) -> OpenFile | None:
        """The blob, opened, where `locate` would have found it. Whoever is given it closes it."""

    async def delete(self, digest: Digest) -> None:
        """Forget the blob; nothing happens if it is not there."""
