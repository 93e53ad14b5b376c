"""How purchases of unknown outcome end: by what the upstream itself has written down (docs/reconciliation.md)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.domain.clock import Clock
from gateway.domain.errors import NotBought, ResultGone, ResultUnavailable
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.generation.likeness import Likeness, equal_requests, likeness_of
from gateway.ledger.contract import Purchase, Resolution, State, Statements
from gateway.telemetry.logs import log_for
from gateway.upstream.contract import History, PastCall, Standing

ALL_OPEN = 1_000_000
"""More purchases than are ever open at once."""

_ARRIVAL_SECONDS = 3 * 3600.0
"""For how long after it was sent a lost submit may have been taken on; bounds how much history is asked for."""

_FIRST_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 6 * 3600.0

_FAULTS = (NotBought, ResultUnavailable)
"""What a history raises that cannot be asked."""


class Verdict(enum.Enum):
    BOUGHT = "bought"
    """It can be collected."""

    NOT_BOUGHT = "not_bought"
    LOST = "lost"
    OPEN = "open"
    """Nobody can say yet: the money stays held."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a round has made of one unknown purchase."""

    purchase: PurchaseId
    verdict: Verdict
    reason: str
    """Why, without anything of what was asked for."""

    ticket: Ticket | None = None
    """What it was found to be called; only if BOUGHT."""

    cost: Money | None = None
    """What the history says that was charged for nothing; only if LOST, and None if it does not say."""


