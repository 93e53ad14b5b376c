"""The life of one request: taken on, followed whoever waits for it, concluded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from gateway.domain.clock import Clock
from gateway.domain.errors import (
    BudgetExceeded,
    KeyEnded,
    NotBought,
    RequestRefused,
    RequestUnknown,
    ResultBroken,
    ShuttingDown,
    StillRunning,
    StorageUnavailable,
)
from gateway.domain.generation import CacheStatus, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, RequestId
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Party
from gateway.generation.purchasing import (
    Abandoned,
    Found,
    GenerationFlight,
    Landed,
    Purchasing,
    Step,
    pass_by,
    persist,
)
from gateway.generation.single_flight import Announcement, FlightCancelled, SingleFlight
from gateway.ledger.contract import Custody, State
from gateway.ledger.transfers import Transfers
from gateway.requests.contract import (
    Completed,
    Failed,
    RequestRecord,
    RequestRecords,
    Tallies,
)
from gateway.upstream.contract import Progress

_LEAST_GRACE_SECONDS = 5.0
_NOT_BOUGHT = Failed(
    "not_bought",
    "The gateway was interrupted, and this request proved not to have been bought. Send it again.",
)
_LOST = Failed(
    "paid_and_lost",
    "The upstream was paid for this request, and nothing came of it that can be used; the operator has the "
    "evidence. Sending it again buys it again.",
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was taken on, and who sees to its outcome (nobody where it has one already)."""

    record: RequestRecord
    follower: Follower | None = None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How one request ended, for whoever waited for it."""

    outcome: Completed
    waited_seconds: float
    """How much of the wait was the upstream's, or another flight's."""


@dataclass(frozen=True, slots=True)
class Follower:
    """Sees to it that a request gets its outcome, whoever waits for it."""

    conclusion: Announcement[Conclusion]
    """Known as soon as it cannot change any more; it may still have to be written down."""

    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Boarded:
    """A flight that a request is on."""

    flight: GenerationFlight
    purchase: PurchaseId | None = None
    """What was reserved for this very request at the take-off, if anything was."""

    pays: bool = False
    """Whether the flight took off for this request."""


class GenerationService:
    """Buys each generation once, whoever asks, however often, and whatever breaks in between.

    A generation belongs to nobody's connection: it is made in a task of the service's own, and a caller who hangs up
    ends nothing but the waiting.
    """

    def __init__(
        self,
        *,
        purchasing: Purchasing,
        custody: Custody,
        records: RequestRecords,
        tallies: Tallies,
        transfers: Transfers,
        clock: Clock,
        identify: Callable[[str, str], Caller | None],
        at_step: Callable[[Step], None] = pass_by,
    ) -> None:
        """`identify`: the caller behind a tenant's name and a key's id, for requests that outlived their process.

        `at_step` is called when a request is concluded; a test crashes the process there.
        """
        self._purchasing = purchasing
        self._custody = custody
        self._records = records
        self._tallies = tallies
        self._transfers = transfers
        self._clock = clock
        self._identify = identify
        self._at_step = at_step
        self._flights: SingleFlight[Fingerprint, PurchaseId, Landed] = SingleFlight()
        self._followers: dict[RequestId, Follower] = {}
        self._closing = False

    # --- What callers ask for

    async def accept(
        self, identity: RequestId, caller: Caller, request: GenerationRequest, *, pollable: bool
    ) -> Accepted:
        """Take the request on: when this returns, everything that can refuse it has had its say.

        The record is concluded already if the generation was there. `pollable` says that the caller will come back
        for the record, so that even a hit is written down, and before they are told where it is; every other request is,
        whoever waits, while it is under way.
        Raises BudgetExceeded, KeyEnded and whatever else refuses before money moves, and Unavailable.
        """
        with _nothing_bought():
            generation = None if request.fresh else await self._purchasing.look_up(request.fingerprint)
        if generation is not None:
            return Accepted(await self._answer_with(identity, caller, request, generation, pollable=pollable))
        if self._closing:
            raise ShuttingDown(
                "The gateway is shutting down and takes no new work; the same request will do after its restart."
            )
        with _nothing_bought():
            boarded = await self._board(caller, request)
        record = RequestRecord(
            identity, caller.tenant.name, caller.key_id, request, self._clock(), purchase=boarded.purchase
        )
        if pollable:
            await self._records.open(record)
        return Accepted(record, self._follow(record, boarded, caller.party, is_open=pollable))

    async def conclusion(self, accepted: Accepted, *, wait_seconds: float) -> Conclusion:
        """What became of an accepted request, after at most `wait_seconds`.

        Raises what ended the request, or StillRunning when the time is up: the generation goes on all the same.
        """
        record, follower = accepted.record, accepted.follower
        if isinstance(record.outcome, Completed):
            return Conclusion(record.outcome, 0.0)
        assert follower is not None  # noqa: S101 -- `accept` gives an unconcluded record its follower
        try:
            async with asyncio.timeout(wait_seconds):
                return await follower.conclusion.heard()
        except TimeoutError:
            if follower.conclusion.error is not None:
                raise
            raise StillRunning(
                f"The generation has taken longer than {wait_seconds:g} seconds and goes on; what it makes will be "
                f"kept. Send the same request again to wait for it, or poll GET /v2/requests/{record.id}/status: "
                "neither is billed again."
            ) from None
        except asyncio.CancelledError:
            if isinstance(follower.conclusion.error, asyncio.CancelledError):
                raise ShuttingDown(
                    "The gateway is shutting down; the generation goes on after its restart. Send the same request "
                    f"again, or poll GET /v2/requests/{record.id}/status: neither is billed again."
                ) from None
            raise

    async def find(self, identity: RequestId, caller: Caller) -> RequestRecord:
        """The caller's own request of that name. Raises RequestUnknown."""
        record = await self._records.find(identity, caller.tenant.name)
        if record is None:
            raise RequestUnknown(f"Request {identity} not found")
        return record if record.outcome else await self._as_the_journal_has_it(record)

    async def _as_the_journal_has_it(self, record: RequestRecord) -> RequestRecord:
        # Whoever follows this record may not have got round to writing its outcome down. All processes look here, the
        # follower's own, too: what one has called completed, no other may call pending.
        newest = await self._custody.newest(record.request.fingerprint)
        if newest is None or newest.generation is None:
            return record
        if (outcome := _told_by_the_journal(record, newest.generation)) is None:
            return record
        return replace(record, outcome=outcome, concluded_at=newest.generation.made_at)

    def progress(self, record: RequestRecord) -> Progress:
        """How far an unconcluded request is."""
        return self._purchasing.progress(record.request.fingerprint)

    @property
    def closing(self) -> bool:
        """Whether new work is refused, because the gateway is shutting down."""
        return self._closing

    # --- What a crash or a fault has left

    async def resume(self) -> None:
        """Go on with everything that is open and that nobody works on: requests first, then bare purchases."""
        for record in await self._records.adopt_pending(followed=set(self._followers)):
            if record.id not in self._followers:
                await self._resume_request(record)
        for purchase in await self._custody.orphans(tended=set(self._flights.keys())):
            self._flights.board(purchase.request.fingerprint, self._purchasing.flight(None, purchase.request))

    async def _resume_request(self, record: RequestRecord) -> None:
        newest = await self._custody.newest(record.request.fingerprint)
        if newest is None or newest.state is State.LOST:
            # Nobody waits on a connection any more: what was not bought for them is not bought behind their back.
            await self._records.conclude(record.id, _NOT_BOUGHT if newest is None else _LOST)
        elif newest.state is State.UNKNOWN:
            # Nothing can be done about it here; whoever resolves it makes it something else.
            return
        elif newest.generation is not None:
            outcome, _ = _share(record, Landed(newest.generation, Found.UNDER_WAY))
            await self._divide(outcome, self._party(record), at=record.submitted_at)
            await self._records.conclude(record.id, outcome, at=newest.generation.made_at)
        else:
            caller = self._identify(record.tenant, record.key_id)
            flight, _ = self._flights.board(
                record.request.fingerprint, self._purchasing.flight(caller, record.request)
            )
            self._follow(record, _Boarded(flight), self._party(record))

    def _party(self, record: RequestRecord) -> Party:
        """Who asked, where its tenant stands now; whose key has ended is taken for somebody without a parent."""
        caller = self._identify(record.tenant, record.key_id)
        return caller.party if caller else Party(record.tenant, record.key_id)

    async def drain(self, grace_seconds: float) -> None:
        """Take no new work, let flights land for `grace_seconds`, and leave the rest to the journal."""
        self._closing = True
        await self._flights.drain(grace_seconds)
        followers = [follower.task for follower in self._followers.values()]
        if followers:
            _, late = await asyncio.wait(followers, timeout=max(grace_seconds, _LEAST_GRACE_SECONDS))
            for follower in late:
                follower.cancel()

    # --- Hits

    async def _answer_with(
        self,
        identity: RequestId,
        caller: Caller,
        request: GenerationRequest,
        generation: Generation,
        *,
        pollable: bool,
    ) -> RequestRecord:
        now = self._clock()
        record = RequestRecord(
            identity,
            caller.tenant.name,
            caller.key_id,
            request,
            now,
            concluded_at=now,
            outcome=Completed(generation, Money.ZERO, CacheStatus.HIT),
        )
        if pollable:
            await self._records.open(record)
        self._tallies.count(caller.party, request.model, CacheStatus.HIT, generation.cost, at=now)
        self._transfers.used(generation.purchase, caller.party, at=now)
        return record

    # --- Passengers

    async def _board(self, caller: Caller, request: GenerationRequest) -> _Boarded:
        """A flight that is cleared, and whether it is this caller's."""
        while True:
            flight, joined = self._flights.board(
                request.fingerprint, self._purchasing.flight(caller, request)
            )
            try:
                purchase = await flight.clearance()
            except (BudgetExceeded, KeyEnded) as refusal:
                if joined and refusal.key_id != caller.key_id:
                    continue  # The one who took off could not pay. Perhaps we can.
                raise
            except Abandoned:
                continue
            except FlightCancelled as cancelled:
                raise ShuttingDown(
                    "The gateway is shutting down; send the same request again."
                ) from cancelled
            return _Boarded(flight) if joined else _Boarded(flight, purchase, pays=True)

    def _follow(
        self, record: RequestRecord, boarded: _Boarded, party: Party, *, is_open: bool = True
    ) -> Follower:
        """See to it that the record is there and gets its outcome, whether anybody waits for it or not."""
        known: Announcement[Conclusion] = Announcement()
        task = asyncio.create_task(self._conclude(record, boarded, party, known, is_open=is_open))
        follower = Follower(known, task)
        self._followers[record.id] = follower
        follower.task.add_done_callback(partial(self._forget, record.id))
        return follower

    def _forget(self, identity: RequestId, _: asyncio.Task[None]) -> None:
        self._followers.pop(identity).conclusion.fail(asyncio.CancelledError())

    async def _conclude(
        self,
        record: RequestRecord,
        boarded: _Boarded,
        party: Party,
        known: Announcement[Conclusion],
        *,
        is_open: bool,
    ) -> None:
        boarded_at = asyncio.get_running_loop().time()
        try:
            if not is_open and not boarded.flight.landed:
                await persist(lambda: self._records.open(record, patient=True))
                is_open = True
            boarded, landed = await self._landing(record, boarded)
        except Exception as error:  # noqa: BLE001 -- raised by whoever waits; a follower that nobody waits for fails in silence
            if isinstance(error, (NotBought, RequestRefused, ResultBroken)):
                failure = Failed(error.code, str(error), error.details)
                await self._write_down(record, failure, is_open=is_open)
            known.fail(error)
            return
        outcome, saved = _share(record, landed, pays=boarded.pays)
        waited = (
            landed.upstream_seconds
            if outcome.status in (CacheStatus.MISS, CacheStatus.BYPASS)
            else asyncio.get_running_loop().time() - boarded_at
        )
        self._tallies.count(party, record.request.model, outcome.status, saved, at=record.submitted_at)
        if outcome.status is CacheStatus.HIT and not is_open:
            # It was there, and only the cache did not know it: as with every other hit of somebody who does not come
            # back for the record there is none, and a disk that takes no more keeps nobody from what is paid for.
            self._transfers.used(landed.generation.purchase, party, at=record.submitted_at)
            known.tell(Conclusion(outcome, waited))
            return
        concluded_at = None
        if outcome == _told_by_the_journal(record, landed.generation):
            # Whoever asks for the record meanwhile, and whoever resumes it after a crash, comes to the same outcome at
            # the same time: the answer need not wait until it is written down a second time.
            concluded_at = landed.generation.made_at
            known.tell(Conclusion(outcome, waited))
            self._at_step(Step.ANSWERED)
        # Before it: what is not concluded is gone on with after a crash, and done once however often it is done.
        await self._divide(outcome, party, at=record.submitted_at)
        await self._write_down(record, outcome, is_open=is_open, at=concluded_at)
        self._at_step(Step.CONCLUDED)
        known.tell(Conclusion(outcome, waited))

    async def _write_down(
        self, record: RequestRecord, outcome: Completed | Failed, *, is_open: bool, at: float | None = None
    ) -> None:
        if not is_open:
            await persist(lambda: self._records.open(record, patient=True))
        await persist(lambda: self._records.conclude(record.id, outcome, at=at))

    async def _divide(self, outcome: Completed, party: Party, *, at: float) -> None:
        """Note what is owed to whoever has paid for what somebody else was given."""
        purchase = outcome.generation.purchase
        if outcome.status is CacheStatus.COLLAPSED:
            await persist(lambda: self._transfers.joined(purchase, party))
        elif outcome.status is CacheStatus.HIT:
            self._transfers.used(purchase, party, at=at)

    async def _landing(self, record: RequestRecord, boarded: _Boarded) -> tuple[_Boarded, Landed]:
        """What the flight brings home, and which flight it was in the end.

        A flight that waits for what another process left is cleared before it is known whether that was bought. If
        it was not, whoever took off may be unwilling or unable to pay for it; then each passenger may still be.
        """
        while True:
            try:
                return boarded, await boarded.flight.landing()
            except Abandoned:
                pass
            except (BudgetExceeded, KeyEnded) as refusal:
                if refusal.key_id == record.key_id:
                    raise
            caller = self._identify(record.tenant, record.key_id)
            if caller is None:
                raise KeyEnded(
                    "This API key was revoked, ran out, or lost its tenant before anything was bought for it.",
                    key_id=record.key_id,
                )
            boarded = await self._board(caller, record.request)


