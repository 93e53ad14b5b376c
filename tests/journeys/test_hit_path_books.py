"""What the hit path serves is counted like everything else: once, everywhere, and not lost at the end."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.journeys.conftest import OpenHouse
from tests.journeys.program import serving
from tests.journeys.running import MODEL, PRICE_MICROS, PROJECT, House, Metrics
from tests.journeys.wire import LARGE, PATIENCE_SECONDS, SMALL, Wire, asking, fetching, lasting, wired

TENANTS = {"demo": {"budgets": [{"limit_usd": 1, "per": "month"}]}, "free": {"budgets": []}}
LARGE_PRICE_MICROS = 38_201


class Clerk:
    """Counts what it is answered."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.hits: Counter[str] = Counter()
        self.fetches = self.bytes = 0

    async def ask(self, tenant: str, request: bytes, times: int) -> None:
        for _ in range(times):
            reply = await self._wire.ask(request)
            assert reply.status in {200, 206}, reply
            if "cache-status" not in reply.headers:
                self.fetches += 1
                self.bytes += len(reply.body)
            elif reply.cache == "hit":
                self.hits[tenant] += 1


async def test_every_hit_is_in_the_metrics_the_account_and_the_log_once(open_house: OpenHouse) -> None:
    house = await open_house(tenants=TENANTS)
    house.insists = False
    free = await house.new_key("free")
    submitted = await house.submit(data=LARGE, headers={"Content-Type": "application/json"})
    link = urlsplit((await house.result(submitted)).json["output"])
    fetch = fetching(f"{link.path}?{link.query}", "Range: bytes=7-106")
    async with wired(house.url) as wire:
        clerk = Clerk(wire)
        for round_number in (1, 2, 3):
            await clerk.ask("demo", asking(SMALL, key=house.key), 20)
            await clerk.ask("free", asking(SMALL, key=free), 10)
            await clerk.ask("demo large", asking(LARGE, key=house.key), 15)
            await clerk.ask("", fetch, 12)
            await wire.ask(asking(b"{}", key=house.key))
            await _agree(house, clerk, free)
            assert clerk.hits["free"] == 10 * round_number
    by_heart = await house.answered_by_heart()
    assert by_heart > 100 if house.hit_path else by_heart == 0

    await house.restart()
    usage = await house.usage()
    hits = clerk.hits["demo"] + clerk.hits["demo large"]
    assert (usage["hits"], usage["saved_micros"]) == (hits, _saved_micros(clerk, "demo"))
    assert (await house.metrics()).value("gateway_requests_total") == 0


def _saved_micros(clerk: Clerk, tenant: str) -> int:
    return clerk.hits[tenant] * PRICE_MICROS + clerk.hits[f"{tenant} large"] * LARGE_PRICE_MICROS


async def _agree(house: House, clerk: Clerk, free: str) -> None:
    usage, frees = await house.usage(), await house.usage(key=free)
    metrics = await house.metrics()
    hits = clerk.hits["demo"] + clerk.hits["demo large"]
    assert (usage["hits"], usage["saved_micros"]) == (hits, _saved_micros(clerk, "demo"))
    assert (frees["hits"], frees["saved_micros"]) == (clerk.hits["free"], _saved_micros(clerk, "free"))

    assert metrics.value("gateway_requests_total", tenant="demo", outcome="hit") == hits
    assert metrics.value("gateway_requests_total", tenant="free", outcome="hit") == clerk.hits["free"]
    assert (
        metrics.value("gateway_saved_usd_total", tenant="demo", by="hit")
        == _saved_micros(clerk, "demo") / 1e6
    )
    every = clerk.hits.total()
    for name, labels in (
        ("gateway_request_seconds", {"model": MODEL, "outcome": "hit"}),
        ("gateway_overhead_seconds", {"outcome": "hit"}),
    ):
        assert metrics.value(f"{name}_count", **labels) == every
        assert metrics.value(f"{name}_bucket", **labels, le="+Inf") == every
        bounds = sorted({float(each["le"]) for each in metrics.of(f"{name}_bucket")})
        counts = [metrics.value(f"{name}_bucket", **labels, le=_written(bound)) for bound in bounds]
        assert counts == sorted(counts)
        assert metrics.value(f"{name}_sum", **labels) > 0

    lines = house.log_lines
    alone = [line for line in lines if line["event"] == "request" and line.get("outcome") == "hit"]
    together = [line for line in lines if line["event"] == "hits"]
    assert len(alone) + sum(line["count"] for line in together) == every
    fetched = [line for line in lines if line["event"] == "fetches"]
    fetched_alone = [line for line in lines if line.get("route") == "/blobs/{name}"]
    assert len(fetched_alone) + sum(line["count"] for line in fetched) == clerk.fetches
    assert len(fetched_alone) * 100 + sum(line["bytes"] for line in fetched) == clerk.bytes


