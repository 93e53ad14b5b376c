"""POST /upload-asset and GET /assets/{file}."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.domain.generation import Json
from gateway.sandbox.bodies import json_object
from gateway.sandbox.callers import authenticate
from gateway.sandbox.parts import PARTS
from gateway.sandbox.refusals import Refused
from gateway.sandbox.uploads import NotAnAsset


async def upload(request: web.Request) -> web.Response:
    authenticate(request)
    parts = request.app[PARTS]
    data_urls = (await json_object(request)).get("data_urls")
    if not isinstance(data_urls, list) or not data_urls:
        raise Refused(400, "data_urls has to be a list of data URLs")
    file_urls: list[Json] = []
    for data_url in data_urls:
        try:
            name = await asyncio.to_thread(parts.uploads.keep, str(data_url))
        except NotAnAsset as error:
            raise Refused(400, "Every one of data_urls has to be data:<media type>;base64,<data>") from error
        file_urls.append(parts.url(request, f"/assets/{name}"))
    return web.json_response({"file_urls": file_urls, "message": "Files uploaded successfully"})


async def asset(request: web.Request) -> web.StreamResponse:
    path = await asyncio.to_thread(request.app[PARTS].uploads.path, request.match_info["file"])
    if path is None:
        raise Refused(404, "File not found")
    return web.FileResponse(path)
