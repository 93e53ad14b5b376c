"""The upstream's own Python client works against the sandbox as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from segmind import SegmindClient  # type: ignore[import-untyped]  # the SDK brings no types
from segmind.exceptions import SegmindError  # type: ignore[import-untyped]  # as above
from segmind.v2 import InferenceFailed  # type: ignore[import-untyped]  # as above

from tests.journeys.sandbox.running import KEY, MODEL, SMALL, RunningSandbox


@pytest.fixture
def client(sandbox: RunningSandbox) -> Iterator[SegmindClient]:
    client = SegmindClient(api_key=KEY, base_url=f"{sandbox.url}/v1")
    yield client
    client._client.close()


async def test_it_submits_waits_and_gets_a_result(sandbox: RunningSandbox, client: SegmindClient) -> None:
    result = await asyncio.to_thread(
        lambda: client.submit_async(MODEL, **SMALL).wait(timeout=30, interval=0.01)
    )

    assert result["output"].startswith(f"{sandbox.url}/generations/")


async def test_it_runs_a_model_on_v1(client: SegmindClient) -> None:
    response = await asyncio.to_thread(lambda: client.run_sync(MODEL, **SMALL))

    assert response.content[4:8] == b"ftyp"
    assert response.headers["x-cost"] == "0.004"


@pytest.mark.parametrize("status", [422, 200])
async def test_it_understands_a_failure(sandbox: RunningSandbox, client: SegmindClient, status: int) -> None:
    await sandbox.set_faults(failed={"count": 1, "status": status, "error": "no GPU"})
    with pytest.raises(InferenceFailed, match="no GPU"):
        await asyncio.to_thread(lambda: client.submit_async(MODEL, **SMALL).wait(timeout=30, interval=0.01))


async def test_it_understands_a_refusal(client: SegmindClient) -> None:
    with pytest.raises(SegmindError, match="no model called"):
        await asyncio.to_thread(lambda: client.run_sync("nosuch-model", prompt="x"))


async def test_it_chats_with_a_text_model(client: SegmindClient) -> None:
    messages = [{"role": "user", "content": "Who are you?"}]
    answer = await asyncio.to_thread(lambda: client.chat_sync("deepseek-chat", messages=messages))

    assert "sandbox" in str(answer)
