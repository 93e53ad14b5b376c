"""The journal, added up by who is charged, model and time: what reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span

Place = tuple[Party, str, int]
"""Who is charged, for which model, and in which of the spans that were asked about, by its number."""


@dataclass(frozen=True, slots=True)
class Booked:
    """What the upstream was, or may have to be, paid for purchases that were reserved within some time."""

    spent: Money = Money.ZERO
    reserved: Money = Money.ZERO
    unknown: Money = Money.ZERO
    """The part of what is reserved of which nobody can say whether anything was bought."""

    lost: Money = Money.ZERO
    """The part of what is spent of which nothing came."""

    def __add__(self, other: Booked) -> Booked:
        return Booked(
            self.spent + other.spent,
            self.reserved + other.reserved,
            self.unknown + other.unknown,
            self.lost + other.lost,
        )


class Reports(Protocol):
    """The books for those who add them up. Nobody who buys waits for it."""

    async def booked(self, spans: Sequence[Span]) -> Mapping[Place, Booked]:
        """What was reserved within each of `spans`, and what has become of it by now.

        Everything is as it is at one moment. Who has nothing is left out.
        """
