"""What `gateway.upstream.contract.History` promises: whole or not at all, and no answer is no absence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from gateway.domain.errors import (
    GatewayError,
    OutcomeUnknown,
    ResultGone,
    ResultUnavailable,
    UpstreamBusy,
    UpstreamUnreachable,
    UpstreamUnusable,
)
from gateway.domain.generation import GenerationRequest, Json
from gateway.domain.identity import Fingerprint, Ticket
from gateway.domain.money import Money
from gateway.upstream.contract import History, PastCall, Standing
from gateway.upstream.limits import Limits
from gateway.upstream.secret import Secret
from gateway.upstream.segmind import SegmindUpstream
from tests.contracts.upstream_script import Reply, ScriptedServer, answer, hang_up, scripted_server, silent
from tests.journeys.sandbox.running import KEY as SANDBOX_KEY
from tests.journeys.sandbox.running import SMALL, SMALL_MICROS, RunningSandbox

KEY = "SG_0123456789canary"
MODEL = "ltx-2-19b-t2v"
ID = "2c7f59ea-13f1-402c-9353-915a2b5a2124"
TICKET = Ticket(ID)
LIST = "/inference-request/request-history"
ONE = f"{LIST}/{ID}"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
LIMITS = Limits(answer_seconds=5.0, rate_limit_seconds=7.0)
IMPATIENT = Limits(answer_seconds=0.2)


def kept(upstream: SegmindUpstream) -> History:
    """The contract's signatures are kept: mypy says so."""
    return upstream


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as scripted:
        yield scripted


Opener = Callable[..., AbstractAsyncContextManager[SegmindUpstream]]


@pytest.fixture
def opened(server: ScriptedServer) -> Opener:
    def open_upstream(
        limits: Limits = LIMITS, *, history: bool = True
    ) -> AbstractAsyncContextManager[SegmindUpstream]:
        return SegmindUpstream.open(
            base_url=server.url,
            api_key=Secret(KEY),
            clock=lambda: NOON,
            on_call=lambda _operation, _status, _seconds: None,
            history_url=server.url if history else None,
            limits=limits,
        )

    return open_upstream


@pytest.fixture
async def history(opened: Opener) -> AsyncIterator[History]:
    async with opened() as upstream:
        yield kept(upstream)


def page(number: int = 1, first: str = "2026-11-22", last: str = "2026-11-24") -> str:
    """The question for a page of the list; without days, those around `NOON`."""
    days = f"from_date={first}&to_date={last}"
    return f"{LIST}?page={number}&per_page=100&{days}&sort_by=model_created&sort_order=asc"


def row(identity: str = ID, **more: Json) -> dict[str, Json]:
    return {
        "request_id": identity,
        "model_name": MODEL,
        "model_status": "COMPLETED",
        "credits_deduction": 0.416,
        "request_body": {"prompt": "a cat", "fps": 24},
        "model_created": "2026-11-23T11:59:30Z",
        "error": None,
        **more,
    }


def rows(first: int, last: int) -> list[Json]:
    return [row(f"call-{number}") for number in range(first, last + 1)]


async def recent(history: History) -> list[PastCall]:
    return list(await history.past_calls(NOON - HOUR, NOON))


def tickets(calls: list[PastCall]) -> list[str]:
    return [call.ticket for call in calls]


# One call


async def test_a_past_call_is_what_its_row_says(server: ScriptedServer, history: History) -> None:
    server.on("GET", ONE, answer(body=row()))

    assert await history.past_call(TICKET) == PastCall(
        ticket=TICKET,
        model=MODEL,
        standing=Standing.COMPLETED,
        cost=Money(416_000),
        inputs={"prompt": "a cat", "fps": 24},
        submitted_at=NOON - 30,
        error=None,
    )
    [asked] = server.requests
    assert asked.headers["x-api-key"] == KEY


