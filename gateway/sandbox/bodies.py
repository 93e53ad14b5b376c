"""Bodies of requests, parsed."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.domain.generation import Json
from gateway.sandbox.refusals import Refused


async def json_object(request: web.Request) -> dict[str, Json]:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise Refused(400, "Malformed JSON body") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body has to be a JSON object")
    return body
