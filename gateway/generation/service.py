"""The life of one request, from a complete request to settled money."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from gateway.blobs.contract import BlobStore, Inspection
from gateway.cache.contract import GenerationCache
from gateway.domain.clock import Clock
from gateway.domain.errors import (
    BudgetExceeded,
    GatewayError,
    GenerationFailed,
    NotBought,
    OutcomeUnknown,
    RequestRefused,
    RequestUnknown,
    ResultGone,
    ResultUnavailable,
    ShuttingDown,
    StillRunning,
    StorageUnavailable,
)
from gateway.domain.generation import Blob, CacheStatus, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, RequestId
from gateway.domain.money import Money
from gateway.domain.tenant import Caller
from gateway.generation.scheduling import FairSlots
from gateway.generation.single_flight import Flight, FlightCancelled, SingleFlight
from gateway.ledger.contract import Bought, ClaimLost, Custody, Held, Ledger, Purchase, Sent, State
from gateway.requests.contract import (
    Completed,
    Failed,
    RequestRecord,
    RequestRecords,
    Tallies,
)
from gateway.telemetry.logs import log_for
from gateway.telemetry.metrics import Metrics
from gateway.upstream.contract import Progress, Upstream

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS_ELSEWHERE = 0.1
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0
_RECOVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Landed:
    """What a flight brings home."""

    generation: Generation
    purchase: PurchaseId | None
    """The purchase that was open while it flew; None when everything was there already."""

    upstream_seconds: float = 0.0
    """How much of the flight was spent waiting for the upstream."""

    recovered: bool = False
    """Whether what was paid for before had to be fetched again."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that was taken on, and the task that sees to its outcome (none where it has one already)."""

    record: RequestRecord
    follower: asyncio.Task[Conclusion] | None = None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """How one request ended, for whoever waited for it."""

    outcome: Completed
    waited_seconds: float
    """How much of the wait was the upstream's, or another flight's."""


class _Abandoned(Exception):
    """The flight was for nobody, and has bought nothing."""


_Flight = Flight[PurchaseId, Landed]


