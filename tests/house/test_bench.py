"""bench/paid_once: that it counts what it says it counts. What it says of the peers is in its RESULTS.md."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.paid_once import scenes
from bench.paid_once.scenes import CALLERS, USD_EACH, Bill, Request, Scene
from bench.paid_once.upstream import CountingUpstream, counting_upstream
from tests.house.project import PROJECT, table_rows

_DELAY_SECONDS = 0.2
_SCALE = 0.01


class Nobody:
    """A candidate that does nothing: its callers ask the upstream themselves."""

    def __init__(self, upstream: CountingUpstream) -> None:
        self._upstream = upstream

    def request(self, number: int = 0) -> Request:
        return Request("POST", f"{self._upstream.url}/video", {}, b"%d" % number)

    async def bill(self) -> Bill:
        return Bill(self._upstream.paid, self._upstream.paid * USD_EACH)

    async def crash(self) -> None:
        """Nothing of it runs."""


class OneAnswer(Nobody):
    """A candidate that has the same answer for everybody."""

    def __init__(self, upstream: CountingUpstream, url: str) -> None:
        super().__init__(upstream)
        self._url = url

    def request(self, number: int = 0) -> Request:  # noqa: ARG002 -- whatever was asked
        return Request("GET", self._url)


def _bench(*arguments: str | Path, results: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "bench.paid_once", *map(str, arguments), "--results", str(results)],
        cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    written = results.read_text(encoding="utf-8")
    assert written in ran.stdout
    return written


def test_a_gateway_under_the_benchmark_is_paid_once_although_the_first_caller_hangs_up(
    tmp_path: Path,
) -> None:
    told = _bench("--scale", "0.01", "--only", "gateway", "--scene", "hangs up", results=tmp_path / "told.md")

    scene = "one begins, 19 join, the first hangs up"
    rows = [row[:6] for row in table_rows(told, after="## Counted")]
    assert rows == [
        [f"**gateway, {workers}**", scene, "**1**", "$0.416", "19 of 19", "19 x 200"]
        for workers in ("1 worker", "2 workers")
    ]


def test_a_peer_that_is_not_installed_is_named_in_the_result(tmp_path: Path) -> None:
    told = _bench("--only", "litellm", "--litellm-python", tmp_path / "nothing", results=tmp_path / "told.md")

    assert "| LiteLLM | **not installed** |" in told
    assert table_rows(told, after="## Counted") == [["LiteLLM", "all", "-", "-", "-", "not installed", "-"]]


@pytest.mark.parametrize(
    ("scene", "calls", "delivered"),
    [
        (scenes.herd, CALLERS, CALLERS),
        (scenes.again, CALLERS, CALLERS),
        (scenes.hang_up, CALLERS, CALLERS - 1),
        (scenes.retry, 1, 1),
        (scenes.budget, CALLERS, CALLERS),
        # Nobody's connections are cut, so all are answered; and all ask once more.
        (scenes.crash, 2 * CALLERS, CALLERS),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_with_nothing_between_them_every_request_of_every_caller_is_a_payment(
    scene: Scene, calls: int, delivered: int
) -> None:
    async with counting_upstream(_DELAY_SECONDS) as upstream:
        seen = await scene(Nobody(upstream), _SCALE)

    assert seen.bill == Bill(calls, calls * USD_EACH)
    assert seen.delivered == len(seen.answers) == delivered


async def test_a_payment_counts_when_the_caller_does_not_wait_for_what_was_paid() -> None:
    async with counting_upstream(60.0) as upstream, aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            await session.post(f"{upstream.url}/video", timeout=aiohttp.ClientTimeout(total=0.3))

        assert upstream.paid == 1


async def test_one_caller_hangs_up_while_the_others_wait() -> None:
    asked, hung_up = [], []

    async def wait(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        try:
            await asyncio.sleep(_DELAY_SECONDS)
        except asyncio.CancelledError:
            hung_up.append(request)
            raise
        return web.Response(body=b"\0\0\0\x18ftypisom")

    class Waiting(OneAnswer):
        async def bill(self) -> Bill:
            return Bill(len(asked), None)

    application = web.Application()
    application.router.add_get("/", wait)
    async with TestServer(application) as server, counting_upstream(_DELAY_SECONDS) as upstream:
        seen = await scenes.hang_up(Waiting(upstream, str(server.make_url("/"))), _SCALE)

    assert seen.delivered == CALLERS - 1
    assert hung_up == asked[:1]


async def _text(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="200, but this is not a video")


async def _error(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=504, body=b"\0\0\0\x18ftypisom")


async def _half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"\0\0\0\x18ftypisom")
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize(
    ("answer", "status"), [(_text, "200"), (_error, "504"), (_half, "ClientPayloadError")]
)
async def test_what_is_not_a_whole_video_was_not_delivered(answer: object, status: str) -> None:
    application = web.Application()
    application.router.add_get("/", answer)  # type: ignore[arg-type]  # one of the three above
    async with TestServer(application) as server, counting_upstream(_DELAY_SECONDS) as upstream:
        seen = await scenes.herd(OneAnswer(upstream, str(server.make_url("/"))), _SCALE)
        asked_again = await scenes.retry(OneAnswer(upstream, str(server.make_url("/"))), _SCALE)

    assert (seen.delivered, seen.statuses) == (0, f"{CALLERS} x {status}")
    assert (asked_again.delivered, asked_again.statuses) == (0, f"2 x {status}")
