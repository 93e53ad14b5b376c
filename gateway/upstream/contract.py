"""Who makes the media: buys once, may be asked for the result as often as needed."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.generation import Artifact, GenerationRequest
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


class Upstream(Protocol):
    async def submit(self, request: GenerationRequest) -> Ticket:
        """Buy: one request on the wire, never repeated here, except where the last try proved not to be a purchase.

        Raises NotBought when nothing was bought, OutcomeUnknown when nobody can say.
        Whatever else ends it (cancellation included) after the first byte left is to be taken for OutcomeUnknown.
        """

    def collect(
        self, ticket: Ticket, model: str, on_progress: Callable[[Progress], None]
    ) -> AbstractAsyncContextManager[Delivery]:
        """Wait until the ticket's generation is made, however long that takes, and open the delivery.

        May be repeated, by any process, and buys nothing. Passing faults of polls and downloads are retried
        within. Raises GenerationFailed (not charged), ResultGone when the upstream has forgotten the ticket,
        ResultUnavailable when the media cannot be had. Errors of the code that reads the delivery pass unchanged.
        """

    async def credits(self) -> Money:
        """The account's remaining balance. Raises NotBought kinds when it cannot be asked."""
