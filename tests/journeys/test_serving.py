"""`gateway serve` as a process: what it says, what can be pasted, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from tests.journeys.program import MODULE, SCRIPT, Serving, has_curl, is_running, run, serving
from tests.journeys.running import MODEL, PROJECT, Metrics, video

CONFIG = PROJECT / "config" / "gateway.yaml"


def _settings(directory: Path, **more: object) -> list[str]:
    settings = {
        "storage.directory": str(directory / "var"),
        "listen.port": 0,
        "operations.port": 0,
        "sandbox.port": 0,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def _gone(pids: list[int]) -> None:
    async with asyncio.timeout(30):
        while any(is_running(pid) for pid in pids):
            await asyncio.sleep(0.02)


async def _make(
    session: aiohttp.ClientSession, gateway: Serving, **changes: object
) -> tuple[int, str, bytes]:
    async with session.post(
        f"{gateway.url}/v1/{MODEL}", json=video(**changes), headers={"x-api-key": gateway.key}
    ) as answer:
        return answer.status, answer.headers.get("Cache-Status", ""), await answer.read()


async def _in_flight(session: aiohttp.ClientSession, gateway: Serving, *, generations: int = 1) -> None:
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"{gateway.operations_url}/metrics") as answer:
                if Metrics(await answer.text()).value("gateway_in_flight_generations") == generations:
                    return
            await asyncio.sleep(0.02)


@pytest.mark.skipif(not has_curl(), reason="curl is not there to paste into")
async def test_the_line_that_it_prints_works_when_pasted_and_the_second_time_is_a_hit(tmp_path: Path) -> None:
    settings = _settings(tmp_path, sandbox__time_scale=0)
    async with serving("--config", CONFIG, *settings, log=tmp_path / "log", program=SCRIPT) as gateway:
        heads = []
        for _ in range(2):
            pasted = await asyncio.create_subprocess_exec(
                "bash", "-c", gateway.curl, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await pasted.communicate()
            heads.append(out.decode())
        children = gateway.children
        gateway.terminate()
        code = await gateway.ended()
        await _gone(children)

    assert code == 0, gateway.log.read_text()
    assert "Cache-Status: gateway; fwd=miss; stored; key=" in heads[0]
    assert "Cache-Status: gateway; hit; key=" in heads[1]
    assert "x-cost: 0\r" in heads[1]
    assert b"ftyp" in (tmp_path / "lighthouse.mp4").read_bytes()[:16]
    assert "the sandbox" in gateway.greeting
    assert len(children) == 1
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["outcome"] for line in lines if line["event"] == "request"] == ["miss", "hit"]
    assert gateway.key not in (tmp_path / "log").read_text()


async def test_what_is_under_way_at_a_sigterm_lands_and_then_everything_ends(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    # One of these takes half a second, the other two.
    settings = _settings(tmp_path, sandbox__time_scale=1)
    async with serving("--config", CONFIG, *settings, log=tmp_path / "log", program=MODULE) as gateway:
        async with session.post(
            f"{gateway.url}/v2/{MODEL}", json=video(num_frames=33), headers={"x-api-key": gateway.key}
        ) as submitted:
            assert submitted.status == 200
        waiting = asyncio.create_task(_make(session, gateway))
        await _in_flight(session, gateway, generations=2)
        children = gateway.children
        gateway.terminate()
        status, cache, body = await waiting
        code = await gateway.ended()
        await _gone(children)
    with closing(sqlite3.connect(tmp_path / "var" / "ledger.sqlite3")) as books:
        (unfinished,) = books.execute("SELECT COUNT(*) FROM requests WHERE outcome IS NULL").fetchone()

    assert (status, cache.partition("; key")[0]) == (200, "gateway; fwd=miss; stored")
    assert b"ftyp" in body[:16]
    assert (code, unfinished) == (0, 0)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert '"level":"error"' not in log


async def test_when_it_is_killed_the_sandbox_ends_with_it_and_nothing_is_bought_twice_afterwards(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    settings = _settings(tmp_path, sandbox__time_scale=1)
    async with serving("--config", CONFIG, *settings, log=tmp_path / "log") as gateway:
        waiting = asyncio.create_task(_make(session, gateway))
        await _in_flight(session, gateway)
        # Bought, and its ticket written down: a poll was answered.
        async with asyncio.timeout(30):
            while True:
                async with session.get(f"{gateway.operations_url}/metrics") as answer:
                    if Metrics(await answer.text()).value(
                        "gateway_upstream_requests_total", operation="poll"
                    ):
                        break
                await asyncio.sleep(0.02)
        children = gateway.children
        gateway.process.send_signal(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await waiting
        await gateway.ended()
        await _gone(children)

    settings = _settings(tmp_path, sandbox__time_scale=1, listen__port=0)
    async with serving("--config", CONFIG, *settings, log=tmp_path / "log2") as gateway:
        status, cache, _ = await _make(session, gateway)
        async with session.get(f"{gateway.operations_url}/metrics") as answer:
            metrics = Metrics(await answer.text())
        gateway.terminate()
        assert await gateway.ended() == 0

    assert status == 200
    assert "collapsed" in cache or "hit" in cache
    assert metrics.value("gateway_spend_usd_total") == 0.004
    assert metrics.value("gateway_upstream_requests_total", operation="submit") == 0


async def test_a_port_that_is_taken_is_told_with_what_to_do(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    async with serving("--config", CONFIG, *settings, log=tmp_path / "log") as gateway:
        port = gateway.url.rpartition(":")[2]
        second = await run("serve", "--config", CONFIG, *_settings(tmp_path / "other", listen__port=port))

    assert second.code == 1
    assert f"127.0.0.1:{port}" in second.err
    assert "--set" in second.err
    assert "Traceback" not in second.err


def _port_that_was_just_served_alone() -> int:
    """One at which the side that served closed a connection first, which the system remembers for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as serving_it:
        port: int = serving_it.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            serving_it.accept()[0].close()
            assert caller.recv(1) == b""
    return port


