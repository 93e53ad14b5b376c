"""What a request would come to, without asking for it: nothing is held, written down or counted."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gateway.domain.balance import Prospect
from gateway.domain.clock import Clock
from gateway.domain.estimate import Estimate
from gateway.domain.generation import GenerationRequest
from gateway.domain.money import Money
from gateway.domain.tenant import Caller
from gateway.generation.estimating import Estimator
from gateway.generation.purchasing import OnUnknown, Purchasing
from gateway.generation.scheduling import FairSlots
from gateway.ledger.contract import Custody, State, Statements


class Prognosis(enum.Enum):
    """How a request would be answered."""

    HIT = "hit"
    IN_FLIGHT = "in_flight"
    """By what an equal request is buying, in this process or another."""

    MISS = "miss"
    BYPASS = "bypass"

    @property
    def buys(self) -> bool:
        """Whether anything would be bought for it."""
        return self in (Prognosis.MISS, Prognosis.BYPASS)


@dataclass(frozen=True, slots=True)
class Quote:
    """What one request would come to, as of now."""

    prognosis: Prognosis
    estimate: Estimate
    """For what has to be bought; seconds of a hit are none, of one in flight those that are left. What is held and expected
    is nothing where nothing is bought."""

    place: int
    """Which in the line for a slot of this process it would be; 0 where it would not wait."""

    waiting: int
    """How many wait for a slot of this process."""

    budgets: Sequence[Prospect]

    @property
    def fits(self) -> bool:
        """Whether every budget has room."""
        return all(prospect.fits for prospect in self.budgets)


class Quoting:
    """Says what requests would come to."""

    def __init__(
        self,
        *,
        purchasing: Purchasing,
        custody: Custody,
        statements: Statements,
        estimator: Estimator,
        slots: FairSlots,
        clock: Clock,
        on_unknown: OnUnknown,
    ) -> None:
        self._purchasing = purchasing
        self._custody = custody
        self._statements = statements
        self._estimator = estimator
        self._slots = slots
        self._clock = clock
        self._on_unknown = on_unknown

    async def quote(self, caller: Caller, request: GenerationRequest) -> Quote:
        """What `request` would come to for `caller`. Raises StorageUnavailable."""
        prognosis, elapsed_seconds = await self._foreseen(request)
        estimate = await self._estimator.estimate(request)
        if not prognosis.buys:
            estimate = _free(estimate, elapsed_seconds if prognosis is Prognosis.IN_FLIGHT else None)
        return Quote(
            prognosis,
            estimate,
            place=self._slots.place(caller.tenant.name) if prognosis.buys else 0,
            waiting=self._slots.waiting,
            budgets=await self._statements.prospects(caller, request.model, estimate.held),
        )

    async def _foreseen(self, request: GenerationRequest) -> tuple[Prognosis, float]:
        """How it would be answered, and since how many seconds that has been under way."""
        if request.fresh:
            return Prognosis.BYPASS, 0.0
        if await self._purchasing.look_up(request.fingerprint):
            return Prognosis.HIT, 0.0
        newest = await self._custody.newest(request.fingerprint)
        if newest is None:
            return Prognosis.MISS, 0.0
        if newest.state is State.UNKNOWN and self._on_unknown is OnUnknown.BUY_AGAIN:
            return Prognosis.MISS, 0.0
        if newest.state.is_open:
            began_at = newest.sent_at or newest.reserved_at
            return Prognosis.IN_FLIGHT, max(0.0, self._clock() - began_at)
        # Stored, and forgotten by the cache: it is found in the journal. What is lost may have to be bought again.
        there = newest.generation is not None and await self._purchasing.is_whole(newest.generation)
        return (Prognosis.HIT if there else Prognosis.MISS), 0.0


def _free(estimate: Estimate, elapsed_seconds: float | None) -> Estimate:
    """The estimate of what is bought already; `elapsed_seconds` ago, or (None) has been made."""

    def left(seconds: float) -> float:
        return 0.0 if elapsed_seconds is None else max(0.0, seconds - elapsed_seconds)

    return replace(
        estimate,
        held=Money.ZERO,
        expected=Money.ZERO,
        seconds_p50=left(estimate.seconds_p50),
        seconds_p95=left(estimate.seconds_p95),
    )
