"""How long things are kept, files above all."""

from __future__ import annotations

import base64
from typing import Any

import aiohttp
import pytest

from gateway.sandbox.job import FILE_SECONDS, RECORD_SECONDS
from tests.journeys.sandbox.running import SMALL, RunningSandbox


async def test_a_record_is_kept_for_an_hour_after_its_submit_and_its_file_for_a_week(
    sandbox: RunningSandbox,
) -> None:
    record = await sandbox.result()
    request_id = record["video"]["file_name"].removesuffix(".mp4")
    paths = (f"/v2/requests/{request_id}", f"/v2/requests/{request_id}/status", f"/v1/requests/{request_id}")

    sandbox.clock.ahead_seconds = RECORD_SECONDS - 60
    assert {(await sandbox.ask("GET", path))[0] for path in paths} == {200}
    sandbox.clock.ahead_seconds = RECORD_SECONDS + 1
    await sandbox.submit()  # when the sandbox forgets what has expired
    assert {(await sandbox.ask("GET", path))[0] for path in paths} == {404}
    assert (await sandbox.ask("GET", paths[0]))[1] == {"error": f"Request {request_id} not found"}

    sandbox.clock.ahead_seconds = FILE_SECONDS - 60
    assert (await sandbox.session.get(record["output"])).status == 200
    sandbox.clock.ahead_seconds = FILE_SECONDS + 60
    assert (await sandbox.session.get(record["output"])).status == 404
    code, row = await sandbox.ask("GET", f"/inference-request/request-history/{request_id}")
    assert (code, row["credits_deduction"]) == (200, 0.004)


async def test_a_file_is_public_and_has_ranges(sandbox: RunningSandbox) -> None:
    url = (await sandbox.result())["output"]
    async with aiohttp.ClientSession() as stranger:
        async with stranger.get(url) as response:
            whole = await response.read()
            assert (response.status, response.content_type) == (200, "video/mp4")
            assert response.headers["accept-ranges"] == "bytes"
        async with stranger.get(url, headers={"Range": "bytes=10-19"}) as response:
            assert (response.status, await response.read()) == (206, whole[10:20])
            assert response.headers["content-range"] == f"bytes 10-19/{len(whole)}"
        async with stranger.get(url, headers={"Range": f"bytes={len(whole)}-"}) as response:
            assert response.status == 416
        async with stranger.head(url) as response:
            assert (response.status, response.content_length) == (200, len(whole))


async def test_a_file_that_nobody_made_is_not_there(sandbox: RunningSandbox) -> None:
    record = await sandbox.result()
    name = record["video"]["file_name"]

    for other in (name.replace(".mp4", ".png"), name.replace(".mp4", ""), f"x{name}", "..%2Fsandbox.sqlite3"):
        assert (await sandbox.ask("GET", f"/generations/{other}"))[0] in {400, 404}


async def test_a_job_that_runs_or_failed_has_no_file(sandbox: RunningSandbox) -> None:
    await sandbox.set_faults(cold_start={"count": 1, "seconds": 600})
    running = await sandbox.submit()
    failed = await sandbox.submit({})
    await sandbox.ended(failed)

    for request_id in (running, failed):
        assert (await sandbox.ask("GET", f"/generations/{request_id}.mp4"))[0] == 404


async def test_equal_jobs_share_one_file(sandbox: RunningSandbox) -> None:
    for _ in range(3):
        await sandbox.result()
    await sandbox.result(SMALL | {"seed": 3})

    assert len(list((sandbox.directory / "files").iterdir())) == 2


async def test_an_asset_is_uploaded_and_can_be_fetched_by_anyone(sandbox: RunningSandbox) -> None:
    data_url = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
    code, answer = await sandbox.ask("POST", "/upload-asset", json={"data_urls": [data_url, data_url]})

    assert (code, answer["message"], len(set(answer["file_urls"]))) == (200, "Files uploaded successfully", 2)
    async with aiohttp.ClientSession() as stranger, stranger.get(answer["file_urls"][0]) as response:
        assert (response.content_type, await response.read()) == ("image/png", b"a picture")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data_urls": []},
        {"data_urls": "data:image/png;base64,AAAA"},
        {"data_urls": ["https://example.com/a.png"]},
        {"data_urls": ["data:image/png;base64,%%%"]},
    ],
)
async def test_what_is_no_data_url_is_not_uploaded(sandbox: RunningSandbox, body: dict[str, Any]) -> None:
    assert (await sandbox.ask("POST", "/upload-asset", json=body))[0] == 400
    assert (await sandbox.ask("GET", "/assets/..%2Fsandbox.sqlite3"))[0] in {400, 404}