@pytest.mark.parametrize(
    ("said", "standing"),
    [
        ("COMPLETED", Standing.COMPLETED),
        ("completed", Standing.COMPLETED),
        ("FAILED", Standing.FAILED),
        ("PENDING", Standing.PENDING),
        ("WARMING_UP", Standing.PENDING),
        (None, Standing.PENDING),
    ],
)
async def test_a_status_that_nobody_knows_is_still_pending(
    server: ScriptedServer, history: History, said: str | None, standing: Standing
) -> None:
    server.on("GET", ONE, answer(body=row(model_status=said)))

    call = await history.past_call(TICKET)

    assert call is not None
    assert call.standing is standing


async def test_a_failed_call_says_why_on_one_line_and_without_keys(
    server: ScriptedServer, history: History
) -> None:
    text = f"The model\ncrashed for {KEY}. " + "x" * 2000
    server.on("GET", ONE, answer(body=row(model_status="FAILED", error={"message": text})))

    call = await history.past_call(TICKET)

    assert call is not None
    assert call.error is not None
    assert call.error.startswith("The model crashed for .... xx")
    assert len(call.error) < 600


@pytest.mark.parametrize(
    "left_out", ["model_name", "credits_deduction", "request_body", "model_created", "error"]
)
async def test_what_a_row_does_not_say_is_not_made_up(
    server: ScriptedServer, history: History, left_out: str
) -> None:
    whole = row()
    del whole[left_out]
    server.on("GET", ONE, answer(body=whole))

    call = await history.past_call(TICKET)

    assert call is not None
    unsaid = (call.model == "", call.cost is None, call.inputs is None, call.submitted_at is None)
    assert sum(unsaid) == (left_out != "error")


async def test_inputs_come_as_text_too_and_with_the_numbers_that_json_has(
    server: ScriptedServer, history: History
) -> None:
    server.on("GET", ONE, answer(body=row(request_body='{"guidance_scale": 4.5, "n": [1, {"x": 0.1}]}')))

    call = await history.past_call(TICKET)

    assert call is not None
    assert call.inputs == {"guidance_scale": 4.5, "n": [1, {"x": 0.1}]}
    assert isinstance(call.inputs["guidance_scale"], float)


@pytest.mark.parametrize(
    "stamp",
    [
        {"model_created": "2026-11-23T12:00:00Z"},
        {"model_created": "2026-11-23T12:00:00.000+00:00"},
        {"model_created": "2026-11-23 12:00:00"},
        {"model_created": "2026-11-23T17:30:00+05:30"},
        {"model_created": "2026-11-23 12:00:00 UTC"},
        {"model_created": "Mon, 23 Nov 2026 12:00:00 GMT"},
        {"model_created": NOON},
        {"model_created": int(NOON * 1000)},
        {"model_created": str(int(NOON))},
        {"model_created": None, "created_at": "2026-11-23T12:00:00Z"},
        {"model_created": None, "timestamps": {"created": int(NOON), "completed": 1}},
    ],
)
async def test_a_moment_is_read_in_every_form(
    server: ScriptedServer, history: History, stamp: dict[str, Json]
) -> None:
    server.on("GET", ONE, answer(body={**row(), **stamp}))

    call = await history.past_call(TICKET)

    assert call is not None
    assert call.submitted_at == NOON


@pytest.mark.parametrize("stamp", ["2026-11-23", "20261123", "yesterday", "", True, [], 12])
async def test_what_is_no_moment_is_not_said(server: ScriptedServer, history: History, stamp: Json) -> None:
    server.on("GET", ONE, answer(body=row(model_created=stamp)))

    call = await history.past_call(TICKET)

    assert call is not None
    assert call.submitted_at is None


@pytest.mark.parametrize(
    "nothing",
    [
        answer(404, {"error": f"Request {ID} not found"}),
        answer(body=[]),
        answer(body={"data": []}),
        answer(body={"data": None}),
    ],
)
async def test_a_call_that_the_history_does_not_have_is_none(
    server: ScriptedServer, history: History, nothing: Reply
) -> None:
    server.on("GET", ONE, nothing)

    assert await history.past_call(TICKET) is None