async def test_several_workers_follow_on_a_gateway_that_served_the_port_alone(tmp_path: Path) -> None:
    port = _port_that_was_just_served_alone()
    settings = ["--config", str(CONFIG), *_settings(tmp_path, listen__port=port), "--workers", "2"]

    async with serving(*settings, log=tmp_path / "log") as gateway:
        taken = await run("serve", "--config", CONFIG, *_settings(tmp_path / "other", listen__port=port))

        assert gateway.url.endswith(f":{port}")
        assert (taken.code, f"Cannot listen on 127.0.0.1:{port}" in taken.err) == (1, True)


async def test_without_the_upstreams_key_it_does_not_start_and_says_where_it_belongs(tmp_path: Path) -> None:
    settings = _settings(tmp_path, upstream__kind="segmind")
    ended = await run("serve", "--config", CONFIG, *settings, SEGMIND_API_KEY="")

    assert ended.code == 1
    assert "SEGMIND_API_KEY" in ended.err
    assert "sandbox" in ended.err


async def test_a_gateway_reaches_a_sandbox_that_runs_alone_in_another_process(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    alone = await asyncio.create_subprocess_exec(
        *MODULE, "sandbox", "--config", CONFIG, *_settings(tmp_path / "alone", sandbox__time_scale=0),
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert alone.stdout is not None
        url = (await alone.stdout.readline()).decode().split()[1]
        account = (await alone.stdout.readline()).decode().split()[1]
        settings = _settings(
            tmp_path, upstream__kind="segmind", upstream__base_url=url, upstream__result_hosts="[127.0.0.1]",
            upstream__poll_first_seconds=0.05,
        )  # fmt: skip
        made = await run("keys", "create", "demo", "--config", CONFIG, *settings)
        async with (
            serving("--config", CONFIG, *settings, log=tmp_path / "log", SEGMIND_API_KEY=account) as gateway,
            session.post(
                f"{gateway.url}/v1/{MODEL}", json=video(), headers={"x-api-key": made.out.strip()}
            ) as answer,
        ):
            assert answer.status == 200, await answer.text()
            assert answer.headers["x-cost"] == "0.004"
            assert gateway.children == []
            assert account not in gateway.greeting + (tmp_path / "log").read_text()
        async with session.get(f"{url}/sandbox/bill") as answer:
            assert (await answer.json())["total"]["cost_micros"] == 4_000
    finally:
        alone.terminate()
        code = await alone.wait()
    assert account == "SG_0123456789abcdef"
    assert code == 0


async def test_with_the_sandbox_and_no_tenant_demo_it_starts_and_says_how_keys_are_made(
    tmp_path: Path,
) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("tenants: {ann: {budgets: []}}")
    settings = _settings(tmp_path, tenants=tenants)
    async with serving("--config", CONFIG, *settings, log=tmp_path / "log") as gateway:
        assert "gateway keys create TENANT" in gateway.greeting
