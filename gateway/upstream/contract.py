"""Who makes the media: buys once, may be asked for the result as often as needed."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.generation import Artifact, GenerationRequest, Json
from gateway.domain.identity import Ticket
from gateway.domain.money import Money


class Progress(enum.Enum):
    """How far the upstream says it is; anything that it says and we do not know is PROCESSING."""

    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the upstream made for one ticket."""

    artifacts: AsyncIterator[Artifact]
    """Each is to be read before the next is asked for; there is at least one."""

    cost: Money | None
    """What it charged; None when it did not say, which is not the same as nothing."""

    seed: int | None
    """The seed that it says it used."""

    seconds: float | None
    """How long it says it worked."""


class Standing(enum.Enum):
    """How a past call stands in the upstream's history."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    PENDING = "PENDING"


@dataclass(frozen=True, slots=True)
class PastCall:
    """One row of the upstream's own history of the account, whoever made the call."""

    ticket: Ticket
    model: str
    standing: Standing
    cost: Money | None
    """What was charged; None when the row does not say."""

    inputs: Mapping[str, Json] | None
    """The parameters as they were sent; None when the row does not say."""

    submitted_at: float | None
    """When, in seconds since the epoch; None when the row does not say."""

    error: str | None
    """Why it failed, scrubbed and cut; None unless FAILED."""


class History(Protocol):
    """What the upstream itself has written down. It may lag behind what it does."""

    async def past_call(self, ticket: Ticket) -> PastCall | None:
        """The call of that ticket, of any age; None if the history does not have it.

        Raises NotBought kinds or ResultUnavailable when the history cannot be asked: no answer is not a None.
        """

    async def past_calls(self, since: float, until: float) -> Sequence[PastCall]:
        """Every call that was submitted between the two moments (seconds since the epoch), each once.

        Whole or not at all: raises, as `past_call` does, when any page of it cannot be had.
        """


class Upstream(Protocol):
    async def submit(self, request: GenerationRequest) -> Ticket:
        """Buy: one request on the wire, never repeated here, except where the last try proved not to be a purchase.

        Raises NotBought when nothing was bought, OutcomeUnknown when nobody can say.
        Whatever else ends it (cancellation included) after the first byte left is to be taken for OutcomeUnknown.
        """

    def collect(
        self,
        ticket: Ticket,
        model: str,
        on_progress: Callable[[Progress], None],
        *,
        expected_seconds: float | None = None,
        elapsed_seconds: float = 0.0,
    ) -> AbstractAsyncContextManager[Delivery]:
        """Wait until the ticket's generation is made, however long that takes, and open the delivery.

        `expected_seconds` is how long it usually takes, None where nobody knows, and `elapsed_seconds` how long ago it
        was bought: they say when to look, and end nothing.

        May be repeated, by any process, and buys nothing. Passing faults of polls and downloads are retried
        within. Raises GenerationFailed (not charged), ResultGone when the upstream has forgotten the ticket,
        ResultUnavailable when the media cannot be had. Errors of the code that reads the delivery pass unchanged.
        """

    async def credits(self) -> Money:
        """The account's remaining balance. Raises NotBought kinds when it cannot be asked."""
