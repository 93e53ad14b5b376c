"""How one generation is had: found, adopted, or bought and collected."""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.blobs.contract import BlobStore, Inspection
from gateway.cache.contract import GenerationCache
from gateway.domain.clock import Clock
from gateway.domain.errors import (
    GatewayError,
    GenerationFailed,
    NotBought,
    OutcomeUnknown,
    RequestRefused,
    ResultBroken,
    ResultGone,
    ResultUnavailable,
    StorageUnavailable,
)
from gateway.domain.expectation import Expectation
from gateway.domain.generation import Blob, Generation, GenerationRequest
from gateway.domain.identity import Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller
from gateway.generation.estimating import Estimator
from gateway.generation.lookout import Lookout
from gateway.generation.scheduling import FairSlots
from gateway.generation.single_flight import Flight
from gateway.ledger.contract import (
    Bought,
    ClaimLost,
    Custody,
    Held,
    Ledger,
    Purchase,
    Resolution,
    Sent,
    State,
)
from gateway.telemetry.logs import log_for
from gateway.telemetry.metrics import Metrics
from gateway.upstream.contract import Delivery, Progress, Upstream

T = TypeVar("T")

_PAUSES_BEFORE_FETCHING_AGAIN = (0.5, 2.0)
_RECOVERY_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0


class Step(enum.Enum):
    """Moments in the life of a purchase at which a crash has to be survived; each follows what it names."""

    RESERVED = "reserved"
    SENDING = "sending"
    SUBMITTED = "submitted"
    RUNNING = "running"
    RECEIVED = "received"
    STORED = "stored"
    SETTLED = "settled"
    REMEMBERED = "remembered"
    ANSWERED = "answered"
    CONCLUDED = "concluded"


def pass_by(_: Step) -> None:
    """What happens at each step, unless somebody wants something else to happen there."""


class OnUnknown(enum.Enum):
    """What is done about a request whose identical twin was sent with unknown outcome."""

    WAIT = "wait"
    BUY_AGAIN = "buy_again"


class Found(enum.Enum):
    """How a flight came by what it brings home."""

    STORED = "it was there already"
    RECOVERED = "it was paid for before, and its bytes were fetched again"
    UNDER_WAY = "it was being made while the flight was in the air"
    BOUGHT = "the flight itself has bought it"


@dataclass(frozen=True, slots=True)
class Landed:
    """What a flight brings home."""

    generation: Generation
    found: Found
    upstream_seconds: float = 0.0
    """How much of the flight was spent waiting for the upstream."""


class Inspect(Protocol):
    """Reads a staged file of a media type, in a thread; raises ResultBroken if it is not what it should be."""

    def __call__(self, path: Path, media_type: str, expectation: Expectation | None = None) -> None: ...


class Abandoned(Exception):
    """The flight was for nobody, and has bought nothing."""


class _SentIntoSilence(Exception):
    """The request left, nobody can say whether it was taken, and the journal has it as unknown."""


GenerationFlight = Flight[PurchaseId, Landed]


