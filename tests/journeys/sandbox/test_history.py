"""GET /inference-request/request-history: what was asked, and what it cost, at any age."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.journeys.sandbox.running import MODEL, SMALL, RunningSandbox

PATH = "/inference-request/request-history"
DAY = 86400.0


async def test_a_request_is_one_row_with_its_cost_inputs_and_url(sandbox: RunningSandbox) -> None:
    record = await sandbox.result(SMALL | {"seed": -1, "stranger": 1})
    code, answer = await sandbox.ask("GET", PATH)

    (row,) = answer["data"]
    assert (code, answer["page"], answer["per_page"], answer["total"]) == (200, 1, 20, 1)
    assert row["model_created"] <= row["model_completed"]
    assert row["latency_ms"] >= 0
    assert row | {"model_created": "", "model_completed": "", "latency_ms": 0} == {
        "request_id": record["video"]["file_name"].removesuffix(".mp4"),
        "model_name": MODEL,
        "model_status": "COMPLETED",
        "credits_deduction": 0.004,
        "request_body": SMALL | {"seed": -1, "stranger": 1},
        "generation_url": record["output"],
        "latency_ms": 0,
        "model_created": "",
        "model_completed": "",
        "error": None,
    }
    assert await sandbox.ask("GET", f"{PATH}/{row['request_id']}") == (200, row)


async def test_failures_and_what_still_runs_are_there_too(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(cold_start={"count": 1, "seconds": 600})
    running = await sandbox.submit()
    failed = await sandbox.submit({"prompt": ""})
    completed = await sandbox.submit()
    await sandbox.ended(failed)
    await sandbox.ended(completed)

    rows = {row["request_id"]: row for row in (await sandbox.ask("GET", PATH))[1]["data"]}
    assert {request_id: row["model_status"] for request_id, row in rows.items()} == {
        running: "PENDING",
        failed: "FAILED",
        completed: "COMPLETED",
    }
    assert rows[failed]["error"] == "Prompt is Mandatory and must be string"
    assert rows[running] | {"model_created": 0} == {
        "request_id": running,
        "model_name": MODEL,
        "model_status": "PENDING",
        "credits_deduction": 0.0,
        "request_body": SMALL,
        "generation_url": None,
        "latency_ms": None,
        "model_created": 0,
        "model_completed": None,
        "error": None,
    }
    for status, request_id in (("PENDING", running), ("FAILED", failed), ("COMPLETED", completed)):
        _, answer = await sandbox.ask("GET", PATH, params={"status": status})
        assert [row["request_id"] for row in answer["data"]] == [request_id]


async def test_pages_hold_every_request_once_the_newest_first(sandbox: RunningSandbox) -> None:
    ids = [await sandbox.submit(SMALL | {"seed": seed}) for seed in range(7)]
    seen: list[str] = []
    for page in (1, 2, 3, 4):
        _, answer = await sandbox.ask("GET", PATH, params={"page": page, "per_page": 3})
        assert (answer["page"], answer["per_page"], answer["total"]) == (page, 3, 7)
        seen += [row["request_id"] for row in answer["data"]]

    assert seen == ids[::-1]


async def test_it_is_filtered_and_sorted(sandbox: RunningSandbox) -> None:
    await sandbox.submit(SMALL | {"num_frames": 121, "width": 720, "height": 1280})
    await sandbox.submit({"prompt": "rain"}, "lyria-2")
    await sandbox.submit()
    await sandbox.settled_bill()

    async def models(**query: str) -> list[str]:
        _, answer = await sandbox.ask("GET", PATH, params=query)
        return [row["model_name"] for row in answer["data"]]

    async def costs(**query: str) -> list[float]:
        _, answer = await sandbox.ask("GET", PATH, params=query)
        return [row["credits_deduction"] for row in answer["data"]]

    assert await models(model_name="yria") == ["lyria-2"]
    assert await models(sort_by="model_name", sort_order="desc") == ["lyria-2", MODEL, MODEL]
    assert await costs(sort_by="credits_deduction", sort_order="asc") == [0.004, 0.09, 0.416]
    assert await costs(sort_by="credits_deduction") == [0.416, 0.09, 0.004]


async def test_it_shows_a_window_of_days(sandbox: RunningSandbox) -> None:
    old = await sandbox.submit()
    sandbox.clock.ahead_seconds = 20 * DAY
    new = await sandbox.submit()
    today = datetime.fromtimestamp(sandbox.clock(), UTC).date()

    async def ids(**query: str) -> list[str]:
        _, answer = await sandbox.ask("GET", PATH, params=query)
        return [row["request_id"] for row in answer["data"]]

    assert await ids() == [new], "the last seven days, unless something else is asked for"
    assert await ids(from_date=str(today - timedelta(days=30))) == [new, old]
    assert await ids(to_date=str(today - timedelta(days=20))) == [old], "the last day is part of the window"
    assert await ids(from_date=str(today), to_date=str(today)) == [new]
    assert (await sandbox.ask("GET", f"{PATH}/{old}"))[0] == 200, "one request, of any age"


@pytest.mark.parametrize(
    "query",
    [
        {"page": 0},
        {"page": "one"},
        {"per_page": 101},
        {"from_date": "yesterday"},
        {"from_date": "2020-01-01"},
        {"from_date": "2099-01-01"},
        {"status": "RUNNING"},
        {"sort_by": "price"},
        {"sort_order": "up"},
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(sandbox: RunningSandbox, query: dict[str, Any]) -> None:
    code, answer = await sandbox.ask("GET", PATH, params=query)

    assert (code, set(answer)) == (400, {"error"})


async def test_an_account_sees_its_own_requests_only(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("other", "SG_other", 1)
    await sandbox.submit()

    _, answer = await sandbox.ask("GET", PATH, headers={"x-api-key": "SG_other"})
    assert answer["total"] == 0
