"""What tenants owe each other for generations that one of them has paid for and others were given as well.

Money that moves between tenants, on paper: the upstream is paid by whose purchase it was, and budgets know of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.identity import PurchaseId
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.domain.window import Span
from gateway.ledger.reports import Place


@dataclass(frozen=True, slots=True)
class Moved:
    """What somebody owes others, and what others owe them. Over everybody the two are the same."""

    charged: Money = Money.ZERO
    credited: Money = Money.ZERO

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.charged + other.charged, self.credited + other.credited)


class Transfers(Protocol):
    """A journal in which every line names who owes and who is owed, so that it adds up to nothing."""

    async def joined(self, purchase: PurchaseId, party: Party) -> None:
        """`party` was given what `purchase` has made, without having paid, since it asked while that was being made.

        Durable, and done once for each purchase and tenant, however often it is said: each tenant that joined owes
        the payer the same share of the cost, and the payer keeps the rest. It counts when the purchase does. The
        payer's own tenant owes nothing.
        """

    def used(self, purchase: PurchaseId, party: Party, at: float, times: int = 1) -> None:
        """`party` was given what `purchase` made before, so many times.

        Costs no I/O; what was noted in the last moments before a crash may be lost.
        """

    async def flush(self) -> None:
        """Write down what was noted so far."""

    async def moved(self, spans: Sequence[Span]) -> Mapping[Place, Moved]:
        """What is owed within each of `spans`, by everybody who owes or is owed anything."""
