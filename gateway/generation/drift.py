"""Whether money leaves the upstream's account of which our books know nothing: a leaked key, a wrong cost, a lost call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from gateway.domain.clock import Clock
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.generation.likeness import Likeness, likeness_of
from gateway.generation.reconciliation import ALL_OPEN
from gateway.ledger.contract import Purchase, Resolution, State, Statements
from gateway.upstream.contract import History, PastCall

_TICKETS_A_QUESTION = 500


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """The upstream's account, looked at once."""

    credits: Money
    """What the upstream says is left."""

    drift: Money
    """What has left it since the first look without our books; negative for what came in: somebody topped it up."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The balance, and what our purchases had certainly and possibly taken from it at that moment."""

    credits: Money
    least: Money
    most: Money


class BalanceWatch:
    """Compares the upstream's balance with our books, from its first look on; what was before, it cannot know.

        gone  = credits then - credits now
        least = spent now - spent and held then
        most  = spent and held now - spent then
        drift = gone - most, if gone is above most; gone - least, if it is below least; else nothing

    The balance dips when a generation is made, and the books follow when it is stored: in between, an open purchase
    may have been charged or not. So anything between `least` and `most` is explained, and only what lies outside
    is drift; at most as much as is held can hide. When nothing is open there is no in-between, and the comparison
    begins anew from there, with the drift of so far carried on.
    """

    def __init__(self, *, ask_credits: Callable[[], Awaitable[Money]], statements: Statements) -> None:
        self._ask_credits = ask_credits
        self._statements = statements
        self._first: _Look | None = None
        self._carried = Money.ZERO

    async def look(self) -> AccountBalance:
        """Ask the upstream and the books. Raises NotBought kinds, and StorageUnavailable."""
        # The books on both sides of the question: what is settled before it was charged before the balance was read,
        # and what was charged by then is spent or held after it.
        least = _total((await self._statements.spent()).values())
        left = await self._ask_credits()
        held = _total((await self._statements.reserved()).values())
        most = _total((await self._statements.spent()).values()) + held
        now = _Look(left, least, most)
        drift = self._carried + (_unexplained(self._first, now) if self._first else Money.ZERO)
        if self._first is None or least == most:
            self._first, self._carried = now, drift
        return AccountBalance(left, drift)


def _unexplained(then: _Look, now: _Look) -> Money:
    gone = then.credits - now.credits
    if gone > (most := now.most - then.least):
        return gone - most
    if gone < (least := now.least - then.most):
        return gone - least
    return Money.ZERO


class ForeignSpend:
    """What the upstream's history shows of calls that were not ours: of others who use the account."""

    def __init__(
        self,
        *,
        history: History,
        resolution: Resolution,
        statements: Statements,
        clock: Clock,
        window_seconds: float = 86_400.0,
    ) -> None:
        self._history = history
        self._resolution = resolution
        self._statements = statements
        self._clock = clock
        self._window_seconds = window_seconds

    async def total(self) -> Money:
        """The cost of all calls within the window up to now whose ticket no purchase has.

        A call that may be of a purchase whose ticket is not known (yet) is not counted. Asks for the whole window each
        time. Raises, as the history does, when that cannot be had whole; and StorageUnavailable.
        """
        now = self._clock()
        calls = await self._history.past_calls(now - self._window_seconds, now)
        # After the history, and in this order: see Reconciliation.
        untraced = [
            purchase
            for purchase in await self._statements.purchases(
                states=(State.SENDING, State.UNKNOWN, State.LOST), limit=ALL_OPEN
            )
            if purchase.ticket is None
        ]
        known = await self._known({call.ticket for call in calls})
        return _total(
            call.cost
            for call in calls
            if call.cost and call.ticket not in known and not _may_be(call, untraced)
        )

    async def _known(self, tickets: AbstractSet[Ticket]) -> AbstractSet[Ticket]:
        asked = list(tickets)
        known: set[Ticket] = set()
        for start in range(0, len(asked), _TICKETS_A_QUESTION):
            known |= await self._resolution.known_tickets(asked[start : start + _TICKETS_A_QUESTION])
        return known


def _may_be(call: PastCall, purchases: Sequence[Purchase]) -> bool:
    return any(likeness_of(call, purchase.request) is not Likeness.OTHER for purchase in purchases)


def _total(amounts: Iterable[Money]) -> Money:
    return sum(amounts, Money.ZERO)