class GenerationService:
    """Buys each generation once, whoever asks, however often, and whatever breaks in between.

    A generation belongs to nobody's connection: it is made in a task of the service's own, and a caller who hangs up
    ends nothing but the waiting.
    """

    def __init__(
        self,
        *,
        cache: GenerationCache,
        blobs: BlobStore,
        inspect: Inspection,
        ledger: Ledger,
        custody: Custody,
        records: RequestRecords,
        tallies: Tallies,
        upstream: Upstream,
        slots: FairSlots,
        metrics: Metrics,
        clock: Clock,
        recollect_seconds: float,
        identify: Callable[[str, str], Caller | None],
    ) -> None:
        """`recollect_seconds`: for how long after it landed the upstream may be asked again for a lost result.

        `identify`: the caller behind a tenant's name and a key's id, for requests that outlived their process.
        """
        self._cache = cache
        self._blobs = blobs
        self._inspect = inspect
        self._ledger = ledger
        self._custody = custody
        self._records = records
        self._tallies = tallies
        self._upstream = upstream
        self._slots = slots
        self._metrics = metrics
        self._clock = clock
        self._recollect_seconds = recollect_seconds
        self._identify = identify
        self._flights: SingleFlight[Fingerprint, PurchaseId, Landed] = SingleFlight()
        self._followers: dict[RequestId, asyncio.Task[Conclusion]] = {}
        self._progress: dict[Fingerprint, Progress] = {}
        self._closing = False
        self._log = log_for("generation")

    # --- What callers ask for

    async def accept(
        self, identity: RequestId, caller: Caller, request: GenerationRequest, *, pollable: bool
    ) -> Accepted:
        """Take the request on: when this returns, everything that can refuse it has had its say.

        The record is concluded already if the generation was there. `pollable` says that the caller will come back
        for the record, so that even a hit is written down; every other request is, whoever waits.
        Raises BudgetExceeded and whatever else refuses before money moves, and Unavailable.
        """
        if not request.fresh and (generation := await self._look_up(request.fingerprint)):
            return Accepted(await self._answer_with(identity, caller, request, generation, pollable=pollable))
        if self._closing:
            raise ShuttingDown(
                "The gateway is shutting down and takes no new work; the same request will do after its restart."
            )
        flight, purchase = await self._board(caller, request)
        record = RequestRecord(
            identity, caller.tenant.name, caller.key_id, request, self._clock(), purchase=purchase
        )
        await self._records.open(record)
        return Accepted(record, self._follow(record, flight))

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
                return await asyncio.shield(follower)
        except TimeoutError:
            if follower.done() and not follower.cancelled() and follower.exception():
                raise
            raise StillRunning(
                f"The generation has taken longer than {wait_seconds:g} seconds and goes on; what it makes will be "
                f"kept. Send the same request again to wait for it, or poll GET /v2/requests/{record.id}/status: "
                "neither is billed again."
            ) from None
        except asyncio.CancelledError:
            if follower.cancelled():
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
        return record

    def progress(self, record: RequestRecord) -> Progress:
        """How far an unconcluded request is."""
        return self._progress.get(record.request.fingerprint, Progress.QUEUED)

    @property
    def closing(self) -> bool:
        """Whether new work is refused, because the gateway is shutting down."""
        return self._closing

    @property
    def in_flight(self) -> int:
        """How many generations are being made."""
        return len(self._flights)

    # --- What a crash or a fault has left

    async def resume(self) -> None:
        """Go on with everything that is open and that nobody here works on: requests first, then bare purchases."""
        for record in await self._records.pending():
            if record.id not in self._followers:
                await self._resume_request(record)
        for purchase in await self._custody.orphans():
            self._flights.board(purchase.request.fingerprint, self._flight_of(None, purchase.request))

    async def _resume_request(self, record: RequestRecord) -> None:
        caller = self._identify(record.tenant, record.key_id)
        newest = await self._custody.newest(record.request.fingerprint)
        if newest is not None and newest.state is State.UNKNOWN:
            return
        if caller is None:
            if newest is None:
                await self._records.conclude(
                    record.id, Failed("tenant_unknown", "The tenant has left before this was bought.")
                )
            return
        try:
            flight, _ = await self._board(caller, record.request)
        except RequestRefused as refusal:
            await self._records.conclude(record.id, _failure(refusal))
        except GatewayError as error:
            self._log.warning("request not resumed", request_id=record.id, error=str(error))
        else:
            self._follow(record, flight)

    async def drain(self, grace_seconds: float) -> None:
        """Take no new work, let flights land for `grace_seconds`, and leave the rest to the journal."""
        self._closing = True
        await self._flights.drain(grace_seconds)
        followers = list(self._followers.values())
        if followers:
            _, late = await asyncio.wait(followers, timeout=max(grace_seconds, _LONGEST_PAUSE_SECONDS))
            for follower in late:
                follower.cancel()

    # --- Hits

    async def _look_up(self, fingerprint: Fingerprint) -> Generation | None:
        """A hit needs both halves: the entry, and every blob that it names."""
        generation = await self._cache.get(fingerprint)
        if generation is None or not await self._is_whole(generation):
            return None
        return generation

    async def _is_whole(self, generation: Generation) -> bool:
        for blob in generation.blobs:
            if await self._blobs.locate(blob.digest) is None:
                return False
        return True

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
        self._tallies.count(record.tenant, request.model, CacheStatus.HIT, generation.cost)
        return record

    # --- Passengers

    async def _board(self, caller: Caller, request: GenerationRequest) -> tuple[_Flight, PurchaseId | None]:
        """A flight that is cleared, and the purchase that was made for this very caller, if one was."""
        while True:
            flight, joined = self._flights.board(request.fingerprint, self._flight_of(caller, request))
            try:
                purchase = await flight.clearance()
            except BudgetExceeded as refusal:
                if joined and refusal.tenant != caller.tenant.name:
                    continue  # The one who took off could not pay. Perhaps we can.
                raise
            except _Abandoned:
                continue
            except FlightCancelled as cancelled:
                raise ShuttingDown(
                    "The gateway is shutting down; send the same request again."
                ) from cancelled
            return flight, None if joined else purchase

    def _follow(self, record: RequestRecord, flight: _Flight) -> asyncio.Task[Conclusion]:
        """See to it that the record gets its outcome, whether anybody waits for it or not."""
        follower = asyncio.create_task(self._conclude(record, flight))
        self._followers[record.id] = follower

        def forget(task: asyncio.Task[Conclusion]) -> None:
            del self._followers[record.id]
            if not task.cancelled():
                task.exception()  # Retrieved here: a follower that nobody waits for fails in silence.

        follower.add_done_callback(forget)
        return follower

    async def _conclude(self, record: RequestRecord, flight: _Flight) -> Conclusion:
        boarded_at = asyncio.get_running_loop().time()
        try:
            landed = await flight.landing()
        except (NotBought, RequestRefused) as error:
            failure = _failure(error)
            await self._persist(lambda: self._records.conclude(record.id, failure))
            raise
        outcome, saved = self._share(record, landed)
        await self._persist(lambda: self._records.conclude(record.id, outcome))
        self._tallies.count(record.tenant, record.request.model, outcome.status, saved)
        waited = (
            landed.upstream_seconds
            if outcome.status in (CacheStatus.MISS, CacheStatus.BYPASS)
            else asyncio.get_running_loop().time() - boarded_at
        )
        return Conclusion(outcome, waited)

    def _share(self, record: RequestRecord, landed: Landed) -> tuple[Completed, Money]:
        """What this request is charged, and what it saved: whoever made the purchase pays for it, alone."""
        generation = landed.generation
        if landed.purchase is None:
            # A hit, unless the bytes were gone: then a miss that costs nothing, since it was paid for before.
            status = CacheStatus.MISS if landed.recovered else CacheStatus.HIT
            return Completed(generation, Money.ZERO, status), generation.cost
        if landed.purchase != record.purchase:
            return Completed(generation, Money.ZERO, CacheStatus.COLLAPSED), generation.cost
        status = CacheStatus.BYPASS if record.request.fresh else CacheStatus.MISS
        return Completed(generation, generation.cost, status), Money.ZERO

    # --- The flight

    def _flight_of(
        self, caller: Caller | None, request: GenerationRequest
    ) -> Callable[[_Flight], Awaitable[Landed]]:
        async def fly(flight: _Flight) -> Landed:
            try:
                return await self._fly(caller, request, flight)
            except RequestRefused:
                raise
            except GatewayError as error:
                self._log.warning(
                    "flight failed", model=request.model, fingerprint=request.fingerprint, code=error.code
                )
                raise
            finally:
                self._progress.pop(request.fingerprint, None)

        return fly

    async def _fly(self, caller: Caller | None, request: GenerationRequest, flight: _Flight) -> Landed:
        # Look again: another flight may have landed between our look-up and our take-off.
        if not request.fresh and (generation := await self._look_up(request.fingerprint)):
            return Landed(generation, None)
        known = await self._custody.newest(request.fingerprint)
        while True:
            if known is not None and (landed := await self._bought_before(caller, known, flight)):
                return landed
            if caller is None:
                raise _Abandoned
            self._slots.check()
            reserved = await self._ledger.reserve(
                caller, request, newest_known=None if known is None else known.id
            )
            if isinstance(reserved, Held):
                flight.clear(reserved.purchase)
                return await self._buy(reserved, caller.tenant.name, request)
            # Somebody was faster, in this process or another.
            known = reserved

    async def _bought_before(self, caller: Caller | None, known: Purchase, flight: _Flight) -> Landed | None:
        """What an earlier purchase of the same request brings; None when it brings nothing and a new one is due."""
        match known.state:
            case State.UNKNOWN:
                raise OutcomeUnknown(
                    "An identical request was sent before, and the upstream did not say whether it took it. It will "
                    "not be sent again on a guess: ask the operator to resolve the purchase, or try again later."
                )
            case State.SETTLED:
                return await self._recover(known)
            case State.LOST:
                return None
            case _:
                return await self._take_over(caller, known, flight)

    async def _take_over(self, caller: Caller | None, known: Purchase, flight: _Flight) -> Landed | None:
        claim = await self._custody.adopt(known.id)
        match claim:
            case Held() if caller is None:
                # Never sent, and nobody waits for it any more.
                await self._ledger.release(claim, "given up before it was sent")
                return None
            case Held():
                flight.clear(None)
                return await self._buy(claim, known.tenant, known.request)
            case Bought():
                flight.clear(None)
                return await self._collect(claim, known.request)
            case Sent():
                # Its owner died between writing `sending` and writing the ticket down.
                reason = "the gateway stopped while the request was being sent"
                await self._ledger.mark_unknown(claim, reason)
                raise OutcomeUnknown(
                    "The gateway stopped while this request was being sent, and nobody can say whether the upstream "
                    "took it. It will not be sent again on a guess: ask the operator to resolve the purchase."
                )
            case None:
                flight.clear(None)
                return await self._await_elsewhere(known)

    async def _await_elsewhere(self, known: Purchase) -> Landed | None:
        """Another process has it: wait until it has ended there."""
        self._progress[known.request.fingerprint] = Progress.PROCESSING
        while True:
            newest = await self._custody.newest(known.request.fingerprint)
            if newest is None or newest.id != known.id:
                return None
            if newest.state is State.UNKNOWN:
                raise OutcomeUnknown(
                    "The upstream did not say whether it took the identical request under way."
                )
            if newest.generation is not None:
                await self._remember(newest.generation)
                return Landed(newest.generation, newest.id)
            if claim := await self._custody.adopt(known.id):
                if isinstance(claim, Bought):
                    return await self._collect(claim, known.request)
                if isinstance(claim, Held):
                    return await self._buy(claim, known.tenant, known.request)
                await self._ledger.mark_unknown(claim, "its process stopped while the request was being sent")
                continue
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS_ELSEWHERE)

    async def _recover(self, settled: Purchase) -> Landed | None:
        """What was paid for before: from our own disk if it is there, else from the upstream while it keeps it."""
        generation = settled.generation
        assert generation is not None  # noqa: S101 -- a settled purchase has one: the ledger's own constraint
        if await self._is_whole(generation):
            await self._remember(generation)
            return Landed(generation, None)
        if self._clock() - generation.made_at > self._recollect_seconds:
            return None
        try:
            async with asyncio.timeout(_RECOVERY_SECONDS):
                blobs = await self._fetch(generation)
        except (GatewayError, TimeoutError) as error:
            self._log.warning("lost result not recovered", purchase=settled.id, error=str(error))
            return None
        again = _with_blobs(generation, blobs)
        await self._remember(again)
        self._log.info("lost result recovered", purchase=settled.id)
        return Landed(again, None, recovered=True)

    async def _fetch(self, generation: Generation) -> tuple[Blob, ...]:
        async with self._upstream.collect(
            generation.ticket, generation.model, lambda _progress: None
        ) as delivery:
            return tuple([await self._blobs.put(made, self._inspect) async for made in delivery.artifacts])

    async def _buy(self, held: Held, tenant: str, request: GenerationRequest) -> Landed:
        async with self._slots.slot(tenant):
            sent = await self._ledger.send(held)
            bought = await self._submit(sent, request)
            return await self._collect(bought, request)

    async def _submit(self, sent: Sent, request: GenerationRequest) -> Bought:
        started_at = asyncio.get_running_loop().time()
        try:
            ticket = await self._upstream.submit(request)
        except NotBought as error:
            self._observe(request.model, "not_bought", started_at)
            reason = error.code
            await self._persist(lambda: self._ledger.release(sent, reason))
            raise
        except Exception as error:
            # Whatever it was, the request may have arrived: nothing is bought again on a guess.
            self._observe(request.model, "unknown", started_at)
            reason = str(error) if isinstance(error, OutcomeUnknown) else f"unexpected {type(error).__name__}"
            await self._persist(lambda: self._ledger.mark_unknown(sent, reason))
            if isinstance(error, OutcomeUnknown):
                raise
            raise OutcomeUnknown(
                "The request was sent, and something broke before the answer came."
            ) from error
        return await self._persist(lambda: self._ledger.record_ticket(sent, ticket))

    async def _collect(self, bought: Bought, request: GenerationRequest) -> Landed:
        started_at = asyncio.get_running_loop().time()

        def progressed(progress: Progress) -> None:
            self._progress[request.fingerprint] = progress

        try:
            async with self._upstream.collect(bought.ticket, request.model, progressed) as delivery:
                blobs = [await self._blobs.put(made, self._inspect) async for made in delivery.artifacts]
                upstream_seconds = self._observe(request.model, "completed", started_at)
                generation = await self._persist(
                    lambda: self._ledger.settle(
                        bought, cost=delivery.cost, blobs=blobs, seed=delivery.seed, seconds=delivery.seconds
                    )
                )
        except GenerationFailed as error:
            self._observe(request.model, "failed", started_at)
            reason = error.code
            await self._persist(lambda: self._ledger.release(bought, reason))
            raise
        except ResultGone as error:
            self._observe(request.model, "gone", started_at)
            reason = str(error)
            await self._persist(lambda: self._ledger.mark_unknown(bought, reason))
            raise
        except ResultUnavailable:
            self._observe(request.model, "unavailable", started_at)
            raise
        except ClaimLost as lost:
            raise OutcomeUnknown(
                "Another process has taken this purchase over; send the same request again to wait for it."
            ) from lost
        if generation.cost > request.price:
            self._log.warning(
                "charged more than was held",
                purchase=bought.purchase,
                model=request.model,
                held_usd=request.price.usd_number,
                cost_usd=generation.cost.usd_number,
            )
        await self._remember(generation)
        return Landed(generation, bought.purchase, upstream_seconds)

    async def _remember(self, generation: Generation) -> None:
        try:
            await self._cache.put(generation)
        except StorageUnavailable as error:
            # Paid, stored and settled: the ledger knows it, and the next look-up remembers it from there.
            self._log.warning("not remembered", purchase=generation.purchase, error=str(error))

    def _observe(self, model: str, outcome: str, started_at: float) -> float:
        seconds = asyncio.get_running_loop().time() - started_at
        self._metrics.upstream_seconds.labels(model, outcome).observe(seconds)
        return seconds

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write what must not be lost, however long the disk refuses: it is known nowhere else."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await write()
            except StorageUnavailable as error:
                self._log.error("the ledger cannot be written; trying again", error=str(error))
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter is no secret
            pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)


def _with_blobs(generation: Generation, blobs: tuple[Blob, ...]) -> Generation:
    kept = generation.to_json()
    kept["blobs"] = [[blob.digest, blob.size_bytes, blob.media_type] for blob in blobs]
    return Generation.from_json(kept)


def _failure(error: GatewayError) -> Failed:
    return Failed(error.code, str(error), error.details)