FAULTS = [
    pytest.param(
        answer(404, b"<html>Not Found</html>", content_type="text/html"), UpstreamUnusable, id="404"
    ),
    pytest.param(answer(401, {"error": "no"}), UpstreamUnusable, id="401"),
    pytest.param(answer(302, b"", headers={"Location": "/"}), UpstreamUnusable, id="302"),
    pytest.param(answer(500, {"data": []}), UpstreamUnreachable, id="500"),
    pytest.param(answer(504, b""), UpstreamUnreachable, id="504"),
    pytest.param(answer(429, {"error": "rate_limit_exceeded"}), UpstreamBusy, id="429"),
    pytest.param(answer(200, b"<html>"), UpstreamUnreachable, id="HTML"),
    pytest.param(answer(200, b'{"data": [', announced=99), UpstreamUnreachable, id="half"),
    pytest.param(answer(200, {"error": "try later"}), UpstreamUnreachable, id="error under 200"),
    pytest.param(answer(200, {"errors": []}), UpstreamUnreachable, id="another list"),
    pytest.param(answer(200, ["a", "b"]), UpstreamUnreachable, id="no rows"),
    pytest.param(answer(200, "null"), UpstreamUnreachable, id="a text"),
    pytest.param(hang_up, UpstreamUnreachable, id="hung up"),
]


@pytest.mark.parametrize(("fault", "expected"), FAULTS)
async def test_a_history_that_cannot_be_asked_for_a_call_says_so(
    server: ScriptedServer, history: History, fault: Reply, expected: type[GatewayError]
) -> None:
    server.on("GET", ONE, fault)

    with pytest.raises(expected):
        await history.past_call(TICKET)


async def test_an_answer_about_other_calls_says_nothing_about_this_one(
    server: ScriptedServer, history: History
) -> None:
    server.on("GET", ONE, answer(body={"data": [row("another")]}))

    with pytest.raises(ResultUnavailable):
        await history.past_call(TICKET)


async def test_silence_is_no_absence(server: ScriptedServer, opened: Opener) -> None:
    server.on("GET", ONE, silent())
    async with opened(IMPATIENT) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await upstream.past_call(TICKET)


async def test_without_a_history_nothing_is_said_of_any_call(opened: Opener) -> None:
    async with opened(history=False) as upstream:
        for asked in (upstream.past_call(TICKET), upstream.past_calls(NOON - HOUR, NOON)):
            with pytest.raises(ResultUnavailable, match="history_url"):
                await asked


async def test_a_ticket_of_our_own_making_is_in_no_history(server: ScriptedServer, history: History) -> None:
    with pytest.raises(ResultGone):
        await history.past_call(Ticket("v1-8a6e0804-2bd0-4672-b79d-d97027f9071a"))

    assert server.requests == []


# Every call of a time


WRAPPERS: list[Callable[[list[Json]], Json]] = [
    lambda rows: rows,
    lambda rows: {"data": rows, "page": 1, "total": len(rows)},
    lambda rows: {"data": {"items": rows, "total": len(rows)}},
    lambda rows: {"results": rows, "meta": {"total_count": len(rows)}},
    lambda rows: {"status": "ok", "request_history": rows, "users": []},
]


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_a_list_is_found_in_every_wrapper(
    server: ScriptedServer, history: History, wrap: Callable[[list[Json]], Json]
) -> None:
    server.on("GET", page(), answer(body=wrap(rows(1, 3))))

    assert tickets(await recent(history)) == ["call-1", "call-2", "call-3"]


async def test_pages_are_asked_for_until_all_rows_are_there(server: ScriptedServer, history: History) -> None:
    server.on("GET", page(1), answer(body={"data": rows(1, 100), "total": 230}))
    server.on("GET", page(2), answer(body={"data": rows(101, 200), "total": 230}))
    server.on("GET", page(3), answer(body={"data": rows(201, 230), "total": 230}))

    assert tickets(await recent(history)) == [f"call-{number}" for number in range(1, 231)]


