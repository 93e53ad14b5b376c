"""What each caller asked for and what became of it: the resources behind `/v2/requests/{id}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

from gateway.domain.generation import CacheStatus, Generation, GenerationRequest, Json
from gateway.domain.identity import PurchaseId, RequestId
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span


@dataclass(frozen=True, slots=True)
class Completed:
    """It was answered with a generation, for which this request cost the tenant `charged`."""

    generation: Generation
    charged: Money
    status: CacheStatus


@dataclass(frozen=True, slots=True)
class Failed:
    """It was answered with an error."""

    code: str
    message: str
    details: Mapping[str, Json] = field(default_factory=dict)


Outcome = Completed | Failed


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One caller's request."""

    id: RequestId
    tenant: str
    key_id: str
    request: GenerationRequest
    submitted_at: float
    purchase: PurchaseId | None = None
    """The purchase that was made for this very request; None for one that hit or joined."""

    concluded_at: float | None = None
    outcome: Outcome | None = None
    """None while it is being worked on."""


class RequestRecords(Protocol):
    """Durable: a record that was opened is found after any crash; an outcome is written once and never changes.

    All may raise StorageUnavailable, and have then changed nothing.
    """

    async def open(self, record: RequestRecord, *, patient: bool = False) -> None:
        """Write down a new request, concluded or not; one that is `patient` with what else is written down by and by."""

    async def conclude(self, request: RequestId, outcome: Outcome, *, at: float | None = None) -> None:
        """Write down what became of it, with what else is written down by and by; the first outcome stays.

        `at` is when that was so, where it is known from elsewhere; now, if nothing is said.
        """

    async def find(self, request: RequestId, tenant: str) -> RequestRecord | None:
        """The tenant's own request of that name, if there is one."""

    async def adopt_pending(self, *, followed: AbstractSet[RequestId]) -> Sequence[RequestRecord]:
        """Take over the unconcluded records of processes that have died.

        Answers with all that are this process's by now, but for those that it `followed` all along, oldest first.
        """

    async def forget_before(self, moment: float) -> int:
        """Drop concluded records submitted before `moment`; answers how many."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How requests for one model were answered: of a tenant, or of one of its keys within some time."""

    hits: int = 0
    misses: int = 0
    collapsed: int = 0
    bypasses: int = 0
    saved_by_hits: Money = Money.ZERO
    saved_by_joining: Money = Money.ZERO

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.hits + other.hits,
            self.misses + other.misses,
            self.collapsed + other.collapsed,
            self.bypasses + other.bypasses,
            self.saved_by_hits + other.saved_by_hits,
            self.saved_by_joining + other.saved_by_joining,
        )


class Tallies(Protocol):
    """Counts of answers. Counting costs no I/O; what was counted in the last moments before a crash may be lost."""

    def count(self, party: Party, model: str, status: CacheStatus, saved: Money, *, at: float) -> None:
        """One answer, to what was asked `at` that time."""

    def add(self, party: Party, model: str, more: Tally, *, at: float) -> None:
        """Many at once."""

    async def flush(self) -> None:
        """Write down what was counted so far."""

    async def totals(self, tenant: str | None = None) -> Mapping[tuple[str, str], Tally]:
        """Everything counted, by tenant and model, the last moment included; of one tenant only, if one is named."""

    async def by_key(self, spans: Sequence[Span]) -> Mapping[tuple[Party, str, int], Tally]:
        """What was asked in some stretches of time: by key, model, and which of `spans` it was.

        What was counted before quarters of an hour were kept apart is in the first one there is, without a key.
        """