def _written(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)


async def test_what_was_served_right_before_the_end_is_written_down(house: House) -> None:
    house.insists = False
    request = asking(SMALL, key=house.key)
    async with wired(house.url) as wire:
        clerk = Clerk(wire)
        await clerk.ask("demo", request, 50)
        await house.restart()
    assert (await house.usage())["hits"] == clerk.hits["demo"] == 49


@pytest.mark.parametrize("hit_path", [True, False], ids=["hit path on", "hit path off"])
async def test_with_several_workers_every_hit_counts_once_too_and_survives_a_sigterm(
    tmp_path: Path, hit_path: bool
) -> None:
    settings: dict[str, Any] = {
        "listen.hit_path": hit_path,
        "storage.directory": str(tmp_path / "var"),
        "listen.port": 0,
        "operations.port": 0,
        "sandbox.port": 0,
        "sandbox.time_scale": 0,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    config = PROJECT / "config" / "gateway.yaml"
    async with (
        serving("--config", config, "--workers", "2", *words, log=tmp_path / "log") as gateway,
        aiohttp.ClientSession() as session,
    ):
        request = asking(SMALL, key=gateway.key)
        async with AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(wired(gateway.url)) for _ in range(12)]
            clerks = [Clerk(wire) for wire in wires]
            await clerks[0].ask("demo", request, 1)
            said = {lasting((await wire.ask(request)).body) for wire in wires}
            assert len(said) == 1
            await asyncio.gather(*(clerk.ask("demo", request, 50) for clerk in clerks))
            hits = 12 + sum(clerk.hits["demo"] for clerk in clerks)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await _counted(session, gateway.operations_url) < hits:
                    await asyncio.sleep(0.05)
            assert await _counted(session, gateway.operations_url) == hits == 612
            await asyncio.gather(*(clerk.ask("demo", request, 10) for clerk in clerks))
            gateway.terminate()
            with suppress(ConnectionError):
                for wire in wires:
                    await wire.rest()
        assert await gateway.ended() == 0
    with closing(sqlite3.connect(tmp_path / "var" / "ledger.sqlite3")) as books:
        ((written, saved),) = books.execute("SELECT SUM(hits), SUM(saved_by_hits_micros) FROM tallies")
    assert (written, saved) == (732, 732 * PRICE_MICROS)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    alone = [line for line in lines if line["event"] == "request" and line.get("outcome") == "hit"]
    together = [line["count"] for line in lines if line["event"] == "hits"]
    assert len(alone) + sum(together) == 732
    assert sum(together) > 300 if hit_path else not together


async def _counted(session: aiohttp.ClientSession, operations_url: str) -> float:
    async with session.get(f"{operations_url}/metrics") as answer:
        metrics = Metrics(await answer.text())
    counted = metrics.value("gateway_requests_total", outcome="hit")
    for name in ("gateway_request_seconds", "gateway_overhead_seconds"):
        # One worker may be counting while the other tells.
        assert metrics.value(f"{name}_count", outcome="hit") >= 0
    return counted
