"""A sandbox that runs, and a caller's hand on it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from gateway.catalog.contract import Catalog
from gateway.catalog.yaml_files import load_catalog
from gateway.sandbox.server import create_sandbox

PROJECT = Path(__file__).parents[3]
KEY = "SG_0123456789abcdef"
MODEL = "ltx-2-19b-t2v"
SMALL: dict[str, Any] = {"prompt": "a red fox", "width": 256, "height": 256, "num_frames": 9}
"""The cheapest video: $0.004, and a second of the real model's time."""

SMALL_MICROS = 4_000
PAGE = {"prompt": "a red fox", "width": 720, "height": 1280, "num_frames": 121, "fps": 24, "seed": 1234567890}
"""The size of the upstream page's own example: $0.416."""

FAST = 0.001
NEVER = 1e6
"""Time scales: at once, and not within a test."""


@functools.cache
def catalog() -> Catalog:
    return load_catalog(PROJECT / "config" / "models")


class TestClock:
    """The real time, and what a test adds to it."""

    __test__ = False

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead_seconds


class RunningSandbox:
    """An account's view of a sandbox on loopback."""

    def __init__(self, directory: Path, *, time_scale: float = FAST, public_url: str | None = None) -> None:
        self.directory = directory
        self.clock = TestClock()
        self.app = create_sandbox(
            catalog=catalog(),
            directory=directory,
            public_url=public_url,
            time_scale=time_scale,
            clock=self.clock,
        )
        self._runner = web.AppRunner(
            self.app, access_log=None, shutdown_timeout=0.2, handler_cancellation=False
        )
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self.session = aiohttp.ClientSession(headers={"x-api-key": KEY})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self.stop_serving()

    async def stop_serving(self) -> None:
        """Shut down in good order; may be called twice."""
        await self._runner.cleanup()

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON body."""
        url = path if path.startswith("http") else self.url + path
        async with self.session.request(method, url, **options) as response:
            return response.status, await response.json()

    async def submit(self, body: Mapping[str, Any] = SMALL, model: str = MODEL, **options: Any) -> str:
        """The id of a new v2 request."""
        status, answer = await self.ask("POST", f"/v2/{model}", json=body, **options)
        assert status == 200, answer
        return str(answer["request_id"])

    async def ended(self, request_id: str) -> tuple[int, Any]:
        """The status endpoint's answer once the request has ended."""
        async with asyncio.timeout(30):
            while True:
                code, body = await self.ask("GET", f"/v2/requests/{request_id}/status")
                if body.get("status") in {"COMPLETED", "FAILED"}:
                    return code, body
                await asyncio.sleep(0.005)

    async def result(self, body: Mapping[str, Any] = SMALL, model: str = MODEL) -> Any:
        """The result record of a new v2 request that succeeds."""
        request_id = await self.submit(body, model)
        code, status = await self.ended(request_id)
        assert code == 200, status
        code, record = await self.ask("GET", f"/v2/requests/{request_id}")
        assert code == 200, record
        return record

    async def set_faults(self, **faults: Any) -> None:
        code, answer = await self.ask("PUT", "/sandbox/faults", json=faults)
        assert code == 200, answer

    async def bill(self) -> Any:
        code, bill = await self.ask("GET", "/sandbox/bill")
        assert code == 200
        return bill

    async def bill_when(self, ready: Callable[[Any], bool]) -> Any:
        """The first bill whose totals are as wanted."""
        async with asyncio.timeout(30):
            while True:
                bill = await self.bill()
                if ready(bill["total"]):
                    return bill
                await asyncio.sleep(0.005)

    async def settled_bill(self) -> Any:
        """The bill once nothing runs any more."""
        return await self.bill_when(lambda total: not total["running"])

    async def credits(self, key: str = KEY) -> float:
        code, answer = await self.ask("GET", "/v1/get-user-credits", headers={"x-api-key": key})
        assert code == 200, answer
        return float(answer["credits"])

    async def open_account(self, name: str, key: str, usd: float, **more: Any) -> None:
        code, answer = await self.ask(
            "POST", "/sandbox/accounts", json={"name": name, "key": key, "credits_usd": usd, **more}
        )
        assert code == 200, answer
