"""What a request is likely to cost and to take, by what the upstream charged for others like it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from gateway.domain.clock import Clock
from gateway.domain.estimate import ENOUGH, Estimate, estimate
from gateway.domain.generation import GenerationRequest
from gateway.domain.money import Money
from gateway.ledger.contract import Evidence

NEWEST = 200
"""So many purchases are the evidence: enough for a quantile, few enough to follow a price that changes."""

_BELIEVED_SECONDS = 10.0
_MOST_SHAPES = 10_000


@dataclass(frozen=True, slots=True)
class _Remembered:
    at: float
    told: Estimate


class Estimator:
    """Estimates from the newest purchases of the same model and shape, whoever made them.

    What was read is believed for ten seconds, so that a thousand misses of one shape read the journal once.
    """

    def __init__(
        self,
        *,
        evidence: Evidence,
        expected_seconds_of: Callable[[GenerationRequest], float | None],
        is_ceiling: Callable[[GenerationRequest], bool],
        clock: Clock,
        learns: bool,
    ) -> None:
        """`expected_seconds_of`: how long the catalogue says that a request takes.

        `is_ceiling`: whether the rule's price of a request is an upper bound. Then its shape says nothing of the price,
        most may be small and the next one large: no less is held, whatever others have cost.

        Without `learns`, what is held is the rule's price whatever others have cost.
        """
        self._evidence = evidence
        self._expected_seconds_of = expected_seconds_of
        self._is_ceiling = is_ceiling
        self._clock = clock
        self._learns = learns
        self._remembered: OrderedDict[tuple[str, str, int], _Remembered] = OrderedDict()
        self._reading = asyncio.Lock()

    async def price_to_hold(self, request: GenerationRequest) -> Money:
        """What to hold for it. Raises StorageUnavailable."""
        return (await self.estimate(request)).held if self._learns else request.price

    async def estimate(self, request: GenerationRequest) -> Estimate:
        """What it will cost and take, with the evidence. Raises StorageUnavailable."""
        place = (request.model, request.shape, request.price.micros)
        if (known := self._known(place)) is not None:
            return known
        async with self._reading:
            # Whoever had the lock before may have read just that.
            if (known := self._known(place)) is not None:
                return known
            told = await self._read(request)
            self._remembered[place] = _Remembered(self._clock(), told)
            self._remembered.move_to_end(place)
            if len(self._remembered) > _MOST_SHAPES:
                self._remembered.popitem(last=False)
            return told

    def _known(self, place: tuple[str, str, int]) -> Estimate | None:
        remembered = self._remembered.get(place)
        if remembered is None or not 0 <= self._clock() - remembered.at < _BELIEVED_SECONDS:
            return None
        return remembered.told

    async def _read(self, request: GenerationRequest) -> Estimate:
        # Without a shape nothing is known to be like it.
        settled = (
            await self._evidence.settled(request.model, request.shape, most=NEWEST) if request.shape else ()
        )
        enough = None if self._is_ceiling(request) else ENOUGH
        told = estimate(request.price, self._expected_seconds_of(request) or 0.0, settled, enough=enough)
        return told if self._learns else replace(told, held=told.rule)
