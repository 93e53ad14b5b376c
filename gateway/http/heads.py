"""The headers of an answer that carries media, in one place: every way to a hit writes the same ones."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from gateway.domain.generation import CacheStatus, Generation
from gateway.domain.identity import Digest
from gateway.domain.money import Money

REQUEST_ID = "x-request-id"
REMAINING = "x-remaining-credits"
SERVER = "generation-gateway"
"""Which versions of what we run is nobody's business."""

_STATUS_WORDS: Mapping[CacheStatus, str] = {
    CacheStatus.HIT: "hit",
    CacheStatus.MISS: "fwd=miss; stored",
    CacheStatus.COLLAPSED: "fwd=miss; collapsed",
    CacheStatus.BYPASS: "fwd=bypass; stored",
}


def of_generation(
    generation: Generation, status: CacheStatus, *, request: str, charged: Money, age: str, left: str | None
) -> dict[str, str]:
    """What is said of a generation: of which request, how it was had, what it cost, and how old it is.

    `age` is in seconds; `left` is what the tenant can still spend, None where that has no limit.
    """
    headers = {
        "Content-Type": generation.blob.media_type,
        REQUEST_ID: request,
        "x-cost": usd(charged),
        "Cache-Status": f'gateway; {_STATUS_WORDS[status]}; key="{generation.fingerprint}"',
        "Age": age,
    }
    if generation.seconds is not None:
        headers["x-generation-time"] = f"{generation.seconds:g}"
    if generation.seed is not None:
        headers["x-seed-value"] = str(generation.seed)
    if left is not None:
        headers[REMAINING] = left
    return headers


def of_link(media_type: str, *, request: str) -> dict[str, str]:
    """What is said of a blob that is fetched by its link: by which request, and that it may be kept."""
    return {
        "Content-Type": media_type,
        REQUEST_ID: request,
        "Cache-Control": f"private, max-age={_YEAR_SECONDS}, immutable",
    }


def of_blob(digest: Digest) -> dict[str, str]:
    """What is said of a blob whenever it is sent (RFC 9110, 9530)."""
    return {
        "ETag": etag(digest),
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
        "X-Content-Type-Options": "nosniff",
    }


def etag(digest: Digest) -> str:
    """A blob's entity tag: its bytes never change."""
    return f'"{digest}"'


def content_range(start: str, end: str, size: str) -> str:
    """From which byte to which, both included, of how many."""
    return f"bytes {start}-{end}/{size}"


def usd(amount: Money) -> str:
    """Dollars, with no more digits than it takes."""
    return f"{amount.usd.normalize():f}" if amount else "0"


_YEAR_SECONDS = 31_536_000
