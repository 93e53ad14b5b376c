"""Metrics and health, on a listener of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.domain.errors import GatewayError
from gateway.http.errors import json_response
from gateway.telemetry.metrics import Metrics, Reading

_CHECKS_FAILED = 503


class Operations:
    """GET /metrics, /healthz and /readyz.

    `read` asks the books and the stores for what a scrape shows; `obstacle` says why no new work can be taken, or
    None when it can.
    """

    def __init__(
        self,
        *,
        metrics: Metrics,
        read: Callable[[], Awaitable[Reading]],
        obstacle: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._metrics = metrics
        self._read = read
        self._obstacle = obstacle

    async def get_metrics(self, _: web.Request) -> web.Response:
        """The exposition; a 503 when the books cannot be read, so that a gap shows as a gap."""
        try:
            reading = await self._read()
        except GatewayError as error:
            return web.Response(status=_CHECKS_FAILED, text=f"# {error}\n")
        # Beside the loop: with a thousand tenants it is some thousand lines.
        text = await asyncio.to_thread(self._metrics.exposition, reading)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def get_health(self, _: web.Request) -> web.Response:
        """The process lives and its loop turns."""
        return json_response({"status": "ok"})

    async def get_readiness(self, _: web.Request) -> web.Response:
        """New work can be taken: the ledger is writable, and nobody has asked for a shutdown."""
        obstacle = await self._obstacle()
        if obstacle is not None:
            return json_response({"status": "unready", "reason": obstacle}, status=_CHECKS_FAILED)
        return json_response({"status": "ready"})
