"""One request to the sandbox, from its submit to its end."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.domain.generation import Json, Parameters
from gateway.domain.money import Money
from gateway.sandbox.faults import Occurrence

RECORD_SECONDS = 3600.0
"""How long a request can be polled, counted from its submit."""

FILE_SECONDS = 7 * 86400.0
"""How long a result file can be fetched, counted from its completion."""


class State(enum.Enum):
    QUEUED = "QUEUED"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(slots=True)
class Job:
    """All times are seconds since the epoch, by the sandbox's clock."""

    id: str
    account: str
    model: str
    api: str
    """`v1` or `v2`: how it was asked for."""

    body: Mapping[str, Json]
    """The parameters as they were sent."""

    parameters: Parameters
    """The parameters as the model sees them: defaults filled in, a random seed drawn."""

    seed: int | None
    media_type: str
    price: Money
    """What it will cost; reserved until it ends."""

    submitted_at: float
    starts_at: float
    due_at: float
    doomed: str | None = None
    """The error with which it will fail, if it will; known from the start, told at the end."""

    faults: Mapping[str, Occurrence] = field(default_factory=dict)
    state: State = State.QUEUED
    finished_at: float | None = None
    error: str | None = None
    cost: Money = Money.ZERO
    """What was charged for it, once."""

    credits_left: Money | None = None
    """The account's balance right after it was charged."""

    file: str | None = None
    """The name of the media's file in the store."""

    output: Mapping[str, Json] = field(default_factory=dict)
    """Facts about the media: width, height, frames, fps, size in bytes."""

    missing_until: float | None = None
    """Until when its finished result is answered with 404, once that has begun."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has ended, and when the sandbox closes."""

    @property
    def expires_at(self) -> float:
        early = self.faults.get("record_expired")
        return self.submitted_at + (early.number("seconds") if early else RECORD_SECONDS)

    @property
    def shown_at(self) -> float:
        """From when on the request history has it."""
        lag = self.faults.get("history_lag")
        return self.submitted_at + (lag.number("seconds") if lag else 0.0)

    @property
    def file_expires_at(self) -> float:
        return (self.finished_at or self.submitted_at) + FILE_SECONDS

    @property
    def ended(self) -> bool:
        return self.state in {State.COMPLETED, State.FAILED}
