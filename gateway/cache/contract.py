"""fingerprint -> Generation; small, bounded, may forget (an "action cache")."""

from __future__ import annotations

from typing import Protocol

from gateway.domain.generation import Generation
from gateway.domain.identity import Fingerprint


class GenerationCache(Protocol):
    """May forget anything at any time, but never remembers wrongly: `get` answers what was last `put`, or None.

    An entry that cannot be read is counted, dropped, and answered with None. Every method raises StorageUnavailable
    when the storage does not answer: an answer of None would have the same thing bought again.
    """

    async def get(self, fingerprint: Fingerprint) -> Generation | None: ...

    async def put(self, generation: Generation) -> None: ...

    async def forget(self, fingerprint: Fingerprint) -> None: ...