async def test_without_a_total_a_page_that_is_not_full_is_the_last(
    server: ScriptedServer, history: History
) -> None:
    server.on("GET", page(1), answer(body={"data": rows(1, 100)}))
    server.on("GET", page(2), answer(body={"data": []}))

    assert len(await recent(history)) == 100
    assert len(server.requests) == 2


async def test_pages_that_are_shorter_than_was_asked_for_are_followed_to_the_total(
    server: ScriptedServer, history: History
) -> None:
    server.on("GET", page(1), answer(body={"data": rows(1, 20), "total": 30}))
    server.on("GET", page(2), answer(body={"data": rows(21, 30), "total": 30}))

    assert len(await recent(history)) == 30


async def test_a_list_that_ends_before_its_total_is_not_whole(
    server: ScriptedServer, history: History
) -> None:
    server.on("GET", page(1), answer(body={"data": rows(1, 20), "total": 30}))
    server.on("GET", page(2), answer(body={"data": [], "total": 30}))

    with pytest.raises(ResultUnavailable, match="longer"):
        await recent(history)


async def test_a_page_that_comes_again_and_again_is_not_whole(
    server: ScriptedServer, history: History
) -> None:
    for number in (1, 2):
        server.on("GET", page(number), answer(body={"data": rows(1, 100)}))

    with pytest.raises(ResultUnavailable, match="same page"):
        await recent(history)


@pytest.mark.parametrize(("fault", "expected"), FAULTS)
async def test_half_a_list_is_none(
    server: ScriptedServer, history: History, fault: Reply, expected: type[GatewayError]
) -> None:
    server.on("GET", page(1), answer(body={"data": rows(1, 100), "total": 150}))
    server.on("GET", page(2), fault)

    with pytest.raises(expected):
        await recent(history)


async def test_a_call_with_several_outputs_is_one_call_with_one_cost(
    server: ScriptedServer, history: History
) -> None:
    several: list[Json] = [
        row(model_status="PENDING", credits_deduction=None),
        row(generation_url="https://images.example/1"),
        row(generation_url="https://images.example/2"),
    ]
    server.on("GET", page(), answer(body={"data": several}))

    [call] = await recent(history)

    assert (call.ticket, call.standing, call.cost) == (TICKET, Standing.COMPLETED, Money(416_000))


async def test_rows_that_name_no_call_are_left_out(server: ScriptedServer, history: History) -> None:
    malformed: list[Json] = [None, "row", 7, {"model_status": "COMPLETED"}, row(""), row("a b")]
    server.on("GET", page(), answer(body={"data": [*malformed, {**row(), "request_id": 12}, row("whole")]}))

    assert tickets(await recent(history)) == ["whole"]


async def test_calls_before_and_after_are_left_out_and_those_that_do_not_say_when_are_kept(
    server: ScriptedServer, history: History
) -> None:
    moments = {
        "before": NOON - HOUR - 1,
        "first": NOON - HOUR,
        "last": NOON,
        "after": NOON + 1,
        "unsaid": None,
    }
    listed: list[Json] = [row(name, model_created=moment) for name, moment in moments.items()]
    server.on("GET", page(), answer(body={"data": listed}))

    assert tickets(await recent(history)) == ["first", "last", "unsaid"]


async def test_days_are_asked_for_wherever_they_may_begin(server: ScriptedServer, history: History) -> None:
    server.on("GET", page(1, "2026-11-22", "2026-11-23"), answer(body=[]))

    # 09:00 UTC is still the day before on Hawaii, and not yet the next day on Kiribati.
    assert await history.past_calls(NOON - 3 * HOUR, NOON - 3 * HOUR) == []


