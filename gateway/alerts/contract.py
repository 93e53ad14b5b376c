"""What is told of budgets before and when they are used up: each thing once, and sent until somebody has it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PROJECTED = "projected"
"""The threshold of a budget that will be passed before its window ends, at the present pace."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One budget has come to one of its thresholds."""

    id: str
    """The message's own: the same at every try to send it."""

    raised_at: float
    tenant: str
    key_id: str
    """Empty where the budget is the tenant's own."""

    budget: str
    threshold: str
    """Hundredths of the limit (`80`), or PROJECTED."""

    window_start: int
    """The quarter of an hour since the epoch in which its window began; of a rolling one, in which this was raised."""

    same_since: int
    """Another alert of this budget and threshold is the same one, if its `window_start` is this or later."""

    message: str
    """What is sent: JSON."""


class State(enum.Enum):
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given up"
    UNSENT = "unsent"
    """It was raised while there was nowhere to send it to."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One try to send an alert."""

    at: float
    seconds: float
    status: int | None
    """What the receiver answered; None where no answer came."""

    error: str = ""
    """Why it was not taken; empty if it was."""

    retry_after_seconds: float | None = None
    """How long the receiver asks to be left alone; None where it did not say. Not written down."""


@dataclass(frozen=True, slots=True)
class Progress:
    """An alert, and what became of it."""

    alert: Alert
    state: State
    due_at: float | None
    """When it is sent next; None unless pending."""

    deliveries: Sequence[Delivery]
    """Every try, oldest first."""


class Alerts(Protocol):
    """What was raised, and how its sending goes: one log for all processes, and through all restarts."""

    async def raise_once(self, alerts: Sequence[Alert], *, to_be_sent: bool) -> Sequence[Alert]:
        """Write down those that are new, and answer which these are: one a holder, budget, threshold and window, for ever.

        However many processes try it at the same time. They are due at once if they are `to_be_sent`.
        """

    async def due(self, now: float, *, limit: int) -> Sequence[Progress]:
        """Those whose time has come to be sent, the longest due first."""

    async def write_down(self, alert: str, delivery: Delivery, *, again_at: float | None) -> State:
        """How a try ended, and so the alert stands: delivered if there was no error, else pending again or given up."""

    async def listed(self, *, tenant: str | None = None, limit: int = 100) -> Sequence[Progress]:
        """The newest alerts, newest first; of one tenant only, if one is named."""

    async def forget_before(self, moment: float) -> int:
        """Drop what was raised before `moment`, with every try, unless it is pending; answers how many.

        The newest of a holder, budget and threshold stays whatever its age: it is what says that this was told.
        """


class Messenger(Protocol):
    """Takes messages to whoever wants to know."""

    async def send(self, message_id: str, message: str) -> Delivery:
        """One try. Raises nothing that is the receiver's fault or the way's."""
