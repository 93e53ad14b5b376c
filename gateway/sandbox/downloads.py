"""GET /generations/{file}: public, with Range, for seven days."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from gateway.sandbox.faults import Occurrence
from gateway.sandbox.job import Job
from gateway.sandbox.parts import PARTS, Parts
from gateway.sandbox.refusals import Refused

_PIECES = 20
"""In how many pieces a slow download comes."""


async def download(request: web.Request) -> web.StreamResponse:
    parts = request.app[PARTS]
    job, path = await _find(parts, request.match_info["file"])
    if gone := parts.faults.draw("file_gone", job.model):
        raise Refused(gone.status(), "Access denied" if gone.status() == 403 else "File not found")
    if request.method == "GET":
        slow, truncated, corrupted = (
            parts.faults.draw(f"download_{how}", job.model) for how in ("slow", "truncated", "corrupted")
        )
        if slow or truncated or corrupted:
            content = await asyncio.to_thread(path.read_bytes)
            return await _mangled(request, job, content, slow, truncated, corrupted)
    return web.FileResponse(path, headers={"content-type": job.media_type})


async def _find(parts: Parts, name: str) -> tuple[Job, Path]:
    request_id, _, extension = name.rpartition(".")
    job = await parts.jobs.find(request_id)
    if job is None or job.file is None or not job.ended or job.file.rpartition(".")[2] != extension:
        raise Refused(404, "File not found")
    path = parts.studio.path(job.file)
    if parts.clock() >= job.file_expires_at or not await asyncio.to_thread(path.exists):
        raise Refused(404, "File not found")
    return job, path


async def _mangled(
    request: web.Request,
    job: Job,
    content: bytes,
    slow: Occurrence | None,
    truncated: Occurrence | None,
    corrupted: Occurrence | None,
) -> web.StreamResponse:
    if corrupted and content:
        at = min(int(len(content) * corrupted.number("at")), len(content) - 1)
        content = content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
    wanted, headers = _wanted(request, content)
    response = web.StreamResponse(
        status=206 if "content-range" in headers else 200,
        headers={"content-type": job.media_type, "accept-ranges": "bytes", **headers},
    )
    response.content_length = len(wanted)
    await response.prepare(request)
    sent = wanted[: int(len(wanted) * truncated.number("fraction"))] if truncated else wanted
    for piece in _pieces(sent):
        await response.write(piece)
        if slow:
            await asyncio.sleep(slow.number("seconds") / _PIECES)
    if truncated and request.transport is not None:
        request.transport.close()
    return response


def _wanted(request: web.Request, content: bytes) -> tuple[bytes, dict[str, str]]:
    """What one range of `content` asks for, all of it if none does."""
    try:
        wanted = request.http_range
    except ValueError:
        return content, {}
    if wanted.start is None and wanted.stop is None:
        return content, {}
    first, last, _ = wanted.indices(len(content))
    if first >= last:
        raise web.HTTPRequestRangeNotSatisfiable
    return content[first:last], {"content-range": f"bytes {first}-{last - 1}/{len(content)}"}


def _pieces(content: bytes) -> Iterator[bytes]:
    size = max(1, -(-len(content) // _PIECES))
    for first in range(0, len(content), size):
        yield content[first : first + size]
