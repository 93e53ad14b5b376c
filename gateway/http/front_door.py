"""What every request passes through: a name, an answer whatever happens, a line in the log, a count."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.web_exceptions import HTTPException

from gateway.database.pace import Pace
from gateway.domain.clock import Clock
from gateway.domain.errors import (
    BodyTimeout,
    BodyTooLarge,
    BudgetExceeded,
    GatewayError,
    KeyForbidden,
    MediaTypeUnsupported,
    MethodNotAllowed,
    RateLimited,
    RouteUnknown,
)
from gateway.domain.identity import RequestId
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Role
from gateway.http.errors import error_response
from gateway.http.heads import REQUEST_ID
from gateway.http.request_ids import RequestIds
from gateway.telemetry.logs import log_for
from gateway.telemetry.metrics import Metrics
from gateway.tenants.contract import Keys

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LIMITS: Mapping[type[GatewayError], str] = {BudgetExceeded: "budget", RateLimited: "rate"}

_HUNG_UP = 499
"""Not a status that anybody is sent: the caller left before there was one."""


@dataclass(slots=True)
class Visit:
    """One request on its way through, and what is known of it so far: for the log and the metrics."""

    request: RequestId
    started_at: float
    tenant: str = ""
    model: str = ""
    """Only a name from the catalogue: whatever else a caller writes there must not become a label."""

    outcome: str = ""
    """`hit`, `miss`, `collapsed` or `bypass`; `accepted` for v2, whose outcome comes later; else `refused`, `failed`
    or `abandoned` (the caller hung up)."""

    fingerprint: str = ""
    cost: Money | None = None
    waited_seconds: float = 0.0
    """How much of the time was the upstream's."""

    code: str = ""
    caller: Caller | None = None


VISIT = web.RequestKey("visit", Visit)


