"""What `gateway.upstream.contract` promises, said sentence by sentence to an upstream that follows a script."""

from __future__ import annotations

import asyncio
import base64
import copy
import gzip
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import rfc8785

from gateway.domain.errors import (
    GatewayError,
    GenerationFailed,
    OutcomeUnknown,
    ResultGone,
    ResultUnavailable,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamUnreachable,
    UpstreamUnusable,
)
from gateway.domain.generation import GenerationRequest, Json
from gateway.domain.identity import Fingerprint, Ticket
from gateway.domain.money import Money
from gateway.upstream.answers import Answer
from gateway.upstream.contract import Progress, Upstream
from gateway.upstream.limits import Limits
from gateway.upstream.secret import Secret
from gateway.upstream.segmind import SegmindUpstream
from tests.contracts.upstream_script import (
    Reply,
    ScriptedServer,
    answer,
    hang_up,
    raw,
    scripted_server,
    silent,
)
from tests.journeys.sandbox.running import KEY as SANDBOX_KEY
from tests.journeys.sandbox.running import SMALL, SMALL_MICROS, RunningSandbox

KEY = "SG_0123456789canary"
MODEL = "ltx-2-19b-t2v"
ID = "2c7f59ea-13f1-402c-9353-915a2b5a2124"
TICKET = Ticket(ID)
NOW = 1_800_000_000.0
VIDEO = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 40
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))

SUBMIT = f"/v2/{MODEL}"
STATUS = f"/v2/requests/{ID}/status"
RESULT = f"/v2/requests/{ID}"
HISTORY = f"/inference-request/request-history/{ID}"
FILE = "/generations/x.mp4"

QUICK = Limits(
    connect_seconds=5.0,
    answer_seconds=5.0,
    submit_backoff_seconds=0.001,
    rate_limit_seconds=0.001,
    poll_first_seconds=0.001,
    poll_longest_seconds=0.002,
    poll_patience_seconds=0.002,
    polls_per_second=0,
    missing_grace_seconds=0.02,
    download_backoff_seconds=0.001,
    download_read_seconds=5.0,
    v1_answer_seconds=5.0,
)
IMPATIENT = replace(QUICK, answer_seconds=0.2, download_read_seconds=0.2, v1_answer_seconds=0.2)


def kept(upstream: SegmindUpstream) -> Upstream:
    """The contract's signatures are kept: mypy says so."""
    return upstream


@dataclass
class Calls:
    """What `on_call` was told."""

    told: list[tuple[str, str]]

    def __call__(self, operation: str, status: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((operation, status))


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as scripted:
        yield scripted


@pytest.fixture
async def elsewhere() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as scripted:
        yield scripted


@pytest.fixture
def calls() -> Calls:
    return Calls([])


Opener = Callable[..., AbstractAsyncContextManager[SegmindUpstream]]


@pytest.fixture
def opened(server: ScriptedServer, calls: Calls) -> Opener:
    def open_upstream(
        limits: Limits = QUICK,
        *,
        base_url: str | None = None,
        history: bool = False,
        key: str = KEY,
        protocols: Mapping[str, str] | None = None,
        text_models: frozenset[str] = frozenset(),
        result_hosts: frozenset[str] = frozenset({"127.0.0.1"}),
    ) -> AbstractAsyncContextManager[SegmindUpstream]:
        return SegmindUpstream.open(
            base_url=base_url or server.url,
            api_key=Secret(key),
            clock=lambda: NOW,
            on_call=calls,
            result_hosts=result_hosts,
            history_url=server.url if history else None,
            protocols=protocols,
            text_models=text_models,
            limits=limits,
        )

    return open_upstream


@pytest.fixture
async def upstream(opened: Opener) -> AsyncIterator[SegmindUpstream]:
    async with opened() as segmind:
        yield segmind


@pytest.fixture
async def v1(opened: Opener) -> AsyncIterator[SegmindUpstream]:
    async with opened(protocols={MODEL: "v1"}, history=True) as segmind:
        yield segmind


def request(model: str = MODEL) -> GenerationRequest:
    return GenerationRequest(model, {"prompt": "a cat", "fps": 24}, Fingerprint("0" * 64), Money(416_000))


@dataclass
class Fetched:
    media: list[tuple[str, int | None, bytes]]
    cost: Money | None
    seed: int | None
    seconds: float | None
    progress: list[Progress]

    @property
    def content(self) -> list[bytes]:
        return [content for _, _, content in self.media]


async def fetch(upstream: SegmindUpstream, ticket: Ticket = TICKET, model: str = MODEL) -> Fetched:
    progress: list[Progress] = []
    async with asyncio.timeout(30), upstream.collect(ticket, model, progress.append) as delivery:
        media = [
            (artifact.media_type, artifact.size_bytes, b"".join([chunk async for chunk in artifact.chunks]))
            async for artifact in delivery.artifacts
        ]
        return Fetched(media, delivery.cost, delivery.seed, delivery.seconds, progress)


def status(word: str, **more: Json) -> Reply:
    return answer(body={"status": word, "request_id": ID, "metrics": {}, **more})


def film(content: bytes = VIDEO, content_type: str | None = "video/mp4") -> Reply:
    return answer(body=content, content_type=content_type)


def completes(server: ScriptedServer, output: Json = None, **more: Json) -> None:
    """The ticket is done; without `output`, with the film at FILE."""
    server.on("GET", STATUS, status("COMPLETED"))
    output = server.url + FILE if output is None else output
    server.on("GET", RESULT, status("COMPLETED", output=output, **more))
    server.on("GET", FILE, film())


def error(code: int, message: str) -> Reply:
    return answer(code, {"error": message})


# Buying


async def test_what_is_hashed_is_what_is_sent_once_and_with_the_key(
    server: ScriptedServer, opened: Opener
) -> None:
    server.on("POST", SUBMIT, answer(body={"request_id": ID, "status": "QUEUED"}))
    parameters: Mapping[str, Json] = {"seed": 7, "prompt": "a cät", "guidance_scale": 4.5}

    async with opened() as upstream:
        ticket = await kept(upstream).submit(replace(request(), parameters=parameters))

    [post] = server.requests
    assert ticket == ID
    assert post.body == rfc8785.dumps(dict(parameters))
    assert (post.headers["x-api-key"], post.headers["content-type"]) == (KEY, "application/json")


@pytest.mark.parametrize("given", [ID, ID.replace("-", ""), "42", "a/b?c=%2e#d", "x" * 200])
async def test_a_ticket_of_any_shape_is_kept_and_asked_for_as_one_segment_of_a_path(
    server: ScriptedServer, upstream: SegmindUpstream, given: str
) -> None:
    server.on("POST", SUBMIT, answer(body={"request_id": given, "status_url": "http://elsewhere.invalid/"}))
    quoted = given.replace("%", "%25").replace("/", "%2F").replace("?", "%3F")
    quoted = quoted.replace("=", "%3D").replace("#", "%23")
    failed = status("FAILED", error="enough seen")
    server.on("GET", f"/v2/requests/{quoted}/status", failed)

    ticket = await upstream.submit(request())

    assert ticket == given
    with pytest.raises(GenerationFailed, match="enough seen"):
        await fetch(upstream, ticket)


@pytest.mark.parametrize(
    "reply",
    [
        answer(body={}),
        answer(body={"request_id": ""}),
        answer(body={"request_id": None}),
        answer(body={"request_id": 7}),
        answer(body={"request_id": ".."}),
        answer(body={"request_id": "two words"}),
        answer(body={"request_id": "x" * 201}),
        answer(body=[ID]),
        answer(body=b"<html>", content_type="text/html"),
        answer(body=b"[" * 100_000),
        answer(body=b'{"request_id": "', announced=400),
        answer(202, {"status": "QUEUED"}),
        answer(502, b"<html>", content_type="text/html"),
        error(502, "Bad Gateway: Service temporarily unavailable"),
        error(504, "Timeout: Request timed out"),
        answer(520, b""),
        answer(408, b""),
        answer(499, b"", content_type=None),
        hang_up,
        raw(b"HTTP/1.1 200 OK\r\nContent-"),
        raw(b"no http at all\r\n\r\n"),
    ],
)
async def test_an_answer_that_does_not_say_whether_it_was_bought_is_unknown_and_never_asked_again(
    server: ScriptedServer, upstream: SegmindUpstream, reply: Reply
) -> None:
    server.on("POST", SUBMIT, reply)

    with pytest.raises(OutcomeUnknown):
        await upstream.submit(request())

    assert len(server.requests) == 1


async def test_silence_after_the_request_left_is_unknown_and_never_asked_again(
    server: ScriptedServer, opened: Opener, calls: Calls
) -> None:
    server.on("POST", SUBMIT, silent())

    async with opened(IMPATIENT) as upstream:
        with pytest.raises(OutcomeUnknown):
            await upstream.submit(request())

    assert len(server.requests) == 1
    assert calls.told == [("submit", "timeout")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (error(400, "prompt is required"), UpstreamRefused),
        (error(406, "style must be one of: a, b"), UpstreamRefused),
        (answer(406, b""), UpstreamRefused),
        (error(422, "Invalid or missing parameters"), UpstreamRefused),
        (error(413, "too large"), UpstreamRefused),
        (error(418, "no such pot"), UpstreamRefused),
        (error(401, "Unauthorized. API key is invalid or may have expired"), UpstreamUnusable),
        (error(402, "Insufficient credits. You have 0.0 credits..."), UpstreamUnusable),
        (error(403, "not allowed"), UpstreamUnusable),
        (error(404, "unknown model"), UpstreamUnusable),
        (answer(405, b"<html>", content_type="text/html"), UpstreamUnusable),
        (error(406, "Insufficient credits"), UpstreamUnusable),
        (error(406, "Invalid content type"), UpstreamUnusable),
        (error(406, "The team's monthly spend limit of 5 is reached"), UpstreamUnusable),
        (error(410, "retired"), UpstreamUnusable),
        (answer(307, b"", headers={"Location": "/v2/other"}), UpstreamUnusable),
    ],
)
async def test_a_refusal_is_not_bought_and_not_asked_again(
    server: ScriptedServer, upstream: SegmindUpstream, reply: Reply, expected: type[GatewayError]
) -> None:
    server.on("POST", SUBMIT, reply)

    with pytest.raises(expected) as caught:
        await upstream.submit(request())

    assert type(caught.value) is expected
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer(429, {"error": "rate_limit_exceeded"}), UpstreamBusy),
        (error(500, "internal"), UpstreamUnreachable),
        (answer(503, b""), UpstreamUnreachable),
        (answer(503, b"half", announced=100), UpstreamUnreachable),
    ],
)
async def test_what_proved_not_bought_and_may_pass_is_tried_a_few_times(
    server: ScriptedServer, upstream: SegmindUpstream, reply: Reply, expected: type[GatewayError]
) -> None:
    server.on("POST", SUBMIT, reply)

    with pytest.raises(expected):
        await upstream.submit(request())

    assert len(server.requests) == 3


