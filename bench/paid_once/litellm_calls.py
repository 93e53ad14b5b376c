"""LiteLLM's side, run by the interpreter of LiteLLM's own environment: prints what its callers got, as one line of JSON.

python litellm_calls.py chat|video|budget UPSTREAM_URL CALLERS
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
import urllib.request
from typing import Any

# Its prices are in its package; without this it asks the network for newer ones.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


def _paid(url: str) -> int:
    with urllib.request.urlopen(f"{url}/count", timeout=10) as answer:  # noqa: S310 -- the benchmark's own upstream
        paid: int = json.load(answer)["paid"]
        return paid


async def _at_once(litellm: Any, kind: str, url: str, callers: int) -> dict[str, Any]:
    common = {"api_base": f"{url}/openai", "api_key": "none", "max_retries": 0}
    message = {"role": "user", "content": "a red fox in the snow"}

    async def ask() -> tuple[str, float]:
        began = time.monotonic()
        try:
            if kind == "chat":
                await litellm.acompletion(model="openai/any", messages=[message], seed=42, **common)
            else:
                await litellm.avideo_generation(
                    model="openai/sora-2", prompt="a red fox in the snow", seconds="4", caching=True, **common
                )
        except Exception as error:  # noqa: BLE001 -- whatever a caller of the peer gets is the result
            return type(error).__name__, time.monotonic() - began
        return "200", time.monotonic() - began

    before = _paid(url)
    answers = await asyncio.gather(*(ask() for _ in range(callers)))
    # Its cache is written by a task that the callers do not wait for.
    await asyncio.sleep(1)
    return {"answers": answers, "paid": _paid(url) - before}


def _estimates(litellm: Any) -> dict[str, Any]:
    """What it would hold of a budget for each video model that its own list of prices has."""
    reservation = importlib.import_module("litellm.proxy.spend_tracking.budget_reservation")
    videos = [name for name, facts in litellm.model_cost.items() if facts.get("mode") == "video_generation"]
    estimated = [
        reservation.estimate_request_max_cost(
            request_body={"model": name, "prompt": "a red fox in the snow", "seconds": "4"},
            route="/v1/videos",
            llm_router=None,
        )
        for name in videos
    ]
    return {"models": len(videos), "nothing": sum(not cost for cost in estimated)}


async def _main(kind: str, url: str, callers: int) -> dict[str, Any]:
    litellm: Any = importlib.import_module("litellm")
    if kind == "budget":
        return _estimates(litellm)
    caching = importlib.import_module("litellm.caching.caching")
    litellm.cache = caching.Cache(type="local")
    return {name: await _at_once(litellm, kind, url, callers) for name in ("cold", "again")}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3])))))  # noqa: T201 -- its result
