"""The journal of purchases: who has reserved and spent what.

    queued  -> sending -> running -> settled
       |          |          |----> released   the upstream failed, and does not bill failures
       |          |          |----> lost       paid for, and what came is broken or gone
       |          |          '----> unknown    nobody can say what it cost
       |          |---------------> released   proved not bought
       |          '---------------> unknown    may have been bought
       '--------------------------> released   gave up before sending

    unknown -> running     it was bought: its ticket has been found
            -> released    it was not, or is not billed
            -> lost        it was, and nothing will come of it; or it has to be taken for bought

At most one purchase of a fingerprint is open (queued, sending, running or unknown), over all processes.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.domain.balance import Balance, Prospect
from gateway.domain.estimate import Settled
from gateway.domain.generation import Blob, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Holder


class State(enum.Enum):
    QUEUED = "queued"
    SENDING = "sending"
    RUNNING = "running"
    UNKNOWN = "unknown"
    SETTLED = "settled"
    RELEASED = "released"
    LOST = "lost"

    @property
    def is_open(self) -> bool:
        """Whether money is held for it."""
        return self not in (State.SETTLED, State.RELEASED, State.LOST)


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof of owning an open purchase. Whoever adopts the purchase gets a higher fence, and older claims end."""

    purchase: PurchaseId
    fence: int


@dataclass(frozen=True, slots=True)
class Held(Claim):
    """Money is held; nothing has been sent."""


@dataclass(frozen=True, slots=True)
class Sent(Claim):
    """It is written down that the request may leave from now on."""


