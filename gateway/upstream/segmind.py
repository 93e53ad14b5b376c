"""Segmind's wire protocol: v2 (submit, poll, fetch), and v1 (one long call) for the models that want it.

What each answer means for the money is in `docs/upstream.md`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import rfc8785
from yarl import URL

from gateway.domain.clock import Clock
from gateway.domain.errors import (
    GatewayError,
    GenerationFailed,
    ResultGone,
    ResultUnavailable,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamUnreachable,
    UpstreamUnusable,
)
from gateway.domain.generation import Artifact, GenerationRequest
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.upstream import answers
from gateway.upstream.answers import Answer, Silence, Standing
from gateway.upstream.calls import Calls, Once, OpenAnswer
from gateway.upstream.contract import Delivery, PastCall, Progress
from gateway.upstream.downloads import NETWORK_FAULTS, Downloads, OnCall, artifact, beginning, word
from gateway.upstream.held import HeldAnswers
from gateway.upstream.history import RequestHistory, Row, inputs_of
from gateway.upstream.limits import Limits, growing
from gateway.upstream.polling import Turns, pauses
from gateway.upstream.products import Inline, Link, Product, v1_products, v2_products
from gateway.upstream.secret import Secret
from gateway.upstream.wire import Wire, body_of, segment

RESULT_HOSTS = frozenset({"images.segmind.com", "api.segmind.com"})
"""Where the upstream is known to put results."""

_DEFAULT_LIMITS = Limits()
_USER_AGENT = "generation-gateway"
_OWN_TICKET = "v1-"
"""Begins a ticket of our own making, for a v1 answer that came without an id."""


@dataclass(frozen=True, slots=True)
class _Made:
    """A generation that is finished, and where it is."""

    products: tuple[Product, ...]
    cost: Money | None
    seed: int | None
    seconds: float | None


class SegmindUpstream:
    """Keeps the contracts Upstream and History. Made by `open`."""

    def __init__(
        self,
        *,
        wire: Wire,
        downloads: Downloads,
        held: HeldAnswers,
        history: RequestHistory | None,
        protocols: Mapping[str, str],
        text_models: frozenset[str],
        limits: Limits,
        clock: Clock,
        on_call: OnCall,
    ) -> None:
        self._wire = wire
        self._downloads = downloads
        self._held = held
        self._history = history
        self._protocols = protocols
        self._text_models = text_models
        self._limits = limits
        self._turns = Turns(limits.polls_per_second)
        self._clock = clock
        self._on_call = on_call

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        base_url: str,
        api_key: Secret,
        clock: Clock,
        on_call: OnCall,
        result_hosts: frozenset[str] = RESULT_HOSTS,
        history_url: str | None = None,
        protocols: Mapping[str, str] | None = None,
        text_models: frozenset[str] = frozenset(),
        limits: Limits = _DEFAULT_LIMITS,
    ) -> AsyncIterator[SegmindUpstream]:
        """An upstream for as long as the block runs.

        `base_url` is where `/v1` and `/v2` are; over http (a sandbox) results may come over http as well.
        `history_url` is where `/inference-request/request-history` is, None to do without. `protocols` says `v1` or `v2`
        for a model, `v2` if it says nothing. `text_models` answer with text or JSON; all others make media.
        `on_call` is told of each call: operation (submit, poll, result, download, history, credits), HTTP status or
        the word for its lack (refused, timeout, disconnected), seconds.
        """
        base_url, scheme = _service(base_url)
        history_url = history_url and _service(history_url)[0]
        protocols = dict(protocols or {})
        if strange := set(protocols.values()) - {"v1", "v2"}:
            raise ValueError(f"unknown protocol {min(strange)}: v1 or v2")
        async with AsyncExitStack() as closing:
            calls = await asyncio.to_thread(
                Calls,
                URL(base_url),
                headers={"User-Agent": _USER_AGENT, "x-api-key": api_key.reveal()},
                limits=limits,
            )
            closing.callback(calls.close)
            questions = await closing.enter_async_context(_session(limits, limits.answer_seconds))
            files = await closing.enter_async_context(
                _session(limits, limits.download_read_seconds, headers={"Accept-Encoding": "identity"})
            )
            held = HeldAnswers(held_seconds=limits.v1_held_seconds)
            closing.callback(held.close)
            wire = Wire(
                base_url=base_url,
                api_key=api_key,
                calls=calls,
                questions=questions,
                limits=limits,
                on_call=on_call,
            )
            history = (
                RequestHistory(wire=wire, base_url=history_url, clock=clock, limits=limits)
                if history_url
                else None
            )
            downloads = Downloads(
                files,
                hosts=frozenset(host.lower() for host in result_hosts),
                schemes=frozenset({"https", scheme}),
                limits=limits,
                quote=wire.quote,
                on_call=on_call,
            )
            yield cls(
                wire=wire,
                downloads=downloads,
                held=held,
                history=history,
                protocols=protocols,
                text_models=text_models,
                limits=limits,
                clock=clock,
                on_call=on_call,
            )

    # Buying

    async def submit(self, request: GenerationRequest) -> Ticket:
        """As the contract says; repeated only where the attempt before proved not to be a purchase and may pass."""
        buy = self._buy_v1 if self._protocols.get(request.model) == "v1" else self._buy_v2
        backoffs = growing(self._limits.submit_backoff_seconds)
        attempts_left = self._limits.submit_attempts
        while True:
            outcome = await buy(request.model, _written(request))
            if not isinstance(outcome, GatewayError):
                return outcome
            attempts_left -= 1
            asked_seconds = _asked_seconds(outcome)
            if (
                asked_seconds is None
                or attempts_left <= 0
                or asked_seconds > self._limits.submit_patience_seconds
            ):
                raise outcome
            await asyncio.sleep(asked_seconds + next(backoffs))

    async def _buy_v2(self, model: str, body: Once) -> Ticket | GatewayError:
        answer = await self._wire.submit(f"/v2/{segment(model)}", body)
        if isinstance(answer, Silence):
            return answers.silence_at_submit(answer)
        if answer.is_success and (ticket := answers.ticket(answer)):
            return ticket
        return self._refusal(answer, model)

    async def _buy_v1(self, model: str, body: Once) -> Ticket | GatewayError:
        answer = await self._wire.submit_and_wait(f"/v1/{segment(model)}", body)
        match answer:
            case Silence():
                return answers.silence_at_submit(answer)
            case Answer(status=500):
                return self._failure(answer.error)
            case Answer():
                return self._refusal(answer, model)
            case _:
                named = answers.usable_ticket(answer.headers.get("x-request-id"))
                ticket = named or Ticket(f"{_OWN_TICKET}{uuid.uuid4()}")
                self._held.keep(ticket, answer)
                return ticket

    def _refusal(self, answer: Answer, model: str) -> GatewayError:
        return answers.refusal(
            answer,
            model=model,
            quote=self._wire.quote,
            now=self._clock(),
            rate_limit_seconds=self._limits.rate_limit_seconds,
        )

    def _failure(self, error: str) -> GenerationFailed:
        said = self._wire.quote(error) or "it gives no reason"
        return GenerationFailed(f"The upstream could not make this: {said}. It was not charged.")

    # Waiting and fetching

    @asynccontextmanager
    async def collect(
        self,
        ticket: Ticket,
        model: str,
        on_progress: Callable[[Progress], None],
        *,
        expected_seconds: float | None = None,
        elapsed_seconds: float = 0.0,
    ) -> AsyncIterator[Delivery]:
        """As the contract says. The artifacts are downloaded as they are asked for."""
        if response := self._held.take(ticket):
            async with AsyncExitStack() as closing:
                closing.callback(response.close)
                yield await self._held_delivery(response, model, closing)
        else:
            waits = pauses(expected_seconds, elapsed_seconds, self._limits)
            made = await self._made(ticket, model, on_progress, waits)
            async with AsyncExitStack() as closing:
                yield await self._delivery(made, closing)

    async def _delivery(self, made: _Made, closing: AsyncExitStack) -> Delivery:
        if not made.products:
            raise ResultUnavailable(
                "The upstream says that it is made and gives no media. It was probably charged."
            )
        # All addresses are looked at before the first is fetched: half a delivery is none.
        places = [self._downloads.allowed(p.url) if isinstance(p, Link) else p for p in made.products]
        artifacts = await closing.enter_async_context(aclosing(self._artifacts(places)))
        return Delivery(artifacts, made.cost, made.seed, made.seconds)

    async def _artifacts(self, places: list[URL | Inline]) -> AsyncGenerator[Artifact]:
        for place in places:
            if isinstance(place, Inline):
                yield Artifact(place.media_type, _once(place.content), len(place.content))
            else:
                async with self._downloads.opened(place) as downloaded:
                    yield downloaded

    async def _held_delivery(self, response: OpenAnswer, model: str, closing: AsyncExitStack) -> Delivery:
        """What a v1 answer brought: the media themselves, or JSON that has them or says where they are."""
        cost = answers.cost(response.headers.get("x-cost"))
        seed = answers.seed(response.headers.get("x-seed-value"))
        seconds = answers.seconds(response.headers.get("x-generation-time"))
        try:
            if not response.content_type.endswith("json"):
                first_bytes = await beginning(response, self._limits)
                if not first_bytes:
                    raise ResultUnavailable("The upstream's answer is empty. It was probably charged.")
                medium = artifact(response, first_bytes, limits=self._limits, on_call=self._on_call)
                artifacts = await closing.enter_async_context(aclosing(_alone(medium)))
                return Delivery(artifacts, cost, seed, seconds)
            async with asyncio.timeout(self._limits.answer_seconds):
                body = answers.parse(await body_of(response, self._limits.answer_max_bytes))
        except NETWORK_FAULTS as fault:
            raise ResultUnavailable(
                f"The upstream's answer broke off ({word(fault)}). It stays paid for."
            ) from fault
        products = v1_products(body, textual=model in self._text_models)
        return await self._delivery(_Made(products, cost, seed, seconds), closing)

    async def _made(
        self,
        ticket: Ticket,
        model: str,
        on_progress: Callable[[Progress], None],
        waits: Iterator[float],
    ) -> _Made:
        """Ask until the upstream says that it is made, and what was made, or that it never will be."""
        if ticket.startswith(_OWN_TICKET):
            raise ResultGone(
                "The upstream sold this without an id, and its only answer has been read or lost. It was paid for."
            )
        path = f"/v2/requests/{segment(ticket)}"
        completed = False
        progress = _Progress(on_progress)
        absence = _Absence(self._limits.missing_grace_seconds)
        patience_seconds = self._limits.poll_first_seconds
        while True:
            if not completed:
                await self._turns.turn(patience_seconds)
            answer = await (
                self._wire.ask("result", path) if completed else self._wire.ask("poll", f"{path}/status")
            )
            match answers.standing(answer), answer:
                case Standing.FAILED, Answer():
                    self._turns.was_worth_it()
                    raise self._failure(answer.error)
                case Standing.COMPLETED, Answer() if completed:
                    return self._made_according_to(answer, model)
                case Standing.COMPLETED, _:
                    completed, waits = True, pauses(None, 0.0, self._limits)
                    self._turns.was_worth_it()
                    absence.ends()
                    continue
                case Standing.QUEUED | Standing.PROCESSING as standing, _:
                    absence.ends()
                    progress.reached(Progress.QUEUED if standing is Standing.QUEUED else Progress.PROCESSING)
                case Standing.MISSING, _:
                    # A record may lag behind its ticket, or have expired; the history outlives it.
                    recorded = await self._recorded(ticket)
                    if isinstance(recorded, _Made):
                        return recorded
                    absence.goes_on(recorded)
            patience_seconds = self._pause_seconds(answer, next(waits))
            await asyncio.sleep(patience_seconds)

    def _pause_seconds(self, answer: Answer | Silence, interval_seconds: float) -> float:
        """How long to wait before the next poll."""
        match answer:
            case Answer(status=401 | 403):
                # Only the operator can mend this, and nobody is served by hurry.
                return max(interval_seconds, self._limits.poll_longest_seconds)
            case Answer(status=429, headers=headers):
                asked_seconds = answers.retry_after_seconds(headers, self._clock()) or 0.0
                return max(interval_seconds, min(asked_seconds, self._limits.poll_patience_seconds))
            case _:
                return interval_seconds

    def _made_according_to(self, answer: Answer, model: str) -> _Made:
        result = answer.members
        metrics = result.get("metrics")
        metrics = metrics if isinstance(metrics, dict) else {}
        return _Made(
            products=v2_products(result, textual=model in self._text_models),
            cost=answers.cost(metrics.get("cost")),
            seed=answers.seed(result.get("seed")),
            seconds=answers.seconds(metrics.get("inference_time")),
        )

    async def _recorded(self, ticket: Ticket) -> _Made | Standing:
        """What the upstream's history knows of a ticket that its polls do not know (any more)."""
        if self._history is None:
            return Standing.MISSING
        try:
            rows = await self._history.rows_of(ticket)
        except GatewayError:
            return Standing.UNSAID
        if not rows:
            return Standing.MISSING
        match rows[0].get("model_status"):
            case "FAILED":
                raise self._failure(answers.explanation(rows[0].get("error")))
            case "COMPLETED":
                return _made_according_to_history(rows)
            case _:
                return Standing.PROCESSING

    # The account

    async def past_call(self, ticket: Ticket) -> PastCall | None:
        """As the contract says; ResultGone for what was sold without an id: no history can be asked for it."""
        if ticket.startswith(_OWN_TICKET):
            raise ResultGone(
                "The upstream sold this without an id: its history cannot be asked for it by one."
            )
        return await self._written_history().call(ticket)

    async def past_calls(self, since: float, until: float) -> Sequence[PastCall]:
        """As the contract says. A row that does not say when is kept if its day may be one of those asked for."""
        return await self._written_history().calls(since, until)

    def _written_history(self) -> RequestHistory:
        if self._history is None:
            raise ResultUnavailable(
                "No history of the upstream can be asked: upstream.history_url is not set."
            )
        return self._history

    async def credits(self) -> Money:
        """As the contract says: paid and free credits together."""
        answer = await self._wire.ask("credits", "/v1/get-user-credits")
        if isinstance(answer, Silence):
            raise UpstreamUnreachable(f"The upstream does not answer for its credits ({answer.word}).")
        balances = [answers.money(answer.members.get(name, 0)) for name in ("credits", "free-credits")]
        match answer.status:
            case 200 if "credits" in answer.members and None not in balances:
                return sum((b for b in balances if b is not None), Money.ZERO)
            case 429:
                raise answers.busy(
                    answer, now=self._clock(), rate_limit_seconds=self._limits.rate_limit_seconds
                )
            case status if 300 <= status < 500:
                raise UpstreamUnusable(f"The upstream does not tell the gateway its credits ({status}).")
            case status:
                raise UpstreamUnreachable(f"The upstream's answer for its credits cannot be used ({status}).")


