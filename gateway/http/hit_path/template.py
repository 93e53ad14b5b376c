"""Heads that are written down once, but for what differs from answer to answer."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.http.heads import SERVER

BLANK = "\0"
"""Stands in a header's value for what is filled in later, in the order of the headers; the date is a blank, too."""


def template(status: str, headers: Mapping[str, str], length: str) -> bytes:
    """A head for bytes formatting (`template % (value, …)`), with the headers and in the order that aiohttp writes."""
    lines = [
        f"HTTP/1.1 {status}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {length}",
        f"Date: {BLANK}",
        f"Server: {SERVER}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode().replace(b"%", b"%%").replace(BLANK.encode(), b"%b")