async def test_a_submit_that_gets_through_after_refusals_buys_once(
    server: ScriptedServer, upstream: SegmindUpstream, calls: Calls
) -> None:
    server.on("POST", SUBMIT, error(429, "later"), error(503, "down"), answer(body={"request_id": ID}))

    assert await upstream.submit(request()) == ID

    assert calls.told == [("submit", "429"), ("submit", "503"), ("submit", "200")]


async def test_an_unknown_outcome_after_a_refusal_ends_the_trying(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("POST", SUBMIT, error(503, "down"), hang_up, answer(body={"request_id": ID}))

    with pytest.raises(OutcomeUnknown):
        await upstream.submit(request())

    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-rate-limit-reset-at-utc", "2027-01-15T08:00:42Z"),
        ("x-rate-limit-reset-at-utc", "2027-01-15 08:00:42"),
        ("x-rate-limit-reset-at-utc", "2027-01-15 08:00:42 UTC"),
        ("X-Rate-Limit-Reset-At-UTC", "Fri, 15 Jan 2027 08:00:42 GMT"),
        ("x-rate-limit-reset-at-utc", "1800000042"),
        ("x-rate-limit-reset-at-utc", "1800000042000"),
        ("Retry-After", "42"),
    ],
)
async def test_a_rate_limit_that_asks_for_more_patience_than_there_is_is_passed_on(
    server: ScriptedServer, upstream: SegmindUpstream, header: str, value: str
) -> None:
    server.on("POST", SUBMIT, answer(429, {"error": "rate_limit_exceeded"}, headers={header: value}))

    with pytest.raises(UpstreamBusy) as caught:
        await upstream.submit(request())

    assert caught.value.retry_after_seconds == 42
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "value", ["soon", "1e400", "99999999999999999999", "2027-99-99T00:00:00Z", "2026-01-01"]
)
async def test_a_rate_limit_that_cannot_be_read_or_is_past_is_waited_for_as_usual(
    server: ScriptedServer, upstream: SegmindUpstream, value: str
) -> None:
    limited = answer(429, {"error": "x"}, headers={"x-rate-limit-reset-at-utc": value})
    server.on("POST", SUBMIT, limited, answer(body={"request_id": ID}))

    assert await upstream.submit(request()) == ID


