"""GatewayError -> response: the one table of statuses, and the upstream's own envelope."""

from __future__ import annotations

import math
from collections.abc import Mapping

import orjson
from aiohttp import web

from gateway.domain import errors
from gateway.domain.errors import GatewayError, MethodNotAllowed
from gateway.domain.generation import Json
from gateway.domain.identity import RequestId
from gateway.domain.scrubbing import scrub
from gateway.http.heads import REQUEST_ID

STATUSES: Mapping[type[GatewayError], int] = {
    errors.MalformedRequest: 400,
    errors.InvalidParameters: 400,
    errors.DeclarationInvalid: 400,
    errors.QueryInvalid: 400,
    errors.UpstreamRefused: 400,
    errors.Unauthenticated: 401,
    errors.KeyEnded: 401,
    errors.KeyForbidden: 403,
    errors.ModelForbidden: 403,
    errors.PriceUnknown: 403,
    errors.LinkInvalid: 403,
    errors.ModelUnknown: 404,
    errors.RequestUnknown: 404,
    errors.BlobUnknown: 404,
    errors.RouteUnknown: 404,
    errors.TenantUnknown: 404,
    errors.KeyUnknown: 404,
    errors.BudgetUnknown: 404,
    errors.MethodNotAllowed: 405,
    errors.BudgetExceeded: 406,
    errors.BodyTimeout: 408,
    errors.BodyTooLarge: 413,
    errors.MediaTypeUnsupported: 415,
    errors.RateLimited: 429,
    errors.UpstreamBusy: 429,
    errors.GenerationFailed: 502,
    errors.UpstreamUnreachable: 502,
    errors.UpstreamUnusable: 502,
    errors.ResultUnavailable: 502,
    errors.ResultBroken: 502,
    errors.ResultGone: 502,
    errors.ShuttingDown: 503,
    errors.Overloaded: 503,
    errors.StorageUnavailable: 503,
    errors.OutcomeUnknown: 504,
    errors.StillRunning: 504,
}
"""Every kind of error that is raised, with its status; a test sees to it that none is missing."""


def status_of(error: GatewayError) -> int:
    """The status for an error: its own, or that of the nearest kind above it; 500 for what nobody foresaw."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            return STATUSES[kind]
    return 500


def envelope(message: str, code: str, request: RequestId, details: Mapping[str, Json]) -> dict[str, Json]:
    """The upstream's `{"error": ...}`, and beside it what machines want to know."""
    return {"error": scrub(message), "code": code, "request_id": request, **details}


def error_response(error: GatewayError, request: RequestId) -> web.Response:
    """The answer to a request that ended in `error`."""
    headers: dict[str, str] = {REQUEST_ID: request}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    response = json_response(
        envelope(str(error), error.code, request, error.details), status=status_of(error), headers=headers
    )
    if isinstance(error, errors.BodyTimeout | errors.BodyTooLarge):
        # The rest of the body would be in the way of the next request.
        response.force_close()
    return response


def json_response(body: Json, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`body` as JSON."""
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )
