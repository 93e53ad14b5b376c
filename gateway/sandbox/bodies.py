"""Bodies of requests, parsed."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.domain.generation import Json
from gateway.sandbox.refusals import Refused

_DEEPEST = 64


async def json_object(request: web.Request) -> dict[str, Json]:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise Refused(400, "Malformed JSON body") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body has to be a JSON object")
    if _deeper(body, _DEEPEST):
        # It goes into the bill, and the bill has to stay readable.
        raise Refused(400, f"The body is nested more than {_DEEPEST} deep")
    return body


def _deeper(value: Json, levels: int) -> bool:
    match value:
        case dict():
            return levels == 0 or any(_deeper(item, levels - 1) for item in value.values())
        case list():
            return levels == 0 or any(_deeper(item, levels - 1) for item in value)
        case _:
            return False