@contextmanager
def _nothing_bought() -> Iterator[None]:
    """Before a purchase is in the journal, whoever meets a storage that fails is told that it cost nothing."""
    try:
        yield
    except StorageUnavailable as error:
        raise StorageUnavailable(f"{error} Nothing was bought.") from error


def _told_by_the_journal(record: RequestRecord, generation: Generation) -> Completed | None:
    """What an unconcluded request came to by the newest purchase alone; None if that had ended before it was asked for."""
    if generation.made_at < record.submitted_at:
        return None
    return _share(record, Landed(generation, Found.UNDER_WAY))[0]


def _share(record: RequestRecord, landed: Landed, *, pays: bool = False) -> tuple[Completed, Money]:
    """What a request is charged, and what it saved: whoever made the purchase pays for it, alone.

    `pays` says that the flight took off for this request: what the flight itself has bought, it has bought for it,
    even where it first waited for what somebody else had left.
    """
    generation = landed.generation
    if (pays and landed.found is Found.BOUGHT) or generation.purchase == record.purchase:
        status = CacheStatus.BYPASS if record.request.fresh else CacheStatus.MISS
        return Completed(generation, generation.cost, status), Money.ZERO
    match landed.found:
        case Found.STORED:
            status = CacheStatus.HIT
        case Found.RECOVERED:
            # A miss that costs nothing, since it was paid for before.
            status = CacheStatus.MISS
        case Found.UNDER_WAY | Found.BOUGHT:
            status = CacheStatus.COLLAPSED
    return Completed(generation, Money.ZERO, status), generation.cost