class FrontDoor:
    """The middleware around every route, and the two things that routes ask of it: who calls, and with what."""

    def __init__(
        self,
        *,
        keys: Keys,
        metrics: Metrics,
        request_ids: RequestIds,
        pace: Pace,
        clock: Clock,
        max_body_bytes: int,
        body_timeout_seconds: float,
        on_refused: Callable[[BudgetExceeded], None] = lambda _: None,
    ) -> None:
        """`on_refused` is told of each request for which a budget had no room."""
        self._on_refused = on_refused
        self.request_ids = request_ids
        self._keys = keys
        self._pace = pace
        self._clock = clock
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._body_timeout_seconds = body_timeout_seconds
        self._log = log_for("http")

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        visit = Visit(self.request_ids.next(), loop.time())
        request[VISIT] = visit
        status = _HUNG_UP
        try:
            response = await self._answer(request, visit, handler)
            status = response.status
        finally:
            self._account(request, visit, status, loop.time() - visit.started_at)
        return response

    async def _answer(self, request: web.Request, visit: Visit, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except GatewayError as error:
            visit.code = error.code
            if reason := _LIMITS.get(type(error)):
                self._metrics.refusals.labels(visit.tenant, reason).inc()
            if isinstance(error, BudgetExceeded):
                self._on_refused(error)
            response = error_response(error, visit.request)
        except HTTPException as error:
            translated = _translated(error, request)
            visit.code = translated.code
            response = error_response(translated, visit.request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets an answer and the log the reason
            if isinstance(error, ConnectionError) and _has_hung_up(request):
                # Nobody is there to read it, and nothing is wrong with us.
                return web.Response(status=_HUNG_UP)
            self._log.exception("unforeseen", request_id=visit.request, path=request.path)
            visit.code = "internal_error"
            unforeseen = GatewayError(
                "Internal error in the gateway. Nothing can be said of the cause here; its log has it under this "
                "request's id. An identical request is safe to send: it is never billed twice."
            )
            response = error_response(unforeseen, visit.request)
        return response

    def _account(self, request: web.Request, visit: Visit, status: int, seconds: float) -> None:
        if not visit.outcome:
            visit.outcome = _outcome_of(status)
        if visit.model:
            self._metrics.requests.labels(visit.tenant, visit.model, visit.outcome).inc()
            self._metrics.request_seconds.labels(visit.model, visit.outcome).observe(seconds)
            overhead_seconds = max(0.0, seconds - visit.waited_seconds)
            self._metrics.overhead_seconds.labels(visit.outcome).observe(overhead_seconds)
        known = {
            "tenant": visit.tenant,
            "model": visit.model,
            "outcome": visit.outcome,
            "fingerprint": visit.fingerprint,
            "code": visit.code,
        }
        if visit.cost is not None:
            known["cost_usd"] = str(visit.cost.usd)
        self._log.info(
            "request",
            request_id=visit.request,
            method=request.method,
            route=_route(request),
            status=status,
            seconds=round(seconds, 6),
            upstream_seconds=round(visit.waited_seconds, 6),
            **{name: value for name, value in known.items() if value},
        )

    def caller(self, request: web.Request) -> Caller:
        """Who asks. Raises Unauthenticated."""
        caller = self._keys.authenticate(request.headers.get("x-api-key"))
        visit = request[VISIT]
        visit.tenant, visit.caller = caller.tenant.name, caller
        return caller

    async def complete_head(self, request: web.Request, response: web.StreamResponse) -> None:
        """A signal before any answer is sent: it says which request it is about, and how its key stands with its rate."""
        if (visit := request.get(VISIT)) is None:
            return
        # What is about an earlier request says so already.
        response.headers.setdefault(REQUEST_ID, visit.request)
        if visit.caller is not None:
            self._tell_rate(visit.caller, response)

    def _tell_rate(self, caller: Caller, response: web.StreamResponse) -> None:
        """In the words of draft-ietf-httpapi-ratelimit-headers."""
        if (rate := caller.terms.rate) is None:
            return
        now = self._clock()
        stands = self._pace.look(
            caller.place, now, requests=rate.requests, seconds=rate.seconds, burst=rate.burst
        )
        response.headers["RateLimit-Policy"] = f'"key";q={rate.requests};w={rate.seconds}'
        response.headers["RateLimit"] = f'"key";r={stands.left};t={math.ceil(stands.full_in_seconds)}'

    def buyer(self, request: web.Request) -> Caller:
        """Who asks for a generation, which counts. Raises Unauthenticated, KeyForbidden and RateLimited."""
        caller = self.caller(request)
        role, rate = caller.terms.role, caller.terms.rate
        if role is not Role.CALLER:
            raise KeyForbidden(
                f"This key may look and not ask for generations (its role is {role.value}): use a key of the role "
                f"{Role.CALLER.value}."
            )
        if rate is not None:
            taken = self._pace.take(
                caller.place, self._clock(), requests=rate.requests, seconds=rate.seconds, burst=rate.burst
            )
            if taken.wait_seconds:
                raise RateLimited(
                    f"This key may ask for {rate.requests} generations in {rate.seconds} seconds, and {rate.burst} at "
                    f"once; nothing was bought. It may ask again in {math.ceil(taken.wait_seconds)} seconds.",
                    wait_seconds=taken.wait_seconds,
                )
        return caller

    def admin(self, request: web.Request) -> Caller:
        """Who administers tenants and keys. Raises Unauthenticated and KeyForbidden."""
        caller = self.caller(request)
        if caller.terms.role is not Role.ADMIN:
            raise KeyForbidden(
                f"This key may not administer tenants and keys (its role is {caller.terms.role.value}): use a key of the "
                f"role {Role.ADMIN.value}."
            )
        return caller

    async def body(self, request: web.Request) -> bytes:
        """The whole body, which has to be JSON by its Content-Type.

        Raises MediaTypeUnsupported, BodyTooLarge and BodyTimeout.
        """
        if request.content_type != "application/json":
            given = request.headers.get("Content-Type", "none")
            raise MediaTypeUnsupported(
                f"Invalid content type: {given[:100]}. Send the parameters as JSON, with the header "
                "`Content-Type: application/json`."
            )
        if (request.content_length or 0) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
        except TimeoutError:
            raise BodyTimeout(
                f"The body did not arrive within {self._body_timeout_seconds:g} seconds; nothing was bought."
            ) from None
        return bytes(body)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._max_body_bytes} bytes: send media as URLs instead of base64."
        )


def _translated(error: HTTPException, request: web.Request) -> GatewayError:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = sorted(error.allowed_methods)
            return MethodNotAllowed(
                f"{request.method} is not a method of {request.path}; allowed: {', '.join(allowed)}.",
                allowed=allowed,
            )
        case web.HTTPNotFound():
            return RouteUnknown(
                f"Nothing is at {request.path[:200]}. Generations are made with POST /v1/MODEL or POST /v2/MODEL; "
                "GET /v1/models lists the models."
            )
        case _:
            return GatewayError(error.reason)


def _has_hung_up(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _outcome_of(status: int) -> str:
    if status == _HUNG_UP:
        return "abandoned"
    if status >= 500:
        return "failed"
    return "refused" if status >= 400 else ""


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""
