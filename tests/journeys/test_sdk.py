"""The upstream's own SDK, unchanged but for the address and the key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from segmind import InferenceFailed, InferenceTimeout, SegmindClient, SegmindError  # type: ignore[import-untyped] # it has no types

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import MODEL, PRICE_MICROS, PROMPT, House, video


@contextmanager
def _client(house: House, key: str | None = None) -> Iterator[SegmindClient]:
    client = SegmindClient(api_key=house.key if key is None else key, base_url=f"{house.url}/v1")
    try:
        yield client
    finally:
        client._client.close()


async def test_run_sync_answers_the_media(house: House) -> None:
    with _client(house) as client:
        first = await asyncio.to_thread(client.run_sync, MODEL, **video())
        second = await asyncio.to_thread(client.run_sync, MODEL, **video())

    assert first.headers["content-type"] == "video/mp4"
    assert (second.content, second.headers["x-cost"]) == (first.content, "0")
    assert len((await house.bill()).jobs) == 1


async def test_run_waits_and_answers_the_record(house: House) -> None:
    made = await house.make()
    with _client(house) as client:
        record = await asyncio.to_thread(client.run, MODEL, **video())

    assert record["status"] == "COMPLETED"
    assert (await house.get(record["output"], key="")).body == made.body


async def test_a_job_is_submitted_waited_for_and_looked_at(house: House) -> None:
    await house.hold()
    with _client(house) as client:
        job = await asyncio.to_thread(client.submit_async, MODEL, **video())
        assert (await asyncio.to_thread(job.status))["status"] in {"QUEUED", "PROCESSING"}
        with pytest.raises(InferenceTimeout) as late:
            await asyncio.to_thread(job.wait, timeout=0, interval=0.01)
        await house.let_go()
        record = await asyncio.to_thread(job.wait, interval=0.01)
        again = await asyncio.to_thread(job.result)

    assert late.value.request_id == job.request_id == record["request_id"]
    assert record["metrics"]["cost"] == 0.004
    assert again == record
    assert (await house.usage())["spent_micros"] == PRICE_MICROS


async def test_a_chat_model_is_read_as_text(house: House) -> None:
    with _client(house) as client:
        reply = await asyncio.to_thread(client.chat_sync, "deepseek-chat", prompt=PROMPT)
        queued = await asyncio.to_thread(client.chat, "deepseek-chat", prompt=PROMPT)

    assert reply.text
    assert queued.text == reply.text
    assert len((await house.bill()).jobs) == 1


async def test_a_job_that_failed_raises_the_sdks_own_error_with_the_upstreams_reason(house: House) -> None:
    await house.faults({"failed": {"error": "The GPU caught fire."}})
    with _client(house) as client:
        job = await asyncio.to_thread(client.submit_async, MODEL, **video())
        with pytest.raises(InferenceFailed) as queued:
            await asyncio.to_thread(job.wait, interval=0.01)
        with pytest.raises(SegmindError) as sync:
            await asyncio.to_thread(client.run_sync, MODEL, **video())

    assert "The GPU caught fire" in str(queued.value.detail)
    assert queued.value.status_body["status"] == "FAILED"
    assert (sync.value.status, "The GPU caught fire" in str(sync.value.detail)) == (502, True)
    assert (await house.usage())["spent_micros"] == 0


async def test_what_is_refused_raises_the_sdks_own_error_with_status_and_reason(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0, "per": "day"}]}})
    small = video()
    with _client(house) as client, _client(house, "gwk_wrong") as stranger:
        refusals = [
            (stranger, MODEL, small, 401, "invalid"),
            (client, "ltx-2-19b-t2", small, 404, MODEL),
            (client, MODEL, {"fps": 99}, 400, "prompt"),
            (client, MODEL, small, 406, "Insufficient credits"),
        ]
        for one, model, parameters, status, hint in refusals:
            for verb in (one.run_sync, one.run, one.submit_async):
                with pytest.raises(SegmindError) as refused:
                    await asyncio.to_thread(verb, model, **parameters)
                assert refused.value.status == status
                assert hint in str(refused.value.detail)
                assert json.dumps(refused.value.to_dict())
    assert (await house.bill()).jobs == []
