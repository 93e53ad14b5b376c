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
from gateway.domain.identity import Fingerprint, PurchaseId
from gateway.domain.money import Money
from gateway.domain.tenant import Caller
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

_SECONDS_BETWEEN_LOOKS = 0.1
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
    STORED = "stored"
    SETTLED = "settled"
    REMEMBERED = "remembered"
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
        ledger: Ledger,
        custody: Custody,
        resolution: Resolution,
        upstream: Upstream,
        slots: FairSlots,
        metrics: Metrics,
        clock: Clock,
        recollect_seconds: float,
        on_unknown: OnUnknown,
        unknown_wait_seconds: float,
        at_step: Callable[[Step], None] = pass_by,
    ) -> None:
        """`expectation_of`: what is promised of the result of a request; None where nothing is known.

        `recollect_seconds`: for how long after it landed the upstream may be asked again for a lost result.

        `unknown_wait_seconds`: how long a request waits for an identical one's unknown outcome to be resolved.
        `at_step` is called at each step of a purchase; a test crashes the process there.
        """
        self._cache = cache
        self._blobs = blobs
        self._inspect = inspect
        self._expectation_of = expectation_of
        self._ledger = ledger
        self._custody = custody
        self._resolution = resolution
        self._upstream = upstream
        self._slots = slots
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
        if generation is None or not await self._is_whole(generation):
            return None
        return generation

    async def _is_whole(self, generation: Generation) -> bool:
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
        # Look again: another flight may have landed between our look-up and our take-off.
        if not request.fresh and (generation := await self.look_up(request.fingerprint)):
            return Landed(generation, Found.STORED)
        awaited: PurchaseId | None = None
        while True:
            known = await self._custody.newest(request.fingerprint)
            try:
                if known is not None and known.state.is_open:
                    awaited = known.id
                    landed = await self._work_on(known, caller, flight)
                elif known is not None and (
                    landed := await self._recover(known, was_awaited=known.id == awaited)
                ):
                    return landed
                else:
                    landed = await self._buy_anew(known, caller, request, flight)
            except ClaimLost:
                # Another process has taken the purchase over, while this one was slow: see what it makes of it.
                continue
            except _SentIntoSilence:
                sent = await self._custody.newest(request.fingerprint)
                if sent is not None:
                    awaited = sent.id
                    await self._await_resolution(sent, flight)
                continue
            if landed is not None:
                return landed

    async def _buy_anew(
        self,
        known: Purchase | None,
        caller: Caller | None,
        request: GenerationRequest,
        flight: GenerationFlight,
    ) -> Landed | None:
        """Reserve and buy; None when somebody was faster, in this process or another."""
        if caller is None:
            raise Abandoned
        self._slots.check()
        reserved = await self._ledger.reserve(
            caller, request, newest_known=None if known is None else known.id
        )
        if not isinstance(reserved, Held):
            return None
        flight.clear(reserved.purchase)
        self._at_step(Step.RESERVED)
        return await self._buy(reserved, caller.tenant.name, request)

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
                return await self._buy(claim, known.tenant, known.request)
            case Bought():
                flight.clear(None)
                return await self._collect(claim, known.request, Found.UNDER_WAY)
            case Sent():
                # Its owner died between writing `sending` and writing the ticket down.
                await self._ledger.mark_unknown(claim, "the gateway stopped while the request was being sent")
                return None
            case None:
                # Another process works on it.
                flight.clear(None)
                self._progress[known.request.fingerprint] = Progress.PROCESSING
                await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
                return None

    async def _await_resolution(self, known: Purchase, flight: GenerationFlight) -> None:
        """Wait until it is known what became of it: nothing is bought again on a guess."""
        flight.clear(None)
        self._progress[known.request.fingerprint] = Progress.PROCESSING
        try:
            async with asyncio.timeout(self._unknown_wait_seconds):
                newest: Purchase | None = known
                while newest is not None and newest.id == known.id and newest.state is State.UNKNOWN:
                    await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
                    newest = await self._custody.newest(known.request.fingerprint)
        except TimeoutError:
            raise OutcomeUnknown(
                "The request was sent, and whether the upstream took it is not known: it may have been bought. It is "
                "not sent again on a guess; the gateway goes on asking the upstream's history. Repeat the request "
                "later, or have the operator look at `gateway purchases list --state unknown`."
            ) from None

    async def _recover(self, ended: Purchase, *, was_awaited: bool) -> Landed | None:
        """What was paid for before: from our own disk if it is there, else from the upstream while it keeps it."""
        generation = ended.generation
        if generation is None:
            return None
        if await self._is_whole(generation):
            await self._remember(generation)
            return Landed(generation, Found.UNDER_WAY if was_awaited else Found.STORED)
        if self._clock() - generation.made_at > self._recollect_seconds:
            return None
        try:
            async with asyncio.timeout(_RECOVERY_SECONDS):
                blobs = await self._fetch(generation, ended.request)
        except (GatewayError, TimeoutError) as error:
            self._log.warning("lost result not recovered", purchase=ended.id, error=str(error))
            return None
        again = replace(generation, blobs=blobs)
        await self._remember(again)
        self._log.info("lost result recovered", purchase=ended.id)
        return Landed(again, Found.RECOVERED)

    async def _fetch(self, generation: Generation, request: GenerationRequest) -> tuple[Blob, ...]:
        async with self._upstream.collect(
            generation.ticket, generation.model, lambda _progress: None
        ) as delivery:
            return await self._stored(delivery, request)

    async def _buy(self, held: Held, tenant: str, request: GenerationRequest) -> Landed:
        async with self._slots.slot(tenant):
            sent = await self._ledger.send(held)
            self._at_step(Step.SENDING)
            bought = await self._submit(sent, request)
            self._at_step(Step.RUNNING)
            return await self._collect(bought, request, Found.BOUGHT)

    async def _submit(self, sent: Sent, request: GenerationRequest) -> Bought:
        started_at = asyncio.get_running_loop().time()
        try:
            ticket = await self._upstream.submit(request)
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
        self._at_step(Step.SUBMITTED)
        try:
            return await persist(lambda: self._ledger.record_ticket(sent, ticket))
        except ClaimLost:
            # We were taken for dead while we sent. What we hold is the answer to what is unknown since.
            await persist(lambda: self._resolution.resolve_bought(sent.purchase, ticket))
            raise

    async def _collect(self, bought: Bought, request: GenerationRequest, found: Found) -> Landed:
        started_at = asyncio.get_running_loop().time()
        try:
            generation = await self._deliver(bought, request)
        except GenerationFailed as error:
            self._observe(request.model, "failed", started_at)
            reason = error.code
            await persist(lambda: self._ledger.release(bought, reason))
            raise
        except ResultGone as error:
            self._observe(request.model, "gone", started_at)
            reason = str(error)
            await persist(lambda: self._ledger.mark_unknown(bought, reason))
            raise
        except ResultUnavailable:
            self._observe(request.model, "unavailable", started_at)
            raise
        upstream_seconds = self._observe(request.model, "completed", started_at)
        self._at_step(Step.SETTLED)
        if generation.cost > request.price:
            self._log.warning(
                "charged more than was held",
                purchase=bought.purchase,
                model=request.model,
                held_usd=request.price.usd_number,
                cost_usd=generation.cost.usd_number,
            )
        await self._remember(generation)
        self._at_step(Step.REMEMBERED)
        return Landed(generation, found, upstream_seconds)

    async def _deliver(self, bought: Bought, request: GenerationRequest) -> Generation:
        """Wait for the result, check it, store it, settle it; a broken one is fetched again before it is given up."""

        def progressed(progress: Progress) -> None:
            self._progress[request.fingerprint] = progress

        for pause_seconds in (*_PAUSES_BEFORE_FETCHING_AGAIN, None):
            cost: Money | None = None
            try:
                async with self._upstream.collect(bought.ticket, request.model, progressed) as delivery:
                    cost = delivery.cost
                    blobs = await self._stored(delivery, request)
                    self._at_step(Step.STORED)
                    settle = partial(
                        self._ledger.settle,
                        bought,
                        cost=cost,
                        blobs=blobs,
                        seed=delivery.seed,
                        seconds=delivery.seconds,
                    )
                    return await persist(settle)
            except ResultBroken as error:
                self._log.warning("broken result", purchase=bought.purchase, error=str(error))
                if pause_seconds is None:
                    reason = str(error)
                    write_off = partial(self._ledger.write_off, bought, cost=cost, reason=reason)
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
