"""Byte ranges (RFC 9110, section 14)."""

from __future__ import annotations

import re
from functools import lru_cache

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))")


@lru_cache(1024)
def wanted(header: str | None, size: int) -> tuple[int, int] | None:
    """Where a single range starts and how long it is, 0 for one that cannot be; None for all of it.

    RFC 9110, section 14.2: what is malformed, of another unit or of several ranges may be answered in full.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        count = min(int(suffix), size)
        return size - count, count
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    return start, max(0, end - start + 1)
