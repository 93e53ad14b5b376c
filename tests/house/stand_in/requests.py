"""What the upstream page's snippet uses of `requests`, for a test environment that has httpx and not it."""

from __future__ import annotations

from collections.abc import Mapping

import httpx


def post(url: str, *, headers: Mapping[str, str], json: object) -> httpx.Response:
    """The same call, without the time limit that httpx has and requests has not."""
    return httpx.post(url, headers=dict(headers), json=json, timeout=None, trust_env=False)  # noqa: S113 -- as requests
