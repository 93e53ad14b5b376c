"""What is asked for, what comes back, and how it was answered."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from gateway.domain.identity import Digest, Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
"""A JSON value, parsed."""

Parameters = Mapping[str, Json]
"""A model's parameters, complete: checked, defaults filled in, numbers in one form."""


class CacheStatus(enum.Enum):
    """How a request was answered, in the words of RFC 9211."""

    HIT = "hit"
    MISS = "miss"
    COLLAPSED = "collapsed"
    BYPASS = "bypass"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request that is valid, complete, named and priced."""

    model: str
    parameters: Parameters
    fingerprint: Fingerprint
    price: Money
    """What the model's rule says that it costs; of a purchase, what was held for it."""

    seed: int | None = None
    """The seed that will be sent; None for a model without one."""

    fresh: bool = False
    """Whether the caller asked for something new (`seed: -1`): the cache is not asked, only filled."""

    shape: str = ""
    """Requests of a model that have this in common are expected to cost and to take the same; empty: not known."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes at rest."""

    digest: Digest
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """Bytes on their way in. `chunks` can be read once."""

    media_type: str
    chunks: AsyncIterator[bytes]
    size_bytes: int | None = None
    """The length that was announced, if one was."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What the cache remembers of one purchase that landed."""

    fingerprint: Fingerprint
    model: str
    blobs: tuple[Blob, ...]
    """What was made, the principal one first; never empty."""

    cost: Money
    """What the upstream charged for it."""

    purchase: PurchaseId
    ticket: Ticket
    made_at: float
    """When it landed, in seconds since the epoch."""

    seconds: float | None = None
    """How long the upstream says that it worked."""

    seed: int | None = None
    """The seed that made it."""

    @property
    def blob(self) -> Blob:
        """The principal blob: what `POST /v1/{model}` answers with."""
        return self.blobs[0]

    def to_json(self) -> dict[str, Json]:
        """All of it, for whoever keeps it; `from_json` reads it back."""
        return {
            "fingerprint": self.fingerprint,
            "model": self.model,
            "blobs": [[blob.digest, blob.size_bytes, blob.media_type] for blob in self.blobs],
            "cost_micros": self.cost.micros,
            "purchase": self.purchase,
            "ticket": self.ticket,
            "made_at": self.made_at,
            "seconds": self.seconds,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Generation:
        """What `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            fingerprint=Fingerprint(kept["fingerprint"]),
            model=kept["model"],
            blobs=tuple(Blob(Digest(digest), size, media) for digest, size, media in kept["blobs"]),
            cost=Money(kept["cost_micros"]),
            purchase=PurchaseId(kept["purchase"]),
            ticket=Ticket(kept["ticket"]),
            made_at=kept["made_at"],
            seconds=kept["seconds"],
            seed=kept["seed"],
        )
