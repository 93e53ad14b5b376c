"""What can be made to go wrong does go wrong, as said, and costs what it says."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest

from tests.journeys.sandbox.running import MODEL, NEVER, PAGE, SMALL, SMALL_MICROS, RunningSandbox

APIS = pytest.mark.parametrize("api", ["v1", "v2"])


async def test_faults_are_listed_with_their_knobs_and_how_they_are_set(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(
        poll_error={"probability": 0.25, "status": 502}, submit_dropped={"count": 3, "model": "m"}
    )
    code, faults = await sandbox.ask("GET", "/sandbox/faults")

    assert code == 200
    assert faults["poll_error"]["knobs"]["status"]["choices"] == [502, 504]
    assert faults["poll_error"]["setting"] == {"probability": 0.25, "status": 502}
    assert faults["submit_dropped"]["setting"] == {"probability": 1.0, "count": 3, "model": "m"}
    assert faults["cold_start"]["setting"] is None
    assert all(fault["does"] for fault in faults.values())


@pytest.mark.parametrize("off", [{}, {"probability": 0}, {"count": 0}])
async def test_a_fault_is_switched_off(sandbox: RunningSandbox, off: dict[str, Any]) -> None:
    await sandbox.set_faults(submit_refused={"probability": 1}, model_retired={})
    assert (await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL))[0] == 503

    await sandbox.set_faults(submit_refused=off)

    await sandbox.submit()


async def test_all_faults_are_switched_off_at_once(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(submit_refused={"count": 9}, failed={"count": 9})
    code, faults = await sandbox.ask("DELETE", "/sandbox/faults")

    assert code == 200
    assert {fault["setting"] for fault in faults.values()} == {None}
    await sandbox.result()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"submit_droped": {}}, "submit_dropped"),
        ({"failed": {"propability": 1}}, "probability"),
        ({"cold_start": {"second": 1}}, "seconds"),
        ({"poll_error": {"status": 500}}, "502, 504"),
        ({"poll_error": {"probability": 2}}, "0 to 1"),
        ({"poll_error": {"count": -1}}, "not below 0"),
        ({"submit_slow": {"seconds": "long"}}, "a number"),
        ({"poll_error": True}, "an object"),
    ],
)
async def test_a_misspelt_fault_is_refused_and_the_nearest_named(
    sandbox: RunningSandbox, given: dict[str, Any], named: str
) -> None:
    code, answer = await sandbox.ask("PUT", "/sandbox/faults", json={"submit_refused": {"count": 1}, **given})

    assert code == 400
    assert named in answer["error"]
    await sandbox.submit()  # the good half was not taken either


async def test_a_count_runs_out_and_a_model_narrows(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(submit_refused={"count": 2, "model": MODEL})
    codes = [(await sandbox.ask("POST", "/v2/lyria-2", json={"prompt": "rain"}))[0]]
    codes += [(await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL))[0] for _ in range(3)]

    assert codes == [200, 503, 503, 200]


@APIS
async def test_submit_dropped_is_queued_and_billed_without_an_answer(
    sandbox: RunningSandbox, api: str
) -> None:
    await sandbox.set_faults(submit_dropped={"count": 1})
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await sandbox.ask("POST", f"/{api}/{MODEL}", json=SMALL)

    assert (await sandbox.settled_bill())["total"]["cost_micros"] == SMALL_MICROS
    _, history = await sandbox.ask("GET", "/inference-request/request-history")
    assert [row["request_body"] for row in history["data"]] == [SMALL]


@APIS
@pytest.mark.parametrize("status", [502, 504])
async def test_submit_error_is_queued_and_billed_all_the_same(
    sandbox: RunningSandbox, api: str, status: int
) -> None:
    await sandbox.set_faults(submit_error={"count": 1, "status": status})
    code, _ = await sandbox.ask("POST", f"/{api}/{MODEL}", json=SMALL)

    assert code == status
    assert (await sandbox.settled_bill())["total"]["cost_micros"] == SMALL_MICROS


@APIS
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"submit_refused": {"status": 500}}, 500),
        ({"submit_refused": {"status": 503}}, 503),
        ({"submit_rate_limited": {}}, None),
        ({"submit_rate_limited": {"count": 1}}, 429),
        ({"model_retired": {"count": 1}}, 410),
        ({"insufficient_credits": {"status": 402}}, 402),
        ({"insufficient_credits": {"status": 406}}, 406),
    ],
)
async def test_what_is_refused_before_queueing_is_not_billed(
    sandbox: RunningSandbox, api: str, fault: dict[str, Any], code: int | None
) -> None:
    await sandbox.set_faults(**fault)
    async with sandbox.session.post(f"{sandbox.url}/{api}/{MODEL}", json=SMALL) as response:
        assert response.status == (code or 200)
        assert code != 429 or response.headers["x-rate-limit-reset-at-utc"]

    assert (await sandbox.settled_bill())["total"]["jobs"] == (0 if code else 1)


async def test_submit_slow_queues_at_once_and_answers_late(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(submit_slow={"seconds": 600})
    call = asyncio.create_task(sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL))
    await sandbox.bill_when(lambda total: bool(total["completed"]))

    assert not call.done()
    call.cancel()


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        ({"poll_error": {"count": 1, "status": 502}}, [502, 200]),
        ({"poll_error": {"count": 2, "status": 504}}, [504, 504, 200]),
        ({"poll_rate_limited": {"count": 1}}, [429, 200]),
    ],
)
async def test_a_poll_fails_and_the_next_does_not(
    slow_sandbox: RunningSandbox, fault: dict[str, Any], codes: list[int]
) -> None:
    request_id = await slow_sandbox.submit()
    for path in ("/v2/requests/{}/status", "/v2/requests/{}", "/v1/requests/{}"):
        await slow_sandbox.set_faults(**fault)
        got = [(await slow_sandbox.ask("GET", path.format(request_id)))[0] for _ in codes]
        assert got == codes


async def test_a_rate_limit_counts_calendar_minutes_and_polls_only_if_told(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(rate_limit={"per_minute": 2})
    # The next minute begins with a fresh count: begin at its beginning.
    sandbox.clock.ahead_seconds = 60 - sandbox.clock() % 60
    request_id = await sandbox.submit()
    await sandbox.ended(request_id)
    await sandbox.submit()
    async with sandbox.session.post(f"{sandbox.url}/v2/{MODEL}", json=SMALL) as response:
        assert response.status == 429
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:00.000Z", response.headers["x-rate-limit-reset-at-utc"]
        )
    await sandbox.set_faults(rate_limit={"per_minute": 2, "polls": True})
    assert (await sandbox.ask("GET", f"/v2/requests/{request_id}"))[0] == 429

    sandbox.clock.ahead_seconds += 60

    await sandbox.submit()


async def test_unknown_status_is_told_while_the_job_runs_and_not_after(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path, time_scale=NEVER) as sandbox:
        request_id = await sandbox.submit()
        await sandbox.set_faults(unknown_status={"value": "SIMMERING"})
        for path in (f"/v2/requests/{request_id}/status", f"/v2/requests/{request_id}"):
            code, body = await sandbox.ask("GET", path)
            assert (code, body["status"]) == (200, "SIMMERING")


async def test_unknown_status_ends_with_the_job(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(unknown_status={"probability": 1})
    _, body = await sandbox.ended(await sandbox.submit())

    assert body["status"] == "COMPLETED"


@pytest.mark.parametrize("status", [502, 504])
async def test_result_error_strikes_after_completion_only(sandbox: RunningSandbox, status: int) -> None:
    await sandbox.set_faults(result_error={"count": 1, "status": status})
    request_id = await sandbox.submit()
    await sandbox.ended(request_id)
    codes = [(await sandbox.ask("GET", f"/v2/requests/{request_id}"))[0] for _ in range(2)]

    assert codes == [status, 200]


async def test_result_missing_is_a_404_for_a_while(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(result_missing={"count": 1, "seconds": 50})
    request_id = await sandbox.submit()
    await sandbox.ended(request_id)
    path = f"/v2/requests/{request_id}"

    assert await sandbox.ask("GET", path) == (404, {"error": f"Request {request_id} not found"})
    assert (await sandbox.ask("GET", path))[0] == 404
    assert (await sandbox.ask("GET", f"{path}/status"))[0] == 200
    sandbox.clock.ahead_seconds += 51
    assert (await sandbox.ask("GET", path))[0] == 200


async def test_record_expired_forgets_a_job_that_runs_on_and_is_billed(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(record_expired={"count": 1})
    request_id = await sandbox.submit()

    for path in ("/v2/requests/{}", "/v2/requests/{}/status", "/v1/requests/{}"):
        assert (await sandbox.ask("GET", path.format(request_id)))[0] == 404
    assert (await sandbox.settled_bill())["total"]["completed"] == 1
    code, row = await sandbox.ask("GET", f"/inference-request/request-history/{request_id}")
    assert (code, row["model_status"]) == (200, "COMPLETED")
    assert (await sandbox.session.get(row["generation_url"])).status == 200


@pytest.mark.parametrize("status", [422, 200])
async def test_failed_is_told_under_either_status_and_not_billed(
    sandbox: RunningSandbox, status: int
) -> None:
    await sandbox.set_faults(failed={"count": 1, "status": status, "error": "CUDA out of memory"})
    request_id = await sandbox.submit()
    code, body = await sandbox.ended(request_id)
    result_code, result = await sandbox.ask("GET", f"/v2/requests/{request_id}")

    assert (code, body["status"], body["error"]) == (status, "FAILED", "CUDA out of memory")
    assert (result_code, result["error"]) == (status, "CUDA out of memory")
    assert (await sandbox.bill())["total"]["cost_micros"] == 0
    assert await sandbox.credits() == 1000


async def test_moderation_fails_once_and_passes_on_retry(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(moderation={"probability": 1})
    bodies = [(await sandbox.ended(await sandbox.submit(SMALL | {"seed": seed})))[1] for seed in (1, 1, 2, 1)]

    assert [body["status"] for body in bodies] == ["FAILED", "COMPLETED", "FAILED", "COMPLETED"]
    assert bodies[0]["error"] == "content_policy_violation"


async def test_want_of_credits_on_v2_is_402_or_406(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("poor", "SG_poor", 0.001)
    key = {"x-api-key": "SG_poor"}
    observed, _ = await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL, headers=key)
    await sandbox.set_faults(insufficient_credits_as_406={"probability": 1})
    documented, _ = await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL, headers=key)

    assert (observed, documented) == (402, 406)
    assert (await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL))[0] == 200


async def test_cold_start_keeps_a_job_queued(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(cold_start={"count": 1, "seconds": 600})
    cold, warm = await sandbox.submit(), await sandbox.submit()

    await sandbox.ended(warm)
    _, body = await sandbox.ask("GET", f"/v2/requests/{cold}/status")
    assert body["status"] == "QUEUED"


async def test_a_cold_start_is_queue_time_and_costs_nothing(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(cold_start={"count": 1, "seconds": 0.2})
    record = await sandbox.result()

    assert record["metrics"]["queue_time"] >= 0.2
    assert record["metrics"]["cost"] == 0.004


async def test_different_bytes_for_equal_seeds(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(different_bytes={"probability": 1})
    videos = {await _video(sandbox, await sandbox.result()) for _ in range(2)}

    assert len(videos) == 2


async def test_wrong_size_is_half_of_what_was_asked_for(sandbox: RunningSandbox, tmp_path: Path) -> None:
    await sandbox.set_faults(wrong_size={"count": 1})
    assert await _size(sandbox, SMALL, tmp_path) == (128, 128, 9)
    assert await _size(sandbox, SMALL, tmp_path) == (256, 256, 9)


async def test_off_grid_is_snapped_or_exact_or_rejected(sandbox: RunningSandbox, tmp_path: Path) -> None:
    beside = PAGE | {"width": 300, "height": 256, "num_frames": 13}
    assert await _size(sandbox, beside, tmp_path) == (288, 256, 9)

    await sandbox.set_faults(off_grid={"mode": "exact"})
    assert await _size(sandbox, beside, tmp_path) == (300, 256, 13)

    await sandbox.set_faults(off_grid={"mode": "reject"})
    _, body = await sandbox.ended(await sandbox.submit(beside))
    assert body["status"] == "FAILED"
    assert "divisible by 32" in body["error"]
    assert await _size(sandbox, SMALL, tmp_path) == (256, 256, 9), "what is on the grid passes"


async def test_cost_missing_is_billed_all_the_same(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(cost_missing={"count": 2})
    record = await sandbox.result()
    async with sandbox.session.post(f"{sandbox.url}/v1/{MODEL}", json=SMALL) as response:
        assert "x-cost" not in response.headers

    assert "cost" not in record["metrics"]
    assert (await sandbox.bill())["total"]["cost_micros"] == 2 * SMALL_MICROS


async def test_history_lag_hides_a_job_from_the_history(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(history_lag={"count": 1, "seconds": 90})
    request_id = await sandbox.submit()
    await sandbox.ended(request_id)
    path = "/inference-request/request-history"

    assert (await sandbox.ask("GET", path))[1]["total"] == 0
    assert (await sandbox.ask("GET", f"{path}/{request_id}"))[0] == 404
    sandbox.clock.ahead_seconds += 91
    assert (await sandbox.ask("GET", path))[1]["total"] == 1
    assert (await sandbox.ask("GET", f"{path}/{request_id}"))[0] == 200


async def test_request_ids_may_be_hexadecimal(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(hex_request_id={"count": 1})
    request_id = await sandbox.submit()

    assert re.fullmatch(r"[0-9a-f]{32}", request_id)
    assert (await sandbox.ended(request_id))[0] == 200


async def test_output_is_a_list_or_an_object(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(output_as_list={"count": 1})
    record = await sandbox.result()
    assert record["output"] == [record["video"]["url"]]

    await sandbox.set_faults(output_as_object={"count": 1})
    record = await sandbox.result()
    assert record["output"] == {"url": record["video"]["url"]}


async def test_result_urls_may_point_to_another_host(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(foreign_result_host={"count": 1, "host": "localhost"})
    record = await sandbox.result()

    assert record["output"] == record["video"]["url"]
    assert record["output"].startswith(sandbox.url.replace("127.0.0.1", "localhost") + "/generations/")


async def test_json_instead_of_media_is_billed(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(json_instead_of_media={"count": 1})
    async with sandbox.session.post(f"{sandbox.url}/v1/{MODEL}", json=SMALL) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        assert response.headers["x-cost"] == "0.004"
        assert "http" not in json.dumps(await response.json())

    assert (await sandbox.bill())["total"]["cost_micros"] == SMALL_MICROS


async def test_a_download_is_truncated_though_its_full_length_is_announced(sandbox: RunningSandbox) -> None:
    record = await sandbox.result()
    whole = await _video(sandbox, record)
    await sandbox.set_faults(download_truncated={"count": 1, "fraction": 0.4})

    async with sandbox.session.get(record["output"]) as response:
        assert response.headers["content-length"] == str(len(whole))
        came = bytearray()
        with pytest.raises(aiohttp.ClientPayloadError):
            await _collect(response, came)
    assert 0 < len(came) <= 0.4 * len(whole)

    rest = {"Range": f"bytes={len(came)}-"}
    async with sandbox.session.get(record["output"], headers=rest) as response:
        assert response.status == 206
        assert bytes(came) + await response.read() == whole


@pytest.mark.parametrize("at", [0, 0.5, 1])
async def test_a_download_has_one_wrong_byte(sandbox: RunningSandbox, at: float) -> None:
    record = await sandbox.result()
    whole = await _video(sandbox, record)
    await sandbox.set_faults(download_corrupted={"count": 1, "at": at})
    corrupted = await _video(sandbox, record)

    wrong = [place for place, (is_, was) in enumerate(zip(corrupted, whole, strict=True)) if is_ != was]
    assert wrong == [min(int(at * len(whole)), len(whole) - 1)]
    assert await _video(sandbox, record) == whole


async def test_a_slow_download_comes_in_pieces_and_whole(sandbox: RunningSandbox) -> None:
    record = await sandbox.result()
    whole = await _video(sandbox, record)
    await sandbox.set_faults(download_slow={"seconds": 0.2})
    async with sandbox.session.get(record["output"]) as response:
        pieces = [chunk async for chunk in response.content.iter_any()]
    async with sandbox.session.get(record["output"], headers={"Range": "bytes=-100"}) as response:
        assert (response.status, await response.read()) == (206, whole[-100:])
        assert response.headers["content-range"] == f"bytes {len(whole) - 100}-{len(whole) - 1}/{len(whole)}"

    assert len(pieces) > 1
    assert b"".join(pieces) == whole


@pytest.mark.parametrize("status", [404, 403])
async def test_a_file_is_gone_before_its_time(sandbox: RunningSandbox, status: int) -> None:
    record = await sandbox.result()
    await sandbox.set_faults(file_gone={"count": 1, "status": status})
    codes = [(await sandbox.session.get(record["output"])).status for _ in range(2)]

    assert codes == [status, 200]


async def _collect(response: aiohttp.ClientResponse, into: bytearray) -> None:
    async for chunk in response.content.iter_any():
        into += chunk


async def _video(sandbox: RunningSandbox, record: Any) -> bytes:
    async with sandbox.session.get(record["output"]) as response:
        return await response.read()


async def _size(sandbox: RunningSandbox, body: dict[str, Any], tmp_path: Path) -> tuple[int, int, int]:
    film = tmp_path / "film.mp4"
    film.write_bytes(await _video(sandbox, await sandbox.result(body)))
    with av.open(film) as opened:
        stream = opened.streams.video[0]
        return stream.width, stream.height, sum(1 for _ in opened.decode(stream))
