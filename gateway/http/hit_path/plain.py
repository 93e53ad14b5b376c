"""A plain request, read out of the bytes that came: what is not plain in every respect is not read here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.domain.tenant import Caller

MOST_HEAD_BYTES = 8_000
_MOST_HEADERS = 64

_HEADER = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)[ \t]*\r\n"
)
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
_GENERATION = re.compile(rb"/v1/([0-9A-Za-z][0-9A-Za-z._-]*)")
_JSON = frozenset(
    {b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"}
)
_FRAMING = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"trailer", b"te"})
_CONDITIONS = frozenset(
    {b"if-match", b"if-none-match", b"if-range", b"if-modified-since", b"if-unmodified-since"}
)


@dataclass(slots=True)
class Ask:
    """POST /v1/{model} for the media themselves."""

    body_bytes: int
    model: str
    key: str
    caller: Caller | None = None
    """Whose key it is, as of the keys' revision `known_by`."""

    known_by: int | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """GET of a target without conditions."""

    body_bytes: int
    target: str
    range: str | None


@dataclass(frozen=True, slots=True)
class Other:
    """Whatever else is a request by itself, of which only the length is known."""

    body_bytes: int


Head = Ask | Fetch | Other


def read_head(head: bytes) -> Head | None:
    """What a head, its empty line included, asks for; None where it is not certain where the request ends.

    Stricter than HTTP (RFC 9112) has to be: a head that is odd in any way, or names a header twice, is another's to
    judge, and there must be no head of which this and the ordinary parser have different opinions.
    """
    if len(head) > MOST_HEAD_BYTES:
        return None
    line, _, rest = head.partition(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or words[0] not in _METHODS or words[2] != b"HTTP/1.1":
        return None
    headers = _headers(rest)
    if headers is None or b"host" not in headers or not _FRAMING.isdisjoint(headers):
        return None
    if headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 9:
        return None
    return _asked(words[0], words[1], headers, int(length))


def _headers(lines: bytes) -> dict[bytes, bytes] | None:
    headers: dict[bytes, bytes] = {}
    at, end = 0, len(lines) - 2
    while at < end:
        header = _HEADER.match(lines, at)
        if header is None:
            return None
        name = header[1].lower()
        if name in headers or len(headers) == _MOST_HEADERS:
            return None
        headers[name] = header[2]
        at = header.end()
    return headers


def _asked(method: bytes, target: bytes, headers: dict[bytes, bytes], body_bytes: int) -> Head:
    if method == b"POST":
        model = _GENERATION.fullmatch(target)
        if (
            model
            and b"x-api-key" in headers
            and headers.get(b"content-type", b"").lower() in _JSON
            and b"content-encoding" not in headers
            and b"json" not in headers.get(b"accept", b"").lower()
        ):
            return Ask(body_bytes, model[1].decode(), headers[b"x-api-key"].decode())
    elif method == b"GET" and not body_bytes and _CONDITIONS.isdisjoint(headers) and target.isascii():
        wanted = headers.get(b"range")
        return Fetch(0, target.decode(), None if wanted is None else wanted.decode())
    return Other(body_bytes)