class Reconciliation:
    """Ends unknown purchases by the upstream's history, and never by a guess: what is not proved stays open."""

    def __init__(
        self,
        *,
        resolution: Resolution,
        statements: Statements,
        history: History,
        clock: Clock,
        history_lag_seconds: float,
        slack_seconds: float = 120.0,
        result_lifetime_seconds: float = 7 * 86_400.0,
    ) -> None:
        """`history_lag_seconds`: how long after its submit a call may be missing in the history, and yet have been made.

        `slack_seconds`: how far the upstream's clock may be off. `result_lifetime_seconds`: for how long after its
        submit a result can be fetched.
        """
        self._resolution = resolution
        self._statements = statements
        self._history = history
        self._clock = clock
        self._history_lag_seconds = history_lag_seconds
        self._slack_seconds = slack_seconds
        self._result_lifetime_seconds = result_lifetime_seconds
        self._attempts: dict[PurchaseId, _Attempts] = {}
        self._told: dict[PurchaseId, str] = {}
        self._log = log_for("reconciliation")

    async def settle_unknowns(self) -> Sequence[Decision]:
        """One round: a decision for every unknown purchase, most of which may be to leave it open.

        A fault of the history decides nothing. Should another process turn out to be at it as well, the round ends
        there, and the next one sees to the rest. Raises StorageUnavailable.
        """
        unknown = await self._resolution.unknown_purchases()
        self._forget_all_but(unknown)
        decisions: list[Decision] = []
        try:
            untraced = []
            for purchase in unknown:
                if decision := await self._by_ticket(purchase):
                    await self._carry_out(decision, decisions)
                else:
                    untraced.append(purchase)
            for group in self._overlapping(untraced):
                await self._by_time(group, decisions)
        except _Overtaken:
            self._log.info("round ended: another process is resolving purchases")
        return decisions

    # One by one, by ticket

    async def _by_ticket(self, purchase: Purchase) -> Decision | None:
        """None if the purchase has no ticket, or the history knows nothing of it."""
        if purchase.ticket is None:
            return None
        try:
            call = await self._history.past_call(purchase.ticket)
        except ResultGone as gone:
            # It was sold, and no history will ever say more of it.
            if self._clock() > _sent_at(purchase) + self._result_lifetime_seconds:
                return Decision(purchase.id, Verdict.LOST, str(gone))
            return _left_open(purchase, str(gone))
        except _FAULTS as fault:
            return _left_open(purchase, str(fault))
        return None if call is None else self._according_to(call, purchase)

    def _according_to(self, call: PastCall, purchase: Purchase) -> Decision:
        submitted_at = _sent_at(purchase) if call.submitted_at is None else call.submitted_at
        expired = self._clock() > submitted_at + self._result_lifetime_seconds
        match call.standing:
            case Standing.PENDING:
                return _left_open(purchase, "the upstream is still making it")
            case Standing.FAILED if call.cost:
                reason = "the upstream's history says that it failed and was charged"
                return Decision(purchase.id, Verdict.LOST, reason, cost=call.cost)
            case Standing.FAILED:
                return Decision(purchase.id, Verdict.NOT_BOUGHT, "the upstream's history says that it failed")
            case Standing.COMPLETED if expired:
                reason = "the upstream made it, and its media could not be had before they expired"
                return Decision(purchase.id, Verdict.LOST, reason, cost=call.cost)
            case Standing.COMPLETED:
                return self._to_be_collected(call, purchase)

    def _to_be_collected(self, call: PastCall, purchase: Purchase) -> Decision:
        """Media that could not be had may come back, but nobody is to run after them without a break."""
        now = self._clock()
        attempts = self._attempts.get(purchase.id, _Attempts())
        if now < attempts.next_at:
            return _left_open(
                purchase, "the upstream made it; its media could not be had and are asked for again"
            )
        self._attempts[purchase.id] = attempts.after_one_more(now)
        return Decision(
            purchase.id, Verdict.BOUGHT, "the upstream's history says that it was made", ticket=call.ticket
        )

    # Together, by time

    def _overlapping(self, purchases: Sequence[Purchase]) -> Sequence[Sequence[Purchase]]:
        """Purchases whose times overlap, oldest first: one question serves them all."""
        groups: list[list[Purchase]] = []
        for purchase in sorted(purchases, key=_sent_at):
            if groups and self._since(purchase) <= self._until(groups[-1][-1]):
                groups[-1].append(purchase)
            else:
                groups.append([purchase])
        return groups

    def _since(self, purchase: Purchase) -> float:
        return _sent_at(purchase) - self._slack_seconds

    def _until(self, purchase: Purchase) -> float:
        return min(self._clock(), _sent_at(purchase) + _ARRIVAL_SECONDS) + self._slack_seconds

    async def _by_time(self, group: Sequence[Purchase], decisions: list[Decision]) -> None:
        asked_at = self._clock()
        try:
            calls = await self._history.past_calls(self._since(group[0]), self._until(group[-1]))
        except _FAULTS as fault:
            for purchase in group:
                await self._carry_out(_left_open(purchase, str(fault)), decisions)
            return
        # After the history, and in this order: whoever made a call that is in it is being sent, is unknown, or has
        # its ticket written down by now.
        under_way = await self._statements.purchases(states=(State.SENDING, State.UNKNOWN), limit=ALL_OPEN)
        alike = {purchase.id: self._like(purchase, calls) for purchase in group}
        taken = set(
            await self._resolution.known_tickets({call.ticket for found in alike.values() for call in found})
        )
        still_unknown = {(p.id, p.ticket) for p in under_way if p.state is State.UNKNOWN}
        rivals = [p for p in under_way if p.id not in alike]
        for purchase in group:
            if (purchase.id, purchase.ticket) not in still_unknown:
                raise _Overtaken
            if purchase.ticket is not None:
                decision = self._by_list(purchase, calls, asked_at)
            else:
                free = [call for call in alike[purchase.id] if call.ticket not in taken]
                decision = self._by_inputs(purchase, free, rivals, asked_at)
            await self._carry_out(decision, decisions)
            if decision.ticket is not None:
                taken.add(decision.ticket)

    def _like(self, purchase: Purchase, calls: Sequence[PastCall]) -> Sequence[PastCall]:
        """The calls that this purchase may have become."""
        since, until = self._since(purchase), self._until(purchase)
        return [
            call
            for call in calls
            if (call.submitted_at is None or since <= call.submitted_at <= until)
            and likeness_of(call, purchase.request) is not Likeness.OTHER
        ]

    def _by_list(self, purchase: Purchase, calls: Sequence[PastCall], asked_at: float) -> Decision:
        """For a ticket of which the history knew nothing: its list has to say the same."""
        call = next((call for call in calls if call.ticket == purchase.ticket), None)
        return self._absent(purchase, asked_at) if call is None else self._according_to(call, purchase)

    def _by_inputs(
        self, purchase: Purchase, free: Sequence[PastCall], rivals: Sequence[Purchase], asked_at: float
    ) -> Decision:
        same = [call for call in free if likeness_of(call, purchase.request) is Likeness.SAME]
        if same and any(equal_requests(rival.request, purchase.request) for rival in rivals):
            return _left_open(
                purchase, "an equal request is being sent, and what the history shows may be that one"
            )
        if same:
            # A failed one, too: its collector gives the money back, and its ticket stands for nothing else from now on.
            call = min(same, key=lambda call: (call.standing is Standing.FAILED, call.submitted_at or 0.0))
            reason = "the upstream's history shows it, by its inputs and the time when it was sent"
            return Decision(purchase.id, Verdict.BOUGHT, reason, ticket=call.ticket)
        if free:
            return _left_open(
                purchase, f"the upstream's history shows {len(free)} that it may be: an operator has to tell"
            )
        return self._absent(purchase, asked_at)

    def _absent(self, purchase: Purchase, asked_at: float) -> Decision:
        # By the time of the question: whoever falls asleep before the decision wakes up with an answer that is old.
        if asked_at <= _sent_at(purchase) + self._history_lag_seconds:
            return _left_open(purchase, "the upstream's history does not show it, and may lag")
        return Decision(purchase.id, Verdict.NOT_BOUGHT, "the upstream's history does not show it")

    # What was decided is done

    async def _carry_out(self, decision: Decision, decisions: list[Decision]) -> None:
        """Raises _Overtaken if the purchase is not unknown any more."""
        if decision.verdict is Verdict.OPEN:
            # Once, and not every round: it may stay open for days.
            if self._told.get(decision.purchase) != decision.reason:
                self._told[decision.purchase] = decision.reason
                self._log.info("purchase left open", purchase=decision.purchase, reason=decision.reason)
        elif await self._resolved(decision):
            self._log.info(
                "purchase resolved",
                purchase=decision.purchase,
                verdict=decision.verdict.value,
                reason=decision.reason,
                ticket=decision.ticket,
                cost_usd=None if decision.cost is None else decision.cost.usd_number,
            )
        else:
            raise _Overtaken
        decisions.append(decision)

    async def _resolved(self, decision: Decision) -> bool:
        match decision.verdict:
            case Verdict.LOST:
                return await self._resolution.resolve_lost(decision.purchase, decision.cost, decision.reason)
            case Verdict.NOT_BOUGHT:
                return await self._resolution.resolve_not_bought(decision.purchase, decision.reason)
            case _:
                assert decision.ticket is not None  # noqa: S101 -- what is BOUGHT was found under a ticket
                return await self._resolution.resolve_bought(decision.purchase, decision.ticket)

    def _forget_all_but(self, unknown: Sequence[Purchase]) -> None:
        """What is remembered between rounds must not grow; a purchase that is being collected may come back."""
        now = self._clock()
        self._told = {p.id: self._told[p.id] for p in unknown if p.id in self._told}
        self._attempts = {
            purchase: attempts
            for purchase, attempts in self._attempts.items()
            if now < attempts.next_at + _LONGEST_PAUSE_SECONDS
        }


class _Overtaken(Exception):
    """A purchase has been resolved by somebody else meanwhile: what was read of the others may be as old."""


@dataclass(frozen=True, slots=True)
class _Attempts:
    """How often a purchase was handed over to be collected, and from when on it is worth another time."""

    count: int = 0
    next_at: float = 0.0

    def after_one_more(self, now: float) -> _Attempts:
        pause_seconds = min(_FIRST_PAUSE_SECONDS * 2**self.count, _LONGEST_PAUSE_SECONDS)
        return _Attempts(self.count + 1, now + pause_seconds)


def _left_open(purchase: Purchase, reason: str) -> Decision:
    return Decision(purchase.id, Verdict.OPEN, reason)


def _sent_at(purchase: Purchase) -> float:
    return purchase.reserved_at if purchase.sent_at is None else purchase.sent_at