async def test_a_long_time_is_asked_for_in_windows_that_leave_no_day_out(
    server: ScriptedServer, history: History
) -> None:
    windows = [
        (date(2026, 9, 14), date(2026, 10, 14)),
        (date(2026, 10, 15), date(2026, 11, 14)),
        (date(2026, 11, 15), date(2026, 11, 24)),
    ]
    for number, (first, last) in enumerate(windows):
        moment = datetime(last.year, last.month, last.day, tzinfo=UTC).timestamp() - DAY
        found = row(f"call-{number}", model_created=moment)
        server.on("GET", page(1, first.isoformat(), last.isoformat()), answer(body=[found]))

    calls = await history.past_calls(NOON - 70 * DAY, NOON)

    assert [call.ticket for call in calls] == ["call-0", "call-1", "call-2"]
    assert all(last - first <= timedelta(days=31) for first, last in windows)


# The sandbox


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[RunningSandbox]:
    async with RunningSandbox(tmp_path / "sandbox") as running:
        yield running


@pytest.fixture
async def at_sandbox(sandbox: RunningSandbox) -> AsyncIterator[SegmindUpstream]:
    async with SegmindUpstream.open(
        base_url=sandbox.url,
        api_key=Secret(SANDBOX_KEY),
        clock=sandbox.clock,
        on_call=lambda _operation, _status, _seconds: None,
        history_url=sandbox.url,
    ) as upstream:
        yield upstream


def small() -> GenerationRequest:
    return GenerationRequest(MODEL, SMALL, Fingerprint("0" * 64), Money(SMALL_MICROS))


async def around_now(sandbox: RunningSandbox, upstream: SegmindUpstream) -> list[PastCall]:
    return list(await upstream.past_calls(sandbox.clock() - HOUR, sandbox.clock() + 1))


async def test_a_lost_submit_is_in_the_sandboxs_history_with_its_inputs_and_its_cost(
    sandbox: RunningSandbox, at_sandbox: SegmindUpstream
) -> None:
    await sandbox.set_faults(submit_dropped={"count": 1})
    with pytest.raises(OutcomeUnknown):
        await at_sandbox.submit(small())
    bill = await sandbox.settled_bill()

    [call] = await around_now(sandbox, at_sandbox)

    assert call == await at_sandbox.past_call(call.ticket)
    assert (call.ticket, call.model, call.standing) == (
        bill["jobs"][0]["request_id"],
        MODEL,
        Standing.COMPLETED,
    )
    assert (call.cost, call.inputs, call.error) == (Money(SMALL_MICROS), SMALL, None)


async def test_the_sandboxs_history_lags_and_then_shows_it(
    sandbox: RunningSandbox, at_sandbox: SegmindUpstream
) -> None:
    await sandbox.set_faults(history_lag={"count": 1, "seconds": 60})
    ticket = Ticket(await sandbox.submit())

    assert await at_sandbox.past_call(ticket) is None
    assert await around_now(sandbox, at_sandbox) == []
    sandbox.clock.ahead_seconds += 61

    assert await at_sandbox.past_call(ticket) is not None
    assert [call.ticket for call in await around_now(sandbox, at_sandbox)] == [ticket]


async def test_the_sandboxs_history_of_more_than_a_page_comes_whole(
    sandbox: RunningSandbox, at_sandbox: SegmindUpstream
) -> None:
    # What fails at once costs no encoder its time.
    await sandbox.set_faults(failed={})
    submitted = [await sandbox.submit({**SMALL, "seed": seed}) for seed in range(105)]

    assert [call.ticket for call in await around_now(sandbox, at_sandbox)] == submitted


async def test_the_sandboxs_calls_of_long_ago_are_found(
    sandbox: RunningSandbox, at_sandbox: SegmindUpstream
) -> None:
    submitted = await sandbox.submit()
    at = sandbox.clock()
    sandbox.clock.ahead_seconds += 100 * DAY

    assert [call.ticket for call in await at_sandbox.past_calls(at - 60 * DAY, at + 40 * DAY)] == [submitted]