class _Progress:
    """Tells of each step once."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._last: Progress | None = None

    def reached(self, progress: Progress) -> None:
        if progress is not self._last:
            self._last = progress
            self._on_progress(progress)


class _Absence:
    """For how long the upstream has known nothing of a ticket."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._since: float | None = None

    def ends(self) -> None:
        self._since = None

    def goes_on(self, recorded: Standing) -> None:
        """`recorded` is what the history says. ResultGone when both have known nothing for too long."""
        now = asyncio.get_running_loop().time()
        if recorded is Standing.PROCESSING:
            self.ends()
        elif self._since is None:
            self._since = now
        elif recorded is Standing.MISSING and now - self._since >= self._grace_seconds:
            raise ResultGone("The upstream has forgotten this generation. Nobody can say here what it cost.")


def _written(request: GenerationRequest) -> Once:
    try:
        return Once(rfc8785.dumps(dict(request.parameters)))
    except ValueError as error:
        raise UpstreamRefused("These parameters cannot be written as JSON; nothing was sent.") from error


def _made_according_to_history(rows: Sequence[Row]) -> _Made:
    first = rows[0]
    # Several things that were made at once are rows of their own, each with the cost of all of them.
    places = dict.fromkeys(
        row["generation_url"] for row in rows if isinstance(row.get("generation_url"), str)
    )
    if not any(places):
        raise ResultGone(
            "The upstream made this and knows no more where its media are. It was probably charged."
        )
    latency_ms = answers.seconds(first.get("latency_ms"))
    return _Made(
        products=tuple(Link(str(place)) for place in places if place),
        cost=answers.cost(first.get("credits_deduction")),
        seed=answers.seed((inputs_of(first) or {}).get("seed")),
        seconds=None if latency_ms is None else latency_ms / 1000,
    )


def _asked_seconds(outcome: GatewayError) -> float | None:
    """How long at least to wait before the same submit is sent again; None if it must not be."""
    match outcome:
        case UpstreamBusy():
            return outcome.retry_after_seconds
        case UpstreamUnreachable():
            return 0.0
        case _:
            return None


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _alone(artifact: Artifact) -> AsyncGenerator[Artifact]:
    yield artifact


def _service(url: str) -> tuple[str, str]:
    """A service's address without the slash at its end, and its scheme; ValueError if it is none."""
    parsed = URL(url)
    if parsed.scheme not in {"http", "https"} or not parsed.host or parsed.query_string or parsed.fragment:
        raise ValueError(f"{url} is not the http(s) address of a service")
    return str(parsed).rstrip("/"), parsed.scheme


def _session(
    limits: Limits, read_seconds: float, *, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=limits.connections, ttl_dns_cache=30, dns_cache_max_size=256)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": _USER_AGENT, **(headers or {})},
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=limits.connect_seconds,
            sock_connect=limits.connect_seconds,
            sock_read=read_seconds,
        ),
    )