class Purchasing:
    """What a flight does, from its take-off to its landing. One flight a fingerprint is in the air at a time here;
    that no other process buys the same at the same time is the journal's doing.
    """

    def __init__(
        self,
        *,
        cache: GenerationCache,
        blobs: BlobStore,
        inspect: Inspect,
        expectation_of: Callable[[GenerationRequest], Expectation | None],
        expected_seconds_of: Callable[[GenerationRequest], float | None],
        ledger: Ledger,
        custody: Custody,
        resolution: Resolution,
        upstream: Upstream,
        estimator: Estimator,
        slots: FairSlots,
        lookout: Lookout,
        metrics: Metrics,
        clock: Clock,
        recollect_seconds: float,
        on_unknown: OnUnknown,
        unknown_wait_seconds: float,
        at_step: Callable[[Step], None] = pass_by,
    ) -> None:
        """`expectation_of`: what is promised of the result of a request; None where nothing is known.

        `expected_seconds_of`: how long the upstream usually takes for it; None where nobody knows.

        `recollect_seconds`: for how long after it landed the upstream may be asked again for a lost result.

        `unknown_wait_seconds`: how long a request waits for an identical one's unknown outcome to be resolved.
        `at_step` is called at each step of a purchase; a test crashes the process there.
        """
        self._cache = cache
        self._blobs = blobs
        self._inspect = inspect
        self._expectation_of = expectation_of
        self._expected_seconds_of = expected_seconds_of
        self._ledger = ledger
        self._custody = custody
        self._resolution = resolution
        self._upstream = upstream
        self._estimator = estimator
        self._slots = slots
        self._lookout = lookout
        self._metrics = metrics
        self._clock = clock
        self._recollect_seconds = recollect_seconds
        self._on_unknown = on_unknown
        self._unknown_wait_seconds = unknown_wait_seconds
        self._at_step = at_step
        self._progress: dict[Fingerprint, Progress] = {}
        self._log = log_for("purchasing")

    def progress(self, fingerprint: Fingerprint) -> Progress:
        """How far the upstream says that the generation is."""
        return self._progress.get(fingerprint, Progress.QUEUED)

    async def look_up(self, fingerprint: Fingerprint) -> Generation | None:
        """A hit needs both halves: the entry, and every blob that it names."""
        generation = await self._cache.get(fingerprint)
        if generation is None or not await self.is_whole(generation):
            return None
        return generation

    async def is_whole(self, generation: Generation) -> bool:
        """Whether all that was made is on our own disk."""
        for blob in generation.blobs:
            if await self._blobs.locate(blob.digest) is None:
                return False
        return True

    def flight(
        self, caller: Caller | None, request: GenerationRequest
    ) -> Callable[[GenerationFlight], Awaitable[Landed]]:
        """The work of a flight for `request`; with no caller it goes on with what is open, and buys nothing new."""

        async def fly(flight: GenerationFlight) -> Landed:
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

    async def _fly(
        self, caller: Caller | None, request: GenerationRequest, flight: GenerationFlight
    ) -> Landed:
        # That nobody has asked for this before is presumed where the journal contradicts in the same transaction that
        # would reserve. Whoever would have to wait, or cannot pay, looks first.
        at_once = caller is not None and self._slots.are_free
        known = None if at_once else await self._custody.newest(request.fingerprint)
        awaited: PurchaseId | None = None
        while True:
            found: Landed | Purchase | None = None
            try:
                if known is not None and known.state.is_open:
                    awaited = known.id
                    found = await self._work_on(known, caller, flight)
                else:
                    if known is not None:
                        found = await self._recover(known, flight, was_awaited=known.id == awaited)
                    if found is None:
                        found = await self._buy_anew(known, caller, request, flight)
            except ClaimLost:
                # Another process has taken the purchase over, while this one was slow: see what it makes of it.
                pass
            except _SentIntoSilence:
                sent = await self._custody.newest(request.fingerprint)
                if sent is not None:
                    awaited = sent.id
                    await self._await_resolution(sent, flight)
            if isinstance(found, Landed):
                return found
            known = found or await self._custody.newest(request.fingerprint)

    async def _buy_anew(
        self,
        known: Purchase | None,
        caller: Caller | None,
        request: GenerationRequest,
        flight: GenerationFlight,
    ) -> Landed | Purchase:
        """Reserve and buy; if somebody was faster, in this process or another, what that one has bought."""
        if caller is None:
            raise Abandoned
        request = replace(request, price=await self._estimator.price_to_hold(request))
        self._slots.check()
        newest_known = None if known is None else known.id
        if self._slots.take():
            try:
                # Nobody to wait for: one transaction says that money is held and that the request may leave.
                sent = await self._ledger.reserve(caller, request, newest_known=newest_known, sending=True)
                if isinstance(sent, Purchase):
                    return sent
                assert isinstance(sent, Sent)  # noqa: S101 -- as was asked for
                flight.clear(sent.purchase)
                return await self._send(sent, request, flight)
            finally:
                self._slots.give_back()
        held = await self._ledger.reserve(caller, request, newest_known=newest_known)
        if isinstance(held, Purchase):
            return held
        assert isinstance(held, Held)  # noqa: S101 -- as was asked for
        flight.clear(held.purchase)
        self._at_step(Step.RESERVED)
        return await self._buy(held, caller.tenant.name, request, flight)

    async def _work_on(
        self, known: Purchase, caller: Caller | None, flight: GenerationFlight
    ) -> Landed | None:
        """Bring an open purchase of the same request on by a step; None when it is worth another look."""
        if known.state is State.UNKNOWN:
            if self._on_unknown is OnUnknown.BUY_AGAIN:
                reason = "bought again, as reconcile.on_unknown demands"
                await self._resolution.resolve_lost(known.id, None, reason)
            else:
                await self._await_resolution(known, flight)
            return None
        claim = await self._custody.adopt(known.id)
        match claim:
            case Held() if caller is None:
                # Never sent, and nobody waits for it any more.
                await self._ledger.release(claim, "given up before it was sent")
                return None
            case Held():
                flight.clear(None)
                return await self._buy(claim, known.tenant, known.request, flight)
            case Bought():
                flight.clear(None)
                now = asyncio.get_running_loop().time()
                elapsed_seconds = max(0.0, self._clock() - (known.sent_at or known.reserved_at))
                return await self._collect(
                    claim.ticket,
                    _at_hand(claim),
                    known.request,
                    Found.UNDER_WAY,
                    flight,
                    now,
                    elapsed_seconds,
                )
            case Sent():
                # Its owner died between writing `sending` and writing the ticket down.
                await self._ledger.mark_unknown(claim, "the gateway stopped while the request was being sent")
                return None
            case None:
                # Another process works on it.
                flight.clear(None)
                self._progress[known.request.fingerprint] = Progress.PROCESSING
                await self._lookout.wait(known.request.fingerprint)
                return None

    async def _await_resolution(self, known: Purchase, flight: GenerationFlight) -> None:
        """Wait until it is known what became of it: nothing is bought again on a guess."""
        flight.clear(None)
        self._progress[known.request.fingerprint] = Progress.PROCESSING
        try:
            async with asyncio.timeout(self._unknown_wait_seconds):
                newest: Purchase | None = known
                while newest is not None and newest.id == known.id and newest.state is State.UNKNOWN:
                    await self._lookout.wait(known.request.fingerprint)
                    newest = await self._custody.newest(known.request.fingerprint)
        except TimeoutError:
            raise OutcomeUnknown(
                "The request was sent, and whether the upstream took it is not known: it may have been bought. It is "
                "not sent again on a guess; the gateway goes on asking the upstream's history. Repeat the request "
                "later, or have the operator look at `gateway purchases list --state unknown`."
            ) from None

    async def _recover(
        self, ended: Purchase, flight: GenerationFlight, *, was_awaited: bool
    ) -> Landed | None:
        """What was paid for before: from our own disk if it is there, else from the upstream while it keeps it."""
        generation = ended.generation
        if generation is None:
            return None
        if await self.is_whole(generation):
            found = Found.UNDER_WAY if was_awaited else Found.STORED
            return await self._landed(Landed(generation, found), flight)
        if self._clock() - generation.made_at > self._recollect_seconds:
            return None
        try:
            async with asyncio.timeout(_RECOVERY_SECONDS):
                blobs = await self._fetch(generation, ended.request)
        except (GatewayError, TimeoutError) as error:
            self._log.warning("lost result not recovered", purchase=ended.id, error=str(error))
            return None
        self._log.info("lost result recovered", purchase=ended.id)
        return await self._landed(Landed(replace(generation, blobs=blobs), Found.RECOVERED), flight)

    async def _fetch(self, generation: Generation, request: GenerationRequest) -> tuple[Blob, ...]:
        async with self._upstream.collect(
            generation.ticket, generation.model, lambda _progress: None
        ) as delivery:
            return await self._stored(delivery, request)

    async def _buy(
        self, held: Held, tenant: str, request: GenerationRequest, flight: GenerationFlight
    ) -> Landed:
        async with self._slots.slot(tenant):
            return await self._send(await self._ledger.send(held), request, flight)

    async def _send(self, sent: Sent, request: GenerationRequest, flight: GenerationFlight) -> Landed:
        self._at_step(Step.SENDING)
        began_at = asyncio.get_running_loop().time()
        ticket = await self._submit(sent, request)
        self._at_step(Step.SUBMITTED)
        # Written down beside what the upstream already sends: nothing is settled before it is, and a crash until then
        # finds what it would have found while it was being written: a request that was sent, and no more.
        bought = asyncio.create_task(self._record(sent, ticket))
        # So that the write, which is done whoever waits for it, is under way before anything can call this flight off.
        await asyncio.sleep(0)
        try:
            return await self._collect(ticket, bought, request, Found.BOUGHT, flight, began_at)
        except asyncio.CancelledError:
            bought.cancel()
            raise
        finally:
            # What it raises comes first: whose claim is lost has no say in what became of it.
            await bought

    async def _submit(self, sent: Sent, request: GenerationRequest) -> Ticket:
        started_at = asyncio.get_running_loop().time()
        try:
            return await self._upstream.submit(request)
        except NotBought as error:
            self._observe(request.model, "not_bought", started_at)
            reason = error.code
            try:
                await persist(lambda: self._ledger.release(sent, reason))
            except ClaimLost:
                # We were taken for dead while we sent. What is unknown since is known here, and nowhere else for hours.
                await persist(lambda: self._resolution.resolve_not_bought(sent.purchase, reason))
            raise
        except Exception as error:
            # Whatever it was, the request may have arrived: nothing is bought again on a guess.
            self._observe(request.model, "unknown", started_at)
            reason = str(error) if isinstance(error, OutcomeUnknown) else f"unexpected {type(error).__name__}"
            self._log.warning("sent into silence", purchase=sent.purchase, reason=reason)
            await persist(lambda: self._ledger.mark_unknown(sent, reason))
            raise _SentIntoSilence from error

    async def _record(self, sent: Sent, ticket: Ticket) -> Bought:
        try:
            bought = await persist(lambda: self._ledger.record_ticket(sent, ticket))
        except ClaimLost:
            # We were taken for dead while we sent. What we hold is the answer to what is unknown since.
            await persist(lambda: self._resolution.resolve_bought(sent.purchase, ticket))
            raise
        self._at_step(Step.RUNNING)
        return bought

    async def _collect(
        self,
        ticket: Ticket,
        bought: asyncio.Future[Bought],
        request: GenerationRequest,
        found: Found,
        flight: GenerationFlight,
        began_at: float,
        elapsed_seconds: float = 0.0,
    ) -> Landed:
        """Bring home what `ticket` stands for. `bought` is there once that is written down.

        `elapsed_seconds` is how long it had been bought when the flight came to it.
        """
        try:
            generation = await self._deliver(ticket, bought, request, elapsed_seconds)
        except GenerationFailed as error:
            self._observe(request.model, "failed", began_at)
            claim, reason = await bought, error.code
            await persist(lambda: self._ledger.release(claim, reason))
            raise
        except ResultGone as error:
            self._observe(request.model, "gone", began_at)
            claim, reason = await bought, str(error)
            await persist(lambda: self._ledger.mark_unknown(claim, reason))
            raise
        except ResultUnavailable:
            self._observe(request.model, "unavailable", began_at)
            raise
        upstream_seconds = self._observe(request.model, "completed", began_at)
        self._at_step(Step.SETTLED)
        if generation.cost > request.price:
            self._log.warning(
                "charged more than was held",
                purchase=generation.purchase,
                model=request.model,
                held_usd=request.price.usd_number,
                cost_usd=generation.cost.usd_number,
            )
        return await self._landed(Landed(generation, found, upstream_seconds), flight)

    async def _landed(self, landed: Landed, flight: GenerationFlight) -> Landed:
        """Stored, and in the journal: who waits may have it. That it is remembered, too, nobody has to wait for.

        Who asks again finds it all the same: looks and writes are done one after the other, and this write is begun before
        anybody has an answer; and where it fails, the journal has it.
        """
        flight.land(landed)
        try:
            await self._cache.put(landed.generation)
        except StorageUnavailable as error:
            # Paid, stored and settled: the ledger knows it, and the next look-up remembers it from there.
            self._log.warning("not remembered", purchase=landed.generation.purchase, error=str(error))
        self._at_step(Step.REMEMBERED)
        return landed

    async def _deliver(
        self,
        ticket: Ticket,
        bought: asyncio.Future[Bought],
        request: GenerationRequest,
        elapsed_seconds: float,
    ) -> Generation:
        """Wait for the result, check it, store it, settle it; a broken one is fetched again before it is given up."""

        def progressed(progress: Progress) -> None:
            self._progress[request.fingerprint] = progress

        for pause_seconds in (*_PAUSES_BEFORE_FETCHING_AGAIN, None):
            cost: Money | None = None
            try:
                async with self._upstream.collect(
                    ticket,
                    request.model,
                    progressed,
                    expected_seconds=self._expected_seconds_of(request),
                    elapsed_seconds=elapsed_seconds,
                ) as delivery:
                    cost = delivery.cost
                    # The first bytes are there. The rest waits for the ticket: a disk that has no room for that has none
                    # for the media either, and an answer that comes once must not be read and lost.
                    claim = await bought
                    self._at_step(Step.RECEIVED)
                    blobs = await self._stored(delivery, request)
                    self._at_step(Step.STORED)
                    settle = partial(
                        self._ledger.settle,
                        claim,
                        cost=cost,
                        blobs=blobs,
                        seed=delivery.seed,
                        seconds=delivery.seconds,
                    )
                    return await persist(settle)
            except ResultBroken as error:
                self._log.warning("broken result", purchase=(await bought).purchase, error=str(error))
                if pause_seconds is None:
                    claim, reason = await bought, str(error)
                    write_off = partial(self._ledger.write_off, claim, cost=cost, reason=reason)
                    await persist(write_off)
                    raise
                await asyncio.sleep(pause_seconds)
        raise AssertionError("the last round returns or raises")

    async def _stored(self, delivery: Delivery, request: GenerationRequest) -> tuple[Blob, ...]:
        """Everything that was delivered, checked and at rest. What is promised is promised of the principal one."""
        inspect: Inspection = partial(self._inspect, expectation=self._expectation_of(request))
        blobs = []
        async for made in delivery.artifacts:
            blobs.append(await self._blobs.put(made, inspect))
            inspect = self._inspect
        return tuple(blobs)

    def _observe(self, model: str, outcome: str, started_at: float) -> float:
        seconds = asyncio.get_running_loop().time() - started_at
        self._metrics.upstream_seconds.labels(model, outcome).observe(seconds)
        return seconds


def _at_hand(bought: Bought) -> asyncio.Future[Bought]:
    at_hand: asyncio.Future[Bought] = asyncio.get_running_loop().create_future()
    at_hand.set_result(bought)
    return at_hand


async def persist(write: Callable[[], Awaitable[T]]) -> T:
    """Write what must not be lost, however long the disk refuses: it is known nowhere else."""
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await write()
        except StorageUnavailable as error:
            log_for("purchasing").error("the ledger cannot be written; trying again", error=str(error))
        await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 -- jitter is no secret
        pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
