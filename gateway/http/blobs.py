"""Blobs over HTTP: immutable, conditional, in ranges (RFC 9110), and straight from the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Self

from aiohttp import web

from gateway.blobs.contract import BlobStore
from gateway.domain.errors import BlobUnknown
from gateway.domain.generation import Blob
from gateway.domain.identity import Digest
from gateway.http import heads, ranges
from gateway.http.front_door import VISIT
from gateway.http.links import Links


class Blobs:
    """GET and HEAD /blobs/{name}: for whoever has the link."""

    def __init__(
        self, blobs: BlobStore, links: Links, *, on_fetch: Callable[[str, Blob, float], None]
    ) -> None:
        """`on_fetch` is told of each answer: for which target, with which blob, and until when the link is good."""
        self._blobs = blobs
        self._links = links
        self._on_fetch = on_fetch

    async def get(self, request: web.Request) -> web.StreamResponse:
        digest, media_type = self._links.check(
            request.match_info["name"],
            request.query.get("expires", ""),
            request.query.get("signature", ""),
        )
        opened = await OpenedBlob.of(self._blobs, digest)
        if opened is None:
            raise BlobUnknown(
                "This media is no longer here: send the request that made it again, and it will be fetched or made."
            )
        response = await opened.answer(request, heads.of_link(media_type, request=request[VISIT].request))
        if response.status in (200, 206):
            blob = Blob(digest, opened.size_bytes, media_type)
            self._on_fetch(request.raw_path, blob, float(request.query["expires"]))
        return response


@dataclass(frozen=True, slots=True)
class OpenedBlob:
    """A blob that is about to be sent."""

    digest: Digest
    size_bytes: int
    handle: IO[bytes]

    @classmethod
    async def of(cls, blobs: BlobStore, digest: Digest) -> Self | None:
        """From here on it can be read whatever happens to it in the store; None if it is not there."""
        opened = await blobs.open(digest)
        return cls(digest, opened.size_bytes, opened.handle) if opened else None

    async def answer(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        """Send what `request` asks of the blob: all of it, a range of it, or that it has not changed."""
        try:
            return await self._answer(request, headers)
        finally:
            self.handle.close()

    async def _answer(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        size = self.size_bytes
        etag = heads.etag(self.digest)
        about = {**headers, **heads.of_blob(self.digest)}
        safe = request.method in ("GET", "HEAD")
        if safe and not _matches(request.headers.get("If-Match"), {etag}, when_absent=True):
            return web.Response(status=412, headers=about)
        # If-None-Match compares weakly, and a cache in between may have weakened our tag.
        if safe and _matches(request.headers.get("If-None-Match"), {etag, f"W/{etag}"}, when_absent=False):
            return web.Response(status=304, headers=about)
        start, count, status = 0, size, 200
        if request.method == "GET" and request.headers.get("If-Range", etag) == etag:
            match ranges.wanted(request.headers.get("Range"), size):
                case None:
                    pass
                case (_, 0):
                    return web.Response(status=416, headers={**about, "Content-Range": f"bytes */{size}"})
                case (start, count):
                    status = 206
                    about["Content-Range"] = heads.content_range(
                        str(start), str(start + count - 1), str(size)
                    )
        response = web.StreamResponse(status=status, headers=about)
        response.content_length = count
        await response.prepare(request)
        if request.method != "HEAD":
            await self._send(request, start, count)
        await response.write_eof()
        return response

    async def _send(self, request: web.Request, start: int, count: int) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the caller has hung up")
        try:
            sent = await asyncio.get_running_loop().sendfile(transport, self.handle, start, count)
        except OSError:
            # The socket has told us, and not yet its transport; a disk that fails in the middle ends here, too.
            transport.abort()
            raise
        if sent != count:
            # The length was promised: a body that is short must not look like a whole one.
            transport.abort()


def _matches(condition: str | None, etags: set[str], *, when_absent: bool) -> bool:
    if condition is None:
        return when_absent
    return not {"*", *etags}.isdisjoint(tag.strip() for tag in condition.split(","))