@dataclass(frozen=True, slots=True)
class Bought(Claim):
    """The upstream has given a ticket: nobody buys this again."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Purchase:
    """One row of the journal, as it was when it was read."""

    id: PurchaseId
    tenant: str
    path: str
    """Where its tenant stood when it was reserved: `acme/film`. There it counts, wherever the tenant stands now."""

    key_id: str
    request: GenerationRequest
    state: State
    reserved_at: float
    ticket: Ticket | None
    sent_at: float | None
    ended_at: float | None
    cost: Money | None
    """What was spent on it; None unless settled or lost."""

    generation: Generation | None
    """What came of it; None unless settled."""

    reason: str | None
    """Why it was released, is unknown or was lost."""


class ClaimLost(Exception):
    """Somebody else has adopted the purchase, or it has ended: this claim is worth nothing any more."""


class Ledger(Protocol):
    """Every method is one durable transaction: once it has returned, its effect survives the loss of power.

    All may raise StorageUnavailable, and have then changed nothing. Those that take a claim raise ClaimLost when
    it is no longer good; ending a purchase twice in the same way is done once and is not an error.
    """

    async def reserve(
        self,
        caller: Caller,
        request: GenerationRequest,
        *,
        newest_known: PurchaseId | None,
        sending: bool = False,
    ) -> Held | Sent | Purchase:
        """Hold `request.price` against every budget above the caller: its key's, its tenant's, and theirs above that.

        With `sending` it is written down in the same transaction that the request is about to leave, and the answer
        is a Sent: for whoever sends at once, and has nobody to wait for. If the newest purchase of this fingerprint
        that was not released is another than `newest_known`, nothing is held and that purchase is the answer: somebody
        was faster. Raises KeyEnded when the key is good no more, and BudgetExceeded when one budget has no room, of
        those that cover the model: spent + reserved + price may equal a limit, and never pass it. Of several it
        is the one that has room again last. Where somebody has budgets for the model and none of them is in force,
        there is no room. What counts is the tree, the key and the budgets as they are in the transaction that reserves.
        """

    async def send(self, held: Held) -> Sent:
        """Write down that the request is about to leave."""

    async def record_ticket(self, sent: Sent, ticket: Ticket) -> Bought: ...

    async def settle(
        self,
        bought: Bought,
        *,
        cost: Money | None,
        blobs: Sequence[Blob],
        seed: int | None,
        seconds: float | None,
    ) -> Generation:
        """Spend `cost` (the held price when the upstream did not say) and remember what came of it."""

    async def release(self, claim: Held | Sent | Bought, reason: str) -> None:
        """Give the held money back: nothing was bought, or nothing is billed."""

    async def mark_unknown(self, claim: Sent | Bought, reason: str) -> None:
        """It may have been bought: the money stays held until somebody knows."""

    async def write_off(self, bought: Bought, *, cost: Money | None, reason: str) -> None:
        """Spend `cost` (the held price when the upstream did not say) on something of which nothing came."""


class Custody(Protocol):
    """Open purchases outlive their processes: how they are found and taken over."""

    async def newest(self, fingerprint: Fingerprint) -> Purchase | None:
        """The newest purchase of the fingerprint that was not released."""

    async def orphans(self, *, tended: AbstractSet[Fingerprint] = frozenset()) -> Sequence[Purchase]:
        """Open purchases, oldest first, that could be adopted: their owner is dead or silent, or this process.

        Those of the fingerprints that are `tended` to are left out.
        """

    async def adopt(self, purchase: PurchaseId) -> Held | Sent | Bought | None:
        """Take over an open purchase whose owner is dead or silent, or this process itself: earlier claims end.

        None if it is in another's good hands, unknown, or ended.
        """

    async def renew(self) -> None:
        """Show that this process is alive: extend the lease on every purchase that it owns."""


class Resolution(Protocol):
    """How an unknown purchase ends. Each answers whether the purchase was still unknown; if not, nothing was done."""

    async def unknown_purchases(self) -> Sequence[Purchase]:
        """All of them, oldest first."""

    async def known_tickets(self, tickets: Collection[Ticket]) -> AbstractSet[Ticket]:
        """Those of `tickets` that some purchase has: what they stand for is accounted for."""

    async def resolve_bought(self, purchase: PurchaseId, ticket: Ticket) -> bool:
        """It was bought, and this is its ticket: it can be collected, by whoever adopts it.

        A ticket that another purchase has is nobody else's: then nothing is done.
        """

    async def resolve_not_bought(self, purchase: PurchaseId, reason: str) -> bool:
        """It was not, or is not billed: the money goes back."""

    async def resolve_lost(self, purchase: PurchaseId, cost: Money | None, reason: str) -> bool:
        """It was, and nothing will come of it: `cost` (the held price when nobody knows) is spent."""


class Statements(Protocol):
    """For those who only read the books."""

    async def balances_of(self, holders: Sequence[Holder], *, with_pace: bool = False) -> Sequence[Balance]:
        """Every budget of theirs that is in force now, in their order; `recent` is known `with_pace` alone.

        What a single request may cost is no balance, and left out.
        """

    async def prospects(self, caller: Caller, model: str, price: Money) -> Sequence[Prospect]:
        """What every budget above the caller would be after a purchase of `model` at `price`; nothing is held.

        The purchase would be refused now where it does not fit into one of them. What costs nothing fits always.
        """

    async def spent(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        """Everything ever spent, by the tenant whose key it was, and model; of one tenant only, if one is named.

        What a tenant's children spent is theirs: it adds up to everything.
        """

    async def reserved(self, tenant: str | None = None) -> Mapping[tuple[str, str], Money]:
        """What is held for open purchases, as `spent` has it."""

    async def unknown(self) -> Money:
        """The part of what is held of which nobody can say whether anything was bought."""

    async def lost(self) -> Money:
        """The part of what is spent of which nothing came."""

    async def counts(self) -> Mapping[State, int]:
        """How many purchases are open, by state."""

    async def purchases(
        self, *, states: Collection[State] = (), tenant: str | None = None, limit: int = 100
    ) -> Sequence[Purchase]:
        """Purchases in one of `states` (in any, if none is named), newest first."""

    async def purchase(self, purchase: PurchaseId) -> Purchase | None:
        """The purchase of that name, if there is one."""


class Evidence(Protocol):
    """What purchases cost and took, whoever made them: from that the next is estimated."""

    async def settled(self, model: str, shape: str | None, *, most: int) -> Sequence[Settled]:
        """The newest `most` settled purchases of a model, of one shape or (None) of any.

        Only those whose cost the upstream has reported, as something; and only among the model's newest few thousand.
        """


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One place where the books do not add up."""

    where: str
    problem: str


class Audit(Protocol):
    """The books, examined."""

    async def verify(self) -> Sequence[Discrepancy]:
        """Every balance, derived anew from the purchases; empty when everything fits."""

    async def backup(self, destination: Path) -> None:
        """A consistent copy of the whole database, made while others write. FileExistsError if something is there."""
