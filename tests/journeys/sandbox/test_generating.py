"""POST /v1/{slug} and /v2/{slug}: what a caller gets, and what he is refused."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import av
import pytest

from tests.journeys.sandbox.running import KEY, MODEL, PAGE, SMALL, RunningSandbox

LONGEST = 400


async def test_v1_answers_with_the_video_and_the_upstreams_headers(
    sandbox: RunningSandbox, tmp_path: Path
) -> None:
    async with sandbox.session.post(f"{sandbox.url}/v1/{MODEL}", json=PAGE) as response:
        body = await response.read()

    assert (response.status, response.content_type) == (200, "video/mp4")
    assert response.headers["x-cost"] == "0.416"
    assert response.headers["x-remaining-credits"] == "999.584"
    assert response.headers["x-seed-value"] == "1234567890"
    assert float(response.headers["x-generation-time"]) > 0
    assert response.headers["x-rate-limit-reset-at-utc"].endswith("Z")
    assert uuid.UUID(response.headers["x-request-id"]).version == 4
    assert response.headers["server"] == "generation-gateway-sandbox"
    assert json.loads(response.headers["x-output-metadata"]) == {
        "width": 704,
        "height": 1280,
        "frames": 121,
        "fps": 24.0,
        "size_bytes": len(body),
    }
    film = tmp_path / "film.mp4"
    film.write_bytes(body)
    with av.open(film) as opened:
        assert sum(1 for _ in opened.decode(opened.streams.video[0])) == 121
        assert (opened.streams.video[0].width, opened.streams.video[0].height) == (704, 1280)


async def test_v2_answers_at_once_with_absolute_urls_on_its_own_host(slow_sandbox: RunningSandbox) -> None:
    code, answer = await slow_sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL)

    request_id = answer["request_id"]
    assert code == 200
    assert answer == {
        "request_id": str(uuid.UUID(request_id)),
        "status": "QUEUED",
        "poll_url": f"{slow_sandbox.url}/v1/requests/{request_id}",
        "status_url": f"{slow_sandbox.url}/v2/requests/{request_id}/status",
        "response_url": f"{slow_sandbox.url}/v2/requests/{request_id}",
    }


async def test_a_public_url_is_where_all_urls_point(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path, public_url="https://media.example/sandbox/") as sandbox:
        _, answer = await sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL)
        request_id = answer["request_id"]
        await sandbox.ended(request_id)
        _, record = await sandbox.ask("GET", f"/v2/requests/{request_id}")

    assert answer["status_url"] == f"https://media.example/sandbox/v2/requests/{request_id}/status"
    assert record["output"] == f"https://media.example/sandbox/generations/{request_id}.mp4"


async def test_a_job_that_runs_is_told_with_empty_metrics(slow_sandbox: RunningSandbox) -> None:
    request_id = await slow_sandbox.submit()

    for path in (f"/v2/requests/{request_id}/status", f"/v2/requests/{request_id}"):
        assert await slow_sandbox.ask("GET", path) == (
            200,
            {
                "status": "QUEUED",
                "request_id": request_id,
                "status_url": f"{slow_sandbox.url}/v2/requests/{request_id}/status",
                "response_url": f"{slow_sandbox.url}/v2/requests/{request_id}",
                "metrics": {},
            },
        )


async def test_a_job_is_processed_after_it_was_queued(tmp_path: Path) -> None:
    # 0.08 seconds in the queue and 0.3 seconds of work.
    async with RunningSandbox(tmp_path, time_scale=0.3) as sandbox:
        request_id = await sandbox.submit()
        statuses = ["QUEUED"]
        while statuses[-1] != "COMPLETED":
            _, body = await sandbox.ask("GET", f"/v2/requests/{request_id}/status")
            if body["status"] != statuses[-1]:
                statuses.append(body["status"])

    assert statuses == ["QUEUED", "PROCESSING", "COMPLETED"]


async def test_the_result_record_has_the_upstreams_fields(sandbox: RunningSandbox) -> None:
    request_id = await sandbox.submit(SMALL | {"seed": 7})
    _, status = await sandbox.ended(request_id)
    code, record = await sandbox.ask("GET", f"/v2/requests/{request_id}")
    _, legacy = await sandbox.ask("GET", f"/v1/requests/{request_id}")

    url = f"{sandbox.url}/generations/{request_id}.mp4"
    assert code == 200
    assert set(record["metrics"]) == {
        "cost",
        "remaining_credits",
        "inference_time",
        "queue_time",
        "total_time",
    }
    assert record["metrics"]["cost"] == 0.004
    assert record["metrics"]["remaining_credits"] == 999.996
    assert record["metrics"]["total_time"] > 0
    assert status["metrics"] == record["metrics"]
    assert record | {"metrics": {}} == {
        "status": "COMPLETED",
        "error": None,
        "metrics": {},
        "video": {
            "url": url,
            "content_type": "video/mp4",
            "file_name": f"{request_id}.mp4",
            "file_size": record["video"]["file_size"],
        },
        "output": url,
        "seed": "7",
        "prompt": "a red fox",
        "timings": {},
    }
    assert legacy == record
    async with aiohttp.ClientSession() as stranger, stranger.get(url) as response:
        assert len(await response.read()) == int(record["video"]["file_size"])


async def test_equal_parameters_give_equal_bytes_and_other_seeds_others(sandbox: RunningSandbox) -> None:
    async def video(**changes: Any) -> bytes:
        record = await sandbox.result(SMALL | changes)
        async with sandbox.session.get(record["output"]) as response:
            return await response.read()

    # Left out, the seed is the documented default.
    first = await video()
    assert await video(seed=1234567890) == first
    assert await video(seed=8) != first
    assert await video(prompt="a blue fox") != first


async def test_a_seed_of_minus_one_is_drawn_anew_each_time(sandbox: RunningSandbox) -> None:
    seeds = {(await sandbox.result(SMALL | {"seed": -1}))["seed"] for _ in range(3)}

    assert len(seeds) == 3
    assert "-1" not in seeds


async def test_a_seed_without_a_documented_default_is_drawn_when_it_is_left_out(
    sandbox: RunningSandbox,
) -> None:
    seeds = {(await sandbox.result({"prompt": "a fox"}, "lyria-2"))["seed"] for _ in range(3)}

    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("model", "body", "media_type", "member"),
    [
        ("flux-schnell", {"prompt": "a fox", "width": 520, "height": 600}, "image/jpeg", "images"),
        ("bg-removal-v2", {"image": "https://example.com/a.png"}, "image/png", "images"),
        ("lyria-2", {"prompt": "rain"}, "audio/wav", "audio"),
        ("tts-eleven-labs", {"prompt": "The lamp is lit."}, "audio/mpeg", "audio"),
    ],
)
async def test_other_media_are_real_too(
    sandbox: RunningSandbox, tmp_path: Path, model: str, body: dict[str, Any], media_type: str, member: str
) -> None:
    record = await sandbox.result(body, model)
    media = record[member][0] if member == "images" else record[member]

    assert media["content_type"] == media_type
    async with sandbox.session.get(record["output"]) as response:
        assert response.content_type == media_type
        file = tmp_path / "media"
        file.write_bytes(await response.read())
    with av.open(file) as opened:
        assert list(opened.decode(opened.streams[0]))
        if "width" in body:
            assert (opened.streams.video[0].width, opened.streams.video[0].height) == (520, 600)


async def test_a_chat_is_json_on_v1_and_json_within_json_on_v2(sandbox: RunningSandbox) -> None:
    body = {"messages": [{"role": "user", "content": "Who are you?"}]}
    code, answer = await sandbox.ask("POST", "/v1/deepseek-chat", json=body)
    record = await sandbox.result(body, "deepseek-chat")

    assert code == 200
    assert "sandbox" in answer["choices"][0]["message"]["content"]
    assert json.loads(record["output"]) == answer


async def test_parameters_that_no_model_knows_are_ignored(sandbox: RunningSandbox) -> None:
    record = await sandbox.result(SMALL | {"sed": 3, "idempotency_key": "x"})

    assert record["seed"] == "1234567890"


async def test_a_form_is_as_good_as_json(sandbox: RunningSandbox) -> None:
    form = aiohttp.FormData({name: str(value) for name, value in SMALL.items()})
    async with sandbox.session.post(f"{sandbox.url}/v1/{MODEL}", data=form()) as response:
        assert response.status == 406, "a form that is not multipart"
    with aiohttp.MultipartWriter("form-data") as parts:
        for name, value in SMALL.items():
            parts.append(str(value)).set_content_disposition("form-data", name=name)
    async with sandbox.session.post(f"{sandbox.url}/v1/{MODEL}", data=parts) as response:
        assert response.status == 200, await response.text()
        assert json.loads(response.headers["x-output-metadata"])["frames"] == 9


async def test_base64_is_json_where_the_model_knows_it(sandbox: RunningSandbox) -> None:
    code, answer = await sandbox.ask(
        "POST", "/v1/fast-flux-schnell", json={"prompt": "a fox", "base64": True}
    )

    assert (code, set(answer)) == (200, {"image"})


@pytest.mark.parametrize("api", ["v1", "v2"])
async def test_what_is_wrong_is_told_in_the_upstreams_order(sandbox: RunningSandbox, api: str) -> None:
    """Each request has every fault of the ones below it, and is refused for its own."""
    await sandbox.open_account("poor", "SG_poor", 0.003, models=["ltx-2-19b-t2v", "ltx-2-fast", "kling-2.6"])
    await sandbox.set_faults(model_retired={"model": "kling-2.6"}, rate_limit={"per_minute": 1})
    url = f"/{api}/"
    poor = {"x-api-key": "SG_poor"}
    bad: dict[str, Any] = {"prompt": 3, "resolution": "8k"}

    async def refusal(model: str, **options: Any) -> tuple[int, Any]:
        return await sandbox.ask("POST", url + model, **options)

    assert await refusal("nosuch", data=b"x", headers={"x-api-key": "wrong"}) == (
        406,
        {"error": "Invalid content type"},
    )
    code, body = await refusal("nosuch", json=bad, headers={"x-api-key": "wrong"})
    assert (code, body["error"][:52]) == (401, "Unauthorized. API key is invalid or may have expired")
    code, body = await refusal("ltx-2-19b-t2", json=bad, headers=poor)
    assert (code, "ltx-2-19b-t2v" in body["error"]) == (404, True)
    assert (await refusal("kling-2.6", json=bad, headers=poor))[0] == 410
    assert (await refusal("flux-schnell", json=bad, headers=poor))[0] == 403
    no_credits = 406 if api == "v1" else 402
    code, body = await refusal("ltx-2-19b-t2v", json=SMALL, headers=poor)
    assert (code, body) == (
        no_credits,
        {"error": "Insufficient credits. You have 0.003 credits and this request needs 0.004."},
    )
    async with sandbox.session.post(sandbox.url + url + "ltx-2-19b-t2v", json=bad, headers=poor) as response:
        assert response.status == 429
        assert response.headers["x-rate-limit-reset-at-utc"].endswith("Z")
        assert "retry-after" not in response.headers
        assert (await response.json())["error"] == "rate_limit_exceeded"
    await sandbox.set_faults(rate_limit={})
    code, body = await refusal("ltx-2-fast", json=bad, headers=poor)
    assert (code, "8k" in body["error"]) == (406, True)
    assert (await sandbox.bill())["jobs"] == []


async def test_without_a_key_nothing_is_told(sandbox: RunningSandbox) -> None:
    paths = ("/v2/requests/x", "/v2/requests/x/status", "/v1/requests/x", "/v1/get-user-credits")
    async with aiohttp.ClientSession() as stranger:
        for path in (*paths, "/inference-request/request-history", "/inference-request/request-history/x"):
            async with stranger.get(sandbox.url + path) as response:
                assert response.status == 401
                assert await response.json() == {"error": "Missing Authorization or x-api-key in header"}
        async with stranger.get(
            f"{sandbox.url}/v1/get-user-credits", headers={"Authorization": f"Bearer {KEY}"}
        ) as response:
            assert response.status == 401, "a bearer token is no key"


async def test_a_key_of_odd_bytes_is_a_wrong_key(sandbox: RunningSandbox) -> None:
    reader, writer = await asyncio.open_connection(*sandbox.url.removeprefix("http://").split(":"))
    writer.write(
        b"GET /v1/get-user-credits HTTP/1.1\r\nhost: x\r\nx-api-key: \xff\xfe\r\nconnection: close\r\n\r\n"
    )

    assert b" 401 " in await reader.readline()
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_the_wrong_verb_is_answered_in_html(sandbox: RunningSandbox) -> None:
    async with sandbox.session.get(f"{sandbox.url}/v1/{MODEL}") as response:
        assert (response.status, response.content_type) == (405, "text/html")
        assert response.headers["server"] == "generation-gateway-sandbox"


async def test_an_unknown_address_is_a_bad_request(sandbox: RunningSandbox) -> None:
    assert (await sandbox.ask("GET", "/openapi.json"))[0] == 400


async def test_an_unknown_request_is_not_found(sandbox: RunningSandbox) -> None:
    assert await sandbox.ask("GET", "/v2/requests/abc/status") == (404, {"error": "Request abc not found"})
    assert await sandbox.ask("GET", "/v2/requests/abc") == (404, {"error": "Request abc not found"})
    code, body = await sandbox.ask("GET", "/v1/requests/abc")
    assert (code, body["error"]) == (404, "Output for this request ID abc Not Found")


async def test_a_request_is_its_accounts_own(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("other", "SG_other", 1)
    request_id = await sandbox.submit()

    for path in ("/v2/requests/{}", "/v2/requests/{}/status", "/inference-request/request-history/{}"):
        code, _ = await sandbox.ask("GET", path.format(request_id), headers={"x-api-key": "SG_other"})
        assert code == 404


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"seed": NaN}', b'"text"', b'{"a":' + b"[" * 99 + b"]" * 99 + b"}"]
)
async def test_what_is_no_json_object_is_a_bad_request(sandbox: RunningSandbox, body: bytes) -> None:
    code, answer = await sandbox.ask(
        "POST", f"/v2/{MODEL}", data=body, headers={"content-type": "application/json"}
    )

    assert (code, set(answer)) == (400, {"error"})


@pytest.mark.parametrize("body", [{}, {"prompt": 3}, {"prompt": ""}, {"prompt": None}])
async def test_a_missing_field_is_refused_on_v1_and_fails_on_v2(
    sandbox: RunningSandbox, body: dict[str, Any]
) -> None:
    error = "Prompt is Mandatory and must be string"

    assert await sandbox.ask("POST", f"/v1/{MODEL}", json=body) == (400, {"error": error})

    request_id = await sandbox.submit(body)
    code, status = await sandbox.ended(request_id)
    assert (code, status["status"], status["error"]) == (422, "FAILED", error)
    assert "cost" not in status["metrics"]
    assert (await sandbox.ask("GET", f"/v2/requests/{request_id}"))[0] == 422


@pytest.mark.parametrize(
    "wrong",
    [{"fps": 60}, {"num_frames": LONGEST + 1}, {"width": 2000}, {"width": "wide"}, {"guidance_scale": 0}],
)
async def test_an_impossible_value_reaches_the_model_and_dies_there(
    sandbox: RunningSandbox, wrong: dict[str, Any]
) -> None:
    code, answer = await sandbox.ask("POST", f"/v1/{MODEL}", json=SMALL | wrong)
    assert (code, set(answer)) == (500, {"error"})

    code, status = await sandbox.ended(await sandbox.submit(SMALL | wrong))
    assert (code, status["status"]) == (422, "FAILED")
    assert (await sandbox.bill())["total"] == {
        "jobs": 2,
        "running": 0,
        "completed": 0,
        "failed": 2,
        "cost_micros": 0,
        "cost_usd": 0.0,
    }
