"""The upstream's way to say no: an envelope with one sentence, and HTML where it is said so."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.domain.errors import StorageUnavailable
from gateway.domain.generation import Json

HEADERS = {"server": "generation-gateway-sandbox"}
"""Every answer says where it comes from."""

BAD_GATEWAY = {
    502: "Bad Gateway: Service temporarily unavailable",
    503: "Service temporarily unavailable",
    504: "Timeout: Request timed out",
    500: "Internal server error",
}


class Refused(Exception):
    """Ends a request with a status and an envelope."""

    def __init__(
        self,
        status: int,
        error: str,
        *,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Json] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.body: dict[str, Json] = {"error": error, **(more or {})}
        self.headers = headers


def broken(status: int) -> NoReturn:
    """What a hop in between says."""
    raise Refused(status, BAD_GATEWAY[status])


def rate_limited(resets_at: float) -> NoReturn:
    raise Refused(
        429,
        "rate_limit_exceeded",
        headers={"x-rate-limit-reset-at-utc": utc(resets_at)},
        more={"error_description": "Rate limit exceeded. Please retry later.", "status_code": 429},
    )


def utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@web.middleware
async def refusing(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response(refused.body, status=refused.status, headers=refused.headers)
    except StorageUnavailable as error:
        return web.json_response({"error": str(error)}, status=500)
    except web.HTTPMethodNotAllowed as error:
        # The one answer of the upstream that is not JSON.
        return web.Response(
            status=405,
            headers={"allow": error.headers["Allow"]},
            content_type="text/html",
            text="<html><head><title>405 Method Not Allowed</title></head>"
            "<body><h1>405 Method Not Allowed</h1></body></html>",
        )
    except web.HTTPNotFound:
        # An address that is no model's is a bad request there, not a missing page.
        return web.json_response({"error": "Bad Request"}, status=400)
    except web.HTTPException as error:
        return web.json_response({"error": HTTPStatus(error.status).phrase}, status=error.status)


async def sign(_request: web.Request, response: web.StreamResponse) -> None:
    """An `on_response_prepare` signal."""
    response.headers.update(HEADERS)