async def test_an_upstream_that_was_never_reached_sold_nothing(opened: Opener, calls: Calls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    async with opened(base_url=f"http://127.0.0.1:{port}") as upstream:
        with pytest.raises(UpstreamUnreachable):
            await upstream.submit(request())

    assert calls.told == [("submit", "refused")] * 3


async def test_a_purchase_never_travels_on_a_used_connection(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("POST", SUBMIT, answer(body={"request_id": ID}))

    await upstream.submit(request())
    await upstream.submit(request())

    first, second = server.requests
    assert first.connection != second.connection


async def test_an_interim_answer_is_not_the_answer(server: ScriptedServer, upstream: SegmindUpstream) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    final = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\n{"request_id": "abc"}\n'
    server.on("POST", SUBMIT, raw(interim + final))

    assert await upstream.submit(request()) == "abc"


async def test_questions_travel_on_a_kept_connection_and_are_asked_again_where_it_is_gone(
    server: ScriptedServer, upstream: SegmindUpstream, calls: Calls
) -> None:
    completes(server)
    gone = answer(body={"status": "PROCESSING"}, headers={"Connection": "keep-alive"})
    server.on("GET", STATUS, gone, gone, hang_up, gone, answer(200, {"status": "COMPLETED"}))

    fetched = await fetch(upstream)

    assert fetched.content == [VIDEO]
    connections = [asked.connection for asked in server.seen("GET", STATUS)]
    # The third took the connection down with it, and was asked again on another.
    assert connections[0] == connections[1] == connections[2] != connections[3]
    assert ("poll", "disconnected") not in calls.told


async def test_a_connection_that_the_server_closes_after_an_answer_is_not_kept(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    completes(server)
    last = answer(body={"status": "PROCESSING"}, headers={"Connection": "close"})
    server.on("GET", STATUS, last, last, answer(200, {"status": "COMPLETED"}))

    assert (await fetch(upstream)).content == [VIDEO]
    connections = [asked.connection for asked in server.seen("GET", STATUS)]
    assert len(set(connections)) == 3


async def test_submits_share_few_connections_and_those_who_wait_for_one_have_sent_nothing(
    server: ScriptedServer, opened: Opener
) -> None:
    server.on("POST", SUBMIT, answer(body={"request_id": ID}))

    async with opened(replace(QUICK, connections=3)) as upstream:
        tickets = await asyncio.gather(*(upstream.submit(request()) for _ in range(50)))

    assert tickets == [ID] * 50
    assert len(server.requests) == 50
    # A server notices a moment later that the one before has hung up.
    assert server.most_connections <= 2 * 3


async def test_a_certificate_that_nobody_vouches_for_is_sold_nothing_and_not_shown_the_key(
    tmp_path: Path, opened: Opener, calls: Calls
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run([*made, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)  # noqa: ASYNC221 -- nobody else is waiting
    scripted = ScriptedServer()
    scripted.on("POST", SUBMIT, answer(body={"request_id": ID}))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    listening = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls)
    url = f"https://localhost:{listening.sockets[0].getsockname()[1]}"
    try:
        async with opened(base_url=url) as upstream:
            with pytest.raises(UpstreamUnreachable):
                await upstream.submit(request())
            assert not scripted.requests

            upstream._wire._calls._tls.load_verify_locations(tmp_path / "certificate")  # type: ignore[union-attr]  # it is https
            assert await upstream.submit(request()) == ID
    finally:
        listening.close()
        await scripted.stop()

    assert calls.told == [("submit", "refused")] * 3 + [("submit", "200")]


async def test_a_redirect_at_submit_takes_the_key_nowhere(
    server: ScriptedServer, elsewhere: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("POST", SUBMIT, answer(308, b"", headers={"Location": elsewhere.url + SUBMIT}))

    with pytest.raises(UpstreamUnusable):
        await upstream.submit(request())

    assert not elsewhere.requests


async def test_a_redirect_of_a_poll_takes_the_key_nowhere_and_ends_nothing(
    server: ScriptedServer, elsewhere: ScriptedServer, upstream: SegmindUpstream
) -> None:
    completes(server)
    moved = answer(302, b"", headers={"Location": elsewhere.url + STATUS})
    server.on("GET", STATUS, moved, status("COMPLETED"))

    assert (await fetch(upstream)).content == [VIDEO]
    assert not elsewhere.requests


async def test_a_cancelled_submit_stays_cancelled_and_is_not_repeated(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("POST", SUBMIT, silent())
    buying = asyncio.create_task(upstream.submit(request()))
    await server.saw("POST", SUBMIT)

    buying.cancel()

    with pytest.raises(asyncio.CancelledError):
        await buying
    assert len(server.requests) == 1


async def test_a_refusal_is_quoted_on_one_line_of_sane_length(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("POST", SUBMIT, error(400, "width\n\x1b[31mmust be even. " + "x" * 5000))

    with pytest.raises(UpstreamRefused) as caught:
        await upstream.submit(request())

    assert "width [31mmust be even" in str(caught.value)
    assert len(str(caught.value)) < 700


async def test_what_cannot_be_written_as_json_is_refused_before_anything_is_sent(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    with pytest.raises(UpstreamRefused):
        await upstream.submit(replace(request(), parameters={"seed": 2**60}))

    assert not server.requests


async def test_the_models_name_stays_one_segment_of_the_path(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("POST", "/v2/..%2Frequests", answer(body={"request_id": ID}))

    assert await upstream.submit(request(model="../requests")) == ID


# Waiting


async def test_a_ticket_is_polled_until_it_is_made_and_then_fetched(
    server: ScriptedServer, upstream: SegmindUpstream, calls: Calls
) -> None:
    metrics: Json = {"cost": 0.40987834111, "inference_time": 100.9}
    completes(server, metrics=metrics, seed="123", error=None)
    server.on(
        "GET",
        STATUS,
        status("QUEUED"),
        status("QUEUED"),
        status("PROCESSING"),
        status("POLISHING"),
        status("COMPLETED"),
    )

    fetched = await fetch(upstream)

    assert fetched.media == [("video/mp4", len(VIDEO), VIDEO)]
    assert fetched.progress == [Progress.QUEUED, Progress.PROCESSING]
    assert fetched.cost == Money(409_878)
    assert (fetched.seed, fetched.seconds) == (123, 100.9)
    assert calls.told == [("poll", "200")] * 5 + [("result", "200"), ("download", "200")]
    assert all(r.headers["x-api-key"] == KEY for r in server.requests if r.target != FILE)


PASSING = [
    answer(500, {"error": "internal"}),
    answer(502, b"<html>", content_type="text/html"),
    error(504, "Timeout: Request timed out"),
    error(429, "rate_limit_exceeded"),
    answer(429, {"error": "rate_limit_exceeded"}, headers={"x-rate-limit-reset-at-utc": str(NOW + 3000)}),
    hang_up,
    hang_up,
    hang_up,
    answer(200, b"not json"),
    answer(200, b'{"status": "FAILED"', announced=900),
    answer(200, b"null"),
    answer(200, {"status": None}),
    answer(200, {"status": ["FAILED"]}),
    answer(422, {"error": "no status here"}),
    answer(422, b"FAILED", content_type="text/plain"),
    answer(500, {"status": "FAILED", "error": "not under this code"}),
    answer(502, {"status": "COMPLETED"}),
    error(401, "Unauthorized"),
    error(403, "Forbidden"),
    answer(404, b"<html>", content_type="text/html"),
    answer(404, b""),
    error(404, f"Request {ID} not found"),
]


async def test_no_fault_of_a_poll_or_of_the_result_ends_a_purchase(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    completes(server)
    server.on("GET", STATUS, *PASSING, status("PROCESSING"), *PASSING, status("COMPLETED"))
    made = status("COMPLETED", output=server.url + FILE)
    server.on("GET", RESULT, *PASSING, status("PROCESSING"), made)

    fetched = await fetch(upstream)

    assert fetched.content == [VIDEO]
    assert not server.seen("POST")


async def test_a_404_that_is_not_the_upstreams_own_says_nothing_about_the_ticket(
    server: ScriptedServer, opened: Opener
) -> None:
    completes(server)
    astray = [
        answer(404, b"<html>", content_type="text/html"),
        answer(404, b""),
        answer(404, {"status": 404}),
    ]
    server.on("GET", STATUS, *astray * 3, status("COMPLETED"))

    async with opened(replace(QUICK, missing_grace_seconds=0.0)) as upstream:
        assert (await fetch(upstream)).content == [VIDEO]


async def test_a_key_that_is_not_accepted_makes_the_polls_slow_and_a_rate_limit_as_slow_as_it_says(
    opened: Opener,
) -> None:
    limits = replace(QUICK, poll_longest_seconds=5.0, poll_patience_seconds=60.0)
    soon = {"x-rate-limit-reset-at-utc": str(NOW + 30)}

    async with opened(limits) as upstream:
        assert upstream._pause_seconds(Answer(401, {}, b""), 0.5) == 5.0
        assert upstream._pause_seconds(Answer(403, {}, b""), 0.5) == 5.0
        assert upstream._pause_seconds(Answer(429, soon, b""), 0.5) == 30.0
        assert upstream._pause_seconds(Answer(429, {}, b""), 0.5) == 0.5
        assert upstream._pause_seconds(Answer(504, {}, b""), 0.5) == 0.5


async def test_half_an_answer_is_counted_as_what_it_is(
    server: ScriptedServer, upstream: SegmindUpstream, calls: Calls
) -> None:
    completes(server)
    server.on("GET", STATUS, answer(200, b'{"status":', announced=900), status("COMPLETED"))

    await fetch(upstream)

    assert calls.told[:2] == [("poll", "disconnected"), ("poll", "200")]


async def test_a_silent_poll_is_given_up_and_asked_again(
    server: ScriptedServer, opened: Opener, calls: Calls
) -> None:
    completes(server)
    server.on("GET", STATUS, silent(), status("COMPLETED"))

    async with opened(IMPATIENT) as upstream:
        assert (await fetch(upstream)).content == [VIDEO]

    assert calls.told[0] == ("poll", "timeout")


@pytest.mark.parametrize("code", [200, 422])
@pytest.mark.parametrize("where", [STATUS, RESULT])
async def test_only_the_upstreams_own_word_says_failed_and_nothing_was_charged(
    server: ScriptedServer, upstream: SegmindUpstream, code: int, where: str
) -> None:
    completes(server)
    failed = {"status": "FAILED", "error": "Prompt is Mandatory and must be string", "metrics": {}}
    server.on("GET", where, answer(code, failed))

    with pytest.raises(GenerationFailed, match="Prompt is Mandatory and must be string"):
        await fetch(upstream)


async def test_a_ticket_that_nobody_knows_for_long_is_gone(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("GET", STATUS, error(404, f"Request {ID} not found"))

    with pytest.raises(ResultGone):
        await fetch(upstream)

    assert len(server.seen("GET", STATUS)) > 1


async def test_a_ticket_that_is_not_known_yet_is_waited_for(server: ScriptedServer, opened: Opener) -> None:
    completes(server)
    lag = [error(404, f"Request {ID} not found")] * 5
    server.on("GET", STATUS, *lag, status("QUEUED"), *lag, status("COMPLETED"))
    server.on("GET", RESULT, *lag, status("COMPLETED", output=server.url + FILE))

    async with opened(replace(QUICK, missing_grace_seconds=60.0)) as upstream:
        assert (await fetch(upstream)).content == [VIDEO]


def row(**more: Json) -> dict[str, Json]:
    return {"request_id": ID, "model_name": MODEL, "model_status": "COMPLETED", **more}


@pytest.mark.parametrize("where", [STATUS, RESULT])
@pytest.mark.parametrize(
    "wrap", [lambda r: r, lambda r: [r, r], lambda r: {"data": [r]}, lambda r: {"data": r}]
)
async def test_an_expired_record_is_found_in_the_history(
    server: ScriptedServer, opened: Opener, where: str, wrap: Callable[[Json], Json], calls: Calls
) -> None:
    completes(server)
    server.on("GET", where, error(404, f"Request {ID} not found"))
    found = row(
        credits_deduction=0.41,
        generation_url=server.url + FILE,
        request_body={"prompt": "a cat", "seed": 9},
        latency_ms=100_900,
    )
    server.on("GET", HISTORY, answer(body=wrap(found)))

    async with opened(history=True) as upstream:
        fetched = await fetch(upstream)

    assert fetched.content == [VIDEO]
    assert (fetched.cost, fetched.seed, fetched.seconds) == (Money(410_000), 9, 100.9)
    assert ("history", "200") in calls.told


async def test_several_rows_of_the_history_are_several_media_and_one_cost(
    server: ScriptedServer, opened: Opener
) -> None:
    server.on("GET", STATUS, error(404, "not found"))
    rows: list[Json] = [
        row(credits_deduction=0.05, generation_url=server.url + name) for name in ("/1", "/2", "/1")
    ]
    stranger = {**row(credits_deduction=9, generation_url=server.url + "/9"), "request_id": "other"}
    server.on("GET", HISTORY, answer(body=[stranger, *rows]))
    server.on("GET", "/1", film(b"one " * 9))
    server.on("GET", "/2", film(b"two " * 9))

    async with opened(history=True) as upstream:
        fetched = await fetch(upstream)

    assert fetched.content == [b"one " * 9, b"two " * 9]
    assert fetched.cost == Money(50_000)


async def test_the_history_may_say_failed(server: ScriptedServer, opened: Opener) -> None:
    server.on("GET", STATUS, error(404, "not found"))
    server.on("GET", HISTORY, answer(body=row(model_status="FAILED", error={"message": "moderated"})))

    async with opened(history=True) as upstream:
        with pytest.raises(GenerationFailed, match="moderated"):
            await fetch(upstream)


async def test_a_history_that_is_pending_or_cannot_be_asked_ends_nothing(
    server: ScriptedServer, opened: Opener
) -> None:
    server.on("GET", STATUS, error(404, "not found"))
    found = answer(body=row(generation_url=server.url + FILE))
    faults = [answer(500, b""), hang_up, hang_up, error(401, "no"), answer(200, b"half"), error(429, "later")]
    pending = [answer(body=row(model_status="PENDING"))] * 5
    server.on("GET", HISTORY, *faults, *pending, *faults, found)
    server.on("GET", FILE, film())

    async with opened(replace(QUICK, missing_grace_seconds=0.0), history=True) as upstream:
        assert (await fetch(upstream)).content == [VIDEO]


@pytest.mark.parametrize("unknown", [error(404, "not found"), answer(body=[]), answer(body={"data": []})])
async def test_a_ticket_that_the_history_does_not_know_either_is_gone(
    server: ScriptedServer, opened: Opener, unknown: Reply
) -> None:
    server.on("GET", STATUS, error(404, "not found"))
    server.on("GET", HISTORY, unknown)

    async with opened(history=True) as upstream:
        with pytest.raises(ResultGone):
            await fetch(upstream)


async def test_a_history_without_the_media_cannot_bring_them_back(
    server: ScriptedServer, opened: Opener
) -> None:
    server.on("GET", STATUS, error(404, "not found"))
    server.on("GET", HISTORY, answer(body=row(credits_deduction=0.41, generation_url=None)))

    async with opened(history=True) as upstream:
        with pytest.raises(ResultGone):
            await fetch(upstream)


async def test_a_wait_that_is_cancelled_ends_at_once(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("GET", STATUS, status("PROCESSING"), status("PROCESSING"), silent())
    waiting = asyncio.create_task(fetch(upstream))
    await server.saw("GET", STATUS, 3)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_many_waits_share_few_connections(server: ScriptedServer, opened: Opener) -> None:
    completes(server)
    server.on("GET", STATUS, *[status("PROCESSING")] * 400, status("COMPLETED"))

    async with opened(replace(QUICK, connections=3)) as upstream:
        fetched = await asyncio.gather(*(fetch(upstream) for _ in range(100)))

    assert all(f.content == [VIDEO] for f in fetched)
    assert server.most_connections <= 3 + 3  # questions and downloads


@pytest.mark.parametrize(
    ("reported", "cost"),
    [
        (0.41, Money(410_000)),
        ("0.41", Money(410_000)),
        (0, Money(0)),
        (None, None),
        ("free", None),
        (True, None),
        (-1, None),
        ({"usd": 1}, None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
async def test_a_cost_that_is_not_said_is_unknown_and_not_nothing(
    server: ScriptedServer, upstream: SegmindUpstream, reported: Json, cost: Money | None
) -> None:
    completes(server, metrics={} if reported is None else {"cost": reported})

    assert (await fetch(upstream)).cost == cost


async def test_a_cost_never_passes_through_a_float(server: ScriptedServer, upstream: SegmindUpstream) -> None:
    completes(server)
    body = f'{{"status": "COMPLETED", "output": "{server.url + FILE}", "metrics": {{"cost": 0.40987849999999999999999}}}}'
    server.on("GET", RESULT, answer(body=body.encode()))

    assert (await fetch(upstream)).cost == Money(409_878)


@pytest.mark.parametrize(
    ("reported", "seed"),
    [("123", 123), (7, 7), ("-1", -1), ("", None), (None, None), (True, None), ("x", None)],
)
async def test_a_seed_is_read_from_text_and_number(
    server: ScriptedServer, upstream: SegmindUpstream, reported: Json, seed: int | None
) -> None:
    completes(server, seed=reported)

    assert (await fetch(upstream)).seed == seed


# What was made

B64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "result",
    [
        {"output": "@1"},
        {"output": ["@1"]},
        {"output": {"url": "@1"}},
        {"output": [{"url": "@1"}]},
        {"output": None, "video": {"url": "@1", "last_frame_url": "@2"}},
        {"output": "@1", "video": {"url": "@1", "content_type": "video/mp4"}},
        {"output": "@1", "images": [{"url": "@1"}]},
        {"output": "@1", "image": "@2", "video": "@2", "prompt": "@2"},
        {"output": "A film.", "video": {"url": "@1"}},
    ],
)
async def test_the_media_are_found_in_every_shape_that_has_been_seen(
    server: ScriptedServer, upstream: SegmindUpstream, result: dict[str, Json]
) -> None:
    def placed(value: Json) -> Json:
        match value:
            case str():
                return value.replace("@", f"{server.url}/")
            case list():
                return [placed(item) for item in value]
            case dict():
                return {name: placed(item) for name, item in value.items()}
            case _:
                return value

    server.on("GET", STATUS, status("COMPLETED"))
    server.on(
        "GET", RESULT, answer(body={"status": "COMPLETED", **{k: placed(v) for k, v in result.items()}})
    )
    server.on("GET", "/1", film())

    assert (await fetch(upstream)).content == [VIDEO]


async def test_several_media_come_in_order_and_none_twice(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    one, two, three = (f"{server.url}/{n}" for n in (1, 2, 3))
    completes(server, output=[two, one], images=[{"url": one}, {"url": two}, {"url": three}])
    for name in ("1", "2", "3"):
        server.on("GET", f"/{name}", film(name.encode() * 20, "image/png"))

    assert (await fetch(upstream)).content == [b"2" * 20, b"1" * 20, b"3" * 20]


@pytest.mark.parametrize(
    ("output", "media_type", "content"),
    [
        ('{"choices": [{"text": "hi"}]}', "application/json", b'{"choices": [{"text": "hi"}]}'),
        ("Once upon a time", "text/plain; charset=utf-8", b"Once upon a time"),
        ({"words": [{"t": 0.5}]}, "application/json", b'{"words": [{"t": 0.5}]}'),
        (["a", "b"], "application/json", b'["a", "b"]'),
        ("see http://127.0.0.1/x for more", "text/plain; charset=utf-8", b"see http://127.0.0.1/x for more"),
        (f"data:image/png;base64,{B64}", "image/png", PNG),
        ("data:text/plain,a%20b", "text/plain", b"a b"),
        (B64, "image/png", PNG),
        ([f"data:image/png;base64,{B64}"], "image/png", PNG),
    ],
)
async def test_what_came_within_the_answer_is_an_artifact_too(
    server: ScriptedServer, upstream: SegmindUpstream, output: Json, media_type: str, content: bytes
) -> None:
    completes(server, output=output)

    assert (await fetch(upstream)).media == [(media_type, len(content), content)]


async def test_the_text_of_a_text_model_is_no_address(server: ScriptedServer, opened: Opener) -> None:
    completes(server, output="https://en.example.org/wiki")

    async with opened(text_models=frozenset({MODEL})) as upstream:
        fetched = await fetch(upstream)

    assert fetched.content == [b"https://en.example.org/wiki"]


@pytest.mark.parametrize("output", ["", [], {}])
async def test_completed_without_media_is_unavailable_and_not_failed(
    server: ScriptedServer, upstream: SegmindUpstream, output: Json
) -> None:
    completes(server, output=output)

    with pytest.raises(ResultUnavailable):
        await fetch(upstream)


# Downloads


async def test_a_file_is_fetched_without_the_key(server: ScriptedServer, upstream: SegmindUpstream) -> None:
    completes(server)

    await fetch(upstream)

    [download] = server.seen("GET", FILE)
    assert "x-api-key" not in download.headers
    assert KEY not in str(download)
    assert download.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/x.mp4",
        "https://127.0.0.1@evil.example/x.mp4",
        "https://evil.example:443/127.0.0.1",
        "https://sub.images.segmind.com/x.mp4",
        "https://images.segmind.com.evil.example/x.mp4",
    ],
)
async def test_a_host_off_the_list_is_named_with_the_setting_and_the_purchase_stays_open(
    server: ScriptedServer, opened: Opener, address: str
) -> None:
    completes(server, output=[server.url + FILE, address])

    async with opened(result_hosts=frozenset({"127.0.0.1", "images.segmind.com"})) as upstream:
        with pytest.raises(ResultUnavailable) as caught:
            await fetch(upstream)

    assert type(caught.value) is ResultUnavailable
    assert "result_hosts" in str(caught.value)
    assert any(host in str(caught.value) for host in ("evil.example", "sub.images.segmind.com"))
    assert not server.seen("GET", FILE)  # half a delivery is none


@pytest.mark.parametrize(
    "address", ["https://me:pw@127.0.0.1/x.mp4", "http://127.0.0.1:99999/x", "http://[::1/x"]
)
async def test_an_address_that_is_not_plain_is_not_fetched(
    server: ScriptedServer, upstream: SegmindUpstream, address: str
) -> None:
    completes(server, output=address)

    with pytest.raises(ResultUnavailable):
        await fetch(upstream)


async def test_plain_http_is_fetched_only_from_an_upstream_of_plain_http(opened: Opener) -> None:
    async with opened(base_url="https://127.0.0.1:1") as upstream:
        with pytest.raises(ResultUnavailable, match="https"):
            upstream._downloads.allowed("http://127.0.0.1/x.mp4")
        assert upstream._downloads.allowed("https://127.0.0.1/x.mp4")


async def test_a_redirect_of_a_download_is_followed_within_the_list(
    server: ScriptedServer, elsewhere: ScriptedServer, upstream: SegmindUpstream
) -> None:
    completes(server)
    server.on("GET", FILE, answer(302, b"", headers={"Location": "/b"}))
    server.on("GET", "/b", answer(307, b"", headers={"Location": elsewhere.url + "/c"}))
    elsewhere.on("GET", "/c", answer(301, b"", headers={"Location": "/d"}))
    elsewhere.on("GET", "/d", film())

    assert (await fetch(upstream)).content == [VIDEO]
    assert all("x-api-key" not in r.headers for r in elsewhere.requests)


@pytest.mark.parametrize(
    "location", ["http://evil.example/x", "ftp://127.0.0.1/x", "http://[bad", "file:///etc/x"]
)
async def test_a_redirect_of_a_download_off_the_list_is_not_followed(
    server: ScriptedServer, upstream: SegmindUpstream, location: str
) -> None:
    completes(server)
    server.on("GET", FILE, answer(302, b"", headers={"Location": location}))

    with pytest.raises(ResultUnavailable):
        await fetch(upstream)

    assert len(server.seen("GET", FILE)) == 1


async def test_redirects_in_a_circle_come_to_an_end(server: ScriptedServer, opened: Opener) -> None:
    completes(server)
    server.on("GET", FILE, answer(302, b"", headers={"Location": FILE}))

    async with opened(replace(QUICK, download_attempts=1)) as upstream:
        with pytest.raises(ResultUnavailable):
            await fetch(upstream)

    assert len(server.seen("GET", FILE)) == 4


@pytest.mark.parametrize(
    "fault",
    [
        answer(500, b""),
        answer(503, b"later"),
        answer(403, b""),
        answer(404, b""),
        answer(206, b"part"),
        answer(302, b""),
        film(b""),
        answer(body=b"", announced=100),
        raw(b"HTTP/1.1 200 OK\r\n"),
    ],
)
async def test_a_download_that_fails_before_its_first_byte_is_tried_again(
    server: ScriptedServer, upstream: SegmindUpstream, fault: Reply
) -> None:
    completes(server)
    server.on("GET", FILE, fault, fault, film())

    assert (await fetch(upstream)).content == [VIDEO]
    assert len(server.seen("GET", STATUS)) == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (answer(404, b""), ResultGone),
        (answer(403, b""), ResultGone),
        (answer(503, b""), ResultUnavailable),
        (film(b""), ResultUnavailable),
    ],
)
async def test_a_download_that_goes_on_failing_is_given_up(
    server: ScriptedServer, upstream: SegmindUpstream, fault: Reply, expected: type[GatewayError]
) -> None:
    completes(server)
    server.on("GET", FILE, fault)

    with pytest.raises(ResultUnavailable) as caught:
        await fetch(upstream)

    assert type(caught.value) is expected
    assert len(server.seen("GET", FILE)) == QUICK.download_attempts


async def test_a_download_that_breaks_off_says_so_and_may_be_collected_again(
    server: ScriptedServer, upstream: SegmindUpstream, calls: Calls
) -> None:
    completes(server)
    server.on("GET", FILE, answer(body=VIDEO[:5000], announced=len(VIDEO), content_type="video/mp4"), film())

    with pytest.raises(ResultUnavailable):
        await fetch(upstream)

    assert calls.told[-2:] == [("download", "200"), ("download", "disconnected")]
    assert (await fetch(upstream)).content == [VIDEO]


async def test_a_download_that_falls_silent_is_given_up(
    server: ScriptedServer, opened: Opener, calls: Calls
) -> None:
    completes(server)
    server.on("GET", FILE, silent(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + VIDEO[:100]))

    async with opened(IMPATIENT) as upstream:
        with pytest.raises(ResultUnavailable):
            await fetch(upstream)

    assert calls.told[-1] == ("download", "timeout")


@pytest.mark.parametrize("announced", [True, False])
async def test_a_file_longer_than_is_taken_is_not_taken(
    server: ScriptedServer, opened: Opener, announced: bool
) -> None:
    completes(server)
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + VIDEO[:1000] + b"\r\n0\r\n\r\n"
    )
    server.on("GET", FILE, film() if announced else raw(chunked))

    async with opened(replace(QUICK, artifact_max_bytes=999)) as upstream:
        with pytest.raises(ResultUnavailable, match="999"):
            await fetch(upstream)


async def test_an_answer_without_end_is_a_passing_fault(server: ScriptedServer, opened: Opener) -> None:
    completes(server)
    server.on("GET", STATUS, status("FAILED", error="x" * 200_000), status("COMPLETED"))

    async with opened(replace(QUICK, answer_max_bytes=100_000)) as upstream:
        assert (await fetch(upstream)).content == [VIDEO]


@pytest.mark.parametrize(
    ("content", "declared", "media_type"),
    [
        (VIDEO, "video/mp4", "video/mp4"),
        (VIDEO, None, "video/mp4"),
        (VIDEO, "application/octet-stream", "video/mp4"),
        (PNG, "binary/octet-stream", "image/png"),
        (b"\xff\xd8\xff\xe0" + b"0" * 99, None, "image/jpeg"),
        (b"RIFF0000WEBPVP8 " + b"0" * 99, None, "image/webp"),
        (b"ID3" + b"0" * 99, None, "audio/mpeg"),
        (b"?" * 99, None, "application/octet-stream"),
        (PNG, "image/webp", "image/webp"),
    ],
)
async def test_the_kind_of_a_file_is_declared_or_told_by_its_first_bytes(
    server: ScriptedServer, upstream: SegmindUpstream, content: bytes, declared: str | None, media_type: str
) -> None:
    completes(server)
    server.on("GET", FILE, film(content, declared))

    assert (await fetch(upstream)).media == [(media_type, len(content), content)]


async def test_a_file_without_a_length_has_none(server: ScriptedServer, upstream: SegmindUpstream) -> None:
    completes(server)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n" + VIDEO[:20] + b"\r\n0\r\n\r\n"
    server.on("GET", FILE, raw(chunked))

    assert (await fetch(upstream)).media == [("video/mp4", None, VIDEO[:20])]


async def test_a_file_that_comes_packed_all_the_same_is_unpacked_and_its_length_not_believed(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    completes(server)
    packed = gzip.compress(VIDEO)
    server.on(
        "GET", FILE, answer(body=packed, content_type="video/mp4", headers={"Content-Encoding": "gzip"})
    )

    assert (await fetch(upstream)).media == [("video/mp4", None, VIDEO)]


@pytest.mark.parametrize("where", [STATUS, FILE])
async def test_little_that_unpacks_to_much_is_not_taken(
    server: ScriptedServer, opened: Opener, where: str
) -> None:
    completes(server)
    much = b'{"status": "FAILED", "error": "within the bomb"' + b" " * 5_000_000 + b"}"
    bomb = answer(body=gzip.compress(much), headers={"Content-Encoding": "gzip"})
    server.on("GET", where, bomb, status("FAILED", error="after it"))

    async with opened(replace(QUICK, answer_max_bytes=100_000, artifact_max_bytes=100_000)) as upstream:
        with pytest.raises((ResultUnavailable, GenerationFailed), match=r"100000|after it"):
            await fetch(upstream)


@pytest.mark.parametrize(
    "theirs", [TimeoutError("disk"), OSError("full"), aiohttp.ClientError("?"), KeyError("k")]
)
async def test_the_readers_own_errors_stay_its_own(
    server: ScriptedServer, upstream: SegmindUpstream, theirs: Exception
) -> None:
    completes(server)

    with pytest.raises(type(theirs)) as caught:  # noqa: PT012 -- the reader's block is what is tested
        async with upstream.collect(TICKET, MODEL, lambda _: None) as delivery:
            async for artifact in delivery.artifacts:
                async for _ in artifact.chunks:
                    raise theirs

    assert caught.value is theirs


async def test_an_error_of_whoever_watches_the_progress_stays_its_own(
    server: ScriptedServer, upstream: SegmindUpstream
) -> None:
    server.on("GET", STATUS, status("QUEUED"))

    def watch(_: Progress) -> None:
        raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        async with upstream.collect(TICKET, MODEL, watch):
            pass


# v1: one long call

V1 = f"/v1/{MODEL}"
V1_HEADERS = {"x-request-id": ID, "x-cost": "0.416", "x-seed-value": "42", "x-generation-time": "[102.5]"}


async def test_a_v1_call_buys_and_its_answer_is_collected(
    server: ScriptedServer, v1: SegmindUpstream
) -> None:
    server.on("POST", V1, answer(body=VIDEO, content_type="video/mp4", headers=V1_HEADERS))

    ticket = await v1.submit(request())
    fetched = await fetch(v1, ticket)

    assert ticket == ID
    assert fetched.media == [("video/mp4", len(VIDEO), VIDEO)]
    assert (fetched.cost, fetched.seed, fetched.seconds) == (Money(416_000), 42, 102.5)
    [post] = server.requests
    assert (post.method, post.headers["x-api-key"]) == ("POST", KEY)


async def test_v1_calls_that_last_do_not_wait_for_each_others_connections(
    server: ScriptedServer, opened: Opener
) -> None:
    server.on("POST", V1, silent())

    async with opened(replace(QUICK, connections=2), protocols={MODEL: "v1"}) as v1:
        waiting = [asyncio.create_task(v1.submit(request())) for _ in range(20)]
        await server.saw("POST", V1, times=20)
        for call in waiting:
            call.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
    # Whoever leaves hangs up.
    await server.until(lambda: server.open_connections == 0)


async def test_a_v1_answer_that_comes_in_pieces_and_packed_is_put_together(
    server: ScriptedServer, v1: SegmindUpstream
) -> None:
    packed = gzip.compress(VIDEO)
    head = b"HTTP/1.1 200 OK\r\nx-request-id: " + ID.encode() + b"\r\nContent-Type: video/mp4\r\n"
    head += b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [packed[start : start + 7] for start in range(0, len(packed), 7)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    server.on("POST", V1, raw(head + body))

    fetched = await fetch(v1, await v1.submit(request()))

    assert fetched.content == [VIDEO]


async def test_a_v1_answer_is_read_once_and_then_found_in_the_history(
    server: ScriptedServer, v1: SegmindUpstream
) -> None:
    server.on(
        "POST", V1, answer(body=VIDEO[:50], announced=900, content_type="video/mp4", headers=V1_HEADERS)
    )
    server.on("GET", STATUS, error(404, f"Request {ID} not found"))
    server.on("GET", HISTORY, answer(body=row(credits_deduction=0.416, generation_url=server.url + FILE)))
    server.on("GET", FILE, film())
    ticket = await v1.submit(request())

    with pytest.raises(ResultUnavailable):
        await fetch(v1, ticket)
    fetched = await fetch(v1, ticket)

    assert (fetched.content, fetched.cost) == ([VIDEO], Money(416_000))
    assert len(server.seen("POST")) == 1


async def test_a_v1_answer_without_an_id_is_bought_and_can_be_collected_once(
    server: ScriptedServer, v1: SegmindUpstream
) -> None:
    server.on("POST", V1, answer(body=VIDEO, content_type="video/mp4"))

    ticket = await v1.submit(request())

    assert ticket.startswith("v1-")
    assert (await fetch(v1, ticket)).content == [VIDEO]
    with pytest.raises(ResultGone):
        await fetch(v1, ticket)


@pytest.mark.parametrize(
    ("reply", "expected", "posts"),
    [
        (error(500, "CUDA out of memory"), GenerationFailed, 1),
        (error(400, "prompt is required"), UpstreamRefused, 1),
        (error(406, "Insufficient credits"), UpstreamUnusable, 1),
        (error(503, "down"), UpstreamUnreachable, 3),
        (error(429, "later"), UpstreamBusy, 3),
        (answer(429, b"half", announced=99), UpstreamBusy, 3),
        (error(502, "Bad Gateway"), OutcomeUnknown, 1),
        (error(504, "Timeout: Request timed out"), OutcomeUnknown, 1),
        (hang_up, OutcomeUnknown, 1),
        (silent(), OutcomeUnknown, 1),
        (raw(b"HTTP/1.1 200 OK\r\nContent-"), OutcomeUnknown, 1),
    ],
)
async def test_a_v1_call_that_brings_nothing_is_named_by_what_became_of_the_money(
    server: ScriptedServer, opened: Opener, reply: Reply, expected: type[GatewayError], posts: int
) -> None:
    server.on("POST", V1, reply)

    async with opened(IMPATIENT, protocols={MODEL: "v1"}) as v1:
        with pytest.raises(expected):
            await v1.submit(request())

    assert len(server.requests) == posts


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ({"image": B64}, PNG),
        ({"data": {"image": B64}}, PNG),
        ({"image_url": "@"}, VIDEO),
        ({"url": "@"}, VIDEO),
        ({"output": ["@"]}, VIDEO),
        ("@", VIDEO),
        (["@"], VIDEO),
        ([{"url": "@"}], VIDEO),
    ],
)
async def test_media_within_a_v1_answer_in_json_are_found(
    server: ScriptedServer, v1: SegmindUpstream, body: Json, content: bytes
) -> None:
    given = rfc8785.dumps(body).replace(b"@", (server.url + FILE).encode())
    server.on("POST", V1, answer(body=given, headers=V1_HEADERS))
    server.on("GET", FILE, film())

    assert (await fetch(v1, await v1.submit(request()))).content == [content]


@pytest.mark.parametrize(
    "reply",
    [
        answer(body={"data": {"message": "I cannot draw this"}}),
        answer(body=b"not json"),
        answer(body=b'{"image": "', announced=99),
        film(b""),
        answer(body=b"", announced=99, content_type="video/mp4"),
    ],
)
async def test_a_v1_success_without_media_was_probably_charged_and_is_no_failure(
    server: ScriptedServer, v1: SegmindUpstream, reply: Reply
) -> None:
    server.on("POST", V1, reply)
    ticket = await v1.submit(request())

    with pytest.raises(ResultUnavailable):
        await fetch(v1, ticket)


async def test_the_json_of_a_v1_text_model_is_its_product(server: ScriptedServer, opened: Opener) -> None:
    server.on("POST", V1, answer(body=b'{"choices": [{"cost": 0.10}]}'))

    async with opened(protocols={MODEL: "v1"}, text_models=frozenset({MODEL})) as v1:
        fetched = await fetch(v1, await v1.submit(request()))

    assert fetched.media[0][0] == "application/json"
    assert fetched.content == [b'{"choices": [{"cost": 0.1}]}']


async def test_a_v1_answer_that_nobody_collects_is_closed_after_a_while(
    server: ScriptedServer, opened: Opener
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000\r\n\r\n"
    server.on("POST", V1, silent(head))

    async with opened(replace(QUICK, v1_held_seconds=0.05), protocols={MODEL: "v1"}) as v1:
        ticket = await v1.submit(request())
        await server.until(lambda: server.open_connections == 0)
        with pytest.raises(ResultGone):
            await fetch(v1, ticket)


async def test_a_v1_answer_that_nobody_collects_is_closed_at_the_end(
    server: ScriptedServer, opened: Opener
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 9000\r\n\r\n"
    server.on("POST", V1, silent(head))

    async with opened(protocols={MODEL: "v1"}) as v1:
        await v1.submit(request())

    await server.until(lambda: server.open_connections == 0)


# The account

CREDITS = "/v1/get-user-credits"


async def test_credits_are_the_paid_and_the_free_ones(
    server: ScriptedServer, upstream: SegmindUpstream, calls: Calls
) -> None:
    server.on("GET", CREDITS, answer(body=b'{"credits": 12.1, "free-credits": 0.0184921035}'))

    assert await upstream.credits() == Money(12_118_492)
    assert calls.told == [("credits", "200")]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (error(401, "Unauthorized"), UpstreamUnusable),
        (error(404, "No credits found for the user"), UpstreamUnusable),
        (answer(302, b"", headers={"Location": "/x"}), UpstreamUnusable),
        (error(429, "later"), UpstreamBusy),
        (error(500, "internal"), UpstreamUnreachable),
        (answer(body={}), UpstreamUnreachable),
        (answer(body={"credits": "many"}), UpstreamUnreachable),
        (answer(body=b"<html>"), UpstreamUnreachable),
        (hang_up, UpstreamUnreachable),
    ],
)
async def test_credits_that_cannot_be_asked_are_an_error_that_bought_nothing(
    server: ScriptedServer, upstream: SegmindUpstream, reply: Reply, expected: type[GatewayError]
) -> None:
    server.on("GET", CREDITS, reply)

    with pytest.raises(expected):
        await upstream.credits()


# The key


async def _attempt(
    upstream: SegmindUpstream, server: ScriptedServer, reply: Reply, where: str
) -> BaseException:
    completes(server)
    try:
        match where:
            case "submit":
                server.on("POST", SUBMIT, reply)
                await upstream.submit(request())
            case "submit v1":
                server.on("POST", "/v1/one-long-call", reply)
                await fetch(upstream, await upstream.submit(request(model="one-long-call")), "one-long-call")
            case "poll":
                server.on("GET", STATUS, reply)
                polls = len(server.seen("GET", STATUS))
                waiting = asyncio.create_task(fetch(upstream))
                asked = asyncio.create_task(server.saw("GET", STATUS, polls + 3))
                await asyncio.wait([waiting, asked], return_when=asyncio.FIRST_COMPLETED)
                for task in (waiting, asked):
                    task.cancel()
                await waiting
            case "download":
                server.on("GET", FILE, reply)
                await fetch(upstream)
            case "host":
                server.on("GET", RESULT, status("COMPLETED", output=f"https://{KEY}.example/x"))
                await fetch(upstream)
            case _:
                server.on("GET", CREDITS, reply)
                await upstream.credits()
    except (GatewayError, asyncio.CancelledError) as caught:
        return caught
    pytest.fail(f"{where} should have failed")


def _everything_about(error: BaseException | None) -> str:
    if error is None:
        return ""
    mine = f"{error} {error!r} {error.args!r} {vars(error)!r}"
    return mine + _everything_about(error.__cause__) + _everything_about(error.__context__)


@pytest.mark.parametrize("where", ["submit", "submit v1", "poll", "download", "host", "credits"])
@pytest.mark.parametrize("key", [KEY, "sk-another-shape-canary"])
async def test_no_error_no_repr_and_no_log_shows_the_key(
    server: ScriptedServer, opened: Opener, where: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    leak = f"key {key} and SG_ffffffffffffffff and " + "x" * 480 + key
    replies = [
        *[
            error(code, leak)
            for code in (400, 401, 402, 403, 404, 405, 406, 410, 418, 422, 429, 500, 502, 503)
        ],
        answer(422, {"status": "FAILED", "error": leak}),
        answer(400, {"error": {"message": leak}}),
        answer(400, {"error": {"echo": {"x-api-key": key}}}),
        answer(200, b"half", announced=99),
        answer(302, b"", headers={"Location": f"https://{key.lower()}.example/"}),
        raw(b"garbage " + key.encode() + b"\r\n\r\n"),
        raw(f"HTTP/1.1 200 OK\r\nBad Header {key}: x\r\n\r\n".encode()),
        hang_up,
    ]

    async with opened(IMPATIENT, key=key, protocols={"one-long-call": "v1"}) as upstream:
        for reply in replies:
            shown = _everything_about(await _attempt(upstream, server, reply, where))
            assert key not in shown
            assert key[3:] not in shown
            assert "ffffffff" not in shown
        assert key not in repr(upstream) + repr(vars(upstream))

    assert key not in caplog.text
    assert all(key not in repr(vars(record)) for record in caplog.records)


def test_a_secret_is_used_and_never_shown() -> None:
    secret = Secret(f" {KEY}\n")

    assert secret.reveal() == KEY
    assert KEY not in f"{secret} {secret!r}"
    with pytest.raises(TypeError):
        copy.copy(secret)


@pytest.mark.parametrize("value", ["", "  \n", "SG_1\r\nx: y", "schlüssel"])
def test_what_can_be_no_key_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ValueError, match="the key is empty or holds") as caught:
        Secret(value)
    assert not value.strip() or value not in str(caught.value)


@pytest.mark.parametrize("address", ["", "api.segmind.com", "ftp://api.segmind.com", "https://h/?x=1"])
async def test_an_address_that_is_no_services_is_refused_at_once(opened: Opener, address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        async with opened(base_url=address or "x"):
            pass


async def test_an_unknown_protocol_is_refused_at_once(opened: Opener) -> None:
    with pytest.raises(ValueError, match="v3"):
        async with opened(protocols={MODEL: "v3"}):
            pass


# The sandbox: another upstream than the script, and one that keeps books


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[RunningSandbox]:
    async with RunningSandbox(tmp_path / "sandbox") as running:
        yield running


@pytest.fixture
def at_sandbox(sandbox: RunningSandbox, calls: Calls) -> Opener:
    def open_upstream(
        limits: Limits = QUICK, protocols: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[SegmindUpstream]:
        return SegmindUpstream.open(
            base_url=sandbox.url,
            api_key=Secret(SANDBOX_KEY),
            clock=sandbox.clock,
            on_call=calls,
            result_hosts=frozenset({"127.0.0.1"}),
            history_url=sandbox.url,
            limits=limits,
            protocols=protocols,
        )

    return open_upstream


def small() -> GenerationRequest:
    return replace(request(), parameters={**SMALL, "seed": 7})


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_the_sandbox_sells_a_film_once_at_the_price_on_its_bill(
    sandbox: RunningSandbox, at_sandbox: Opener, protocol: str
) -> None:
    async with at_sandbox(protocols={MODEL: protocol}) as upstream:
        before = await upstream.credits()
        ticket = await upstream.submit(small())
        first = await fetch(upstream, ticket)
        again = await fetch(upstream, ticket)
        after = await upstream.credits()

    assert first.media[0][0] == "video/mp4"
    assert first.media[0][2][4:8] == b"ftyp"
    assert first.content == again.content
    assert first.cost == again.cost == before - after
    assert len((await sandbox.settled_bill())["jobs"]) == 1


@pytest.mark.parametrize("status_code", [502, 504])
async def test_the_sandbox_sells_behind_a_lost_answer_and_is_not_asked_again(
    sandbox: RunningSandbox, at_sandbox: Opener, status_code: int
) -> None:
    await sandbox.set_faults(submit_error={"count": 1, "status": status_code})
    async with at_sandbox() as upstream:
        with pytest.raises(OutcomeUnknown):
            await upstream.submit(small())
        await sandbox.set_faults(submit_dropped={"count": 1})
        with pytest.raises(OutcomeUnknown):
            await upstream.submit(small())

    assert len((await sandbox.settled_bill())["jobs"]) == 2


async def test_the_sandboxs_passing_faults_cost_nothing_more(
    sandbox: RunningSandbox, at_sandbox: Opener
) -> None:
    await sandbox.set_faults(
        submit_refused={"count": 2},
        poll_error={"count": 2},
        unknown_status={"count": 1},
        result_error={"count": 2},
        output_as_list={"count": 1},
        file_gone={"count": 1, "status": 403},
    )
    async with at_sandbox() as upstream:
        fetched = await fetch(upstream, await upstream.submit(small()))

    assert fetched.media[0][2][4:8] == b"ftyp"
    assert len((await sandbox.settled_bill())["jobs"]) == 1


async def test_a_record_that_the_sandbox_has_dropped_is_found_in_its_history(
    sandbox: RunningSandbox, at_sandbox: Opener, calls: Calls
) -> None:
    await sandbox.set_faults(record_expired={"count": 1})
    async with at_sandbox() as upstream:
        fetched = await fetch(upstream, await upstream.submit(small()))

    assert fetched.media[0][2][4:8] == b"ftyp"
    assert fetched.seed == 7
    assert fetched.cost == Money(SMALL_MICROS)
    assert ("history", "200") in calls.told


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_what_fails_at_the_sandbox_is_failed_and_unbilled(
    sandbox: RunningSandbox, at_sandbox: Opener, protocol: str
) -> None:
    await sandbox.set_faults(failed={"count": 1, "error": "The lights went out."})
    async with at_sandbox(protocols={MODEL: protocol}) as upstream:
        before = await upstream.credits()
        with pytest.raises(GenerationFailed, match="The lights went out"):
            await fetch(upstream, await upstream.submit(small()))
        assert await upstream.credits() == before
