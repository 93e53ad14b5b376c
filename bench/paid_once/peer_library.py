"""LiteLLM, called as a library from an environment of its own: see install-peers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.paid_once.programs import DidNotStart, output
from bench.paid_once.scenes import CALLERS, UPSTREAM_SECONDS, USD_EACH, Answer, Bill, Seen
from bench.paid_once.upstream import counting_upstream

_CALLS = Path(__file__).with_name("litellm_calls.py")
_VERSION = "import importlib.metadata; print(importlib.metadata.version('litellm'))"


async def version(python: Path) -> str | None:
    """None where it is not installed."""
    if not os.access(python, os.X_OK):
        return None
    said = (await output(python, "-c", _VERSION)).strip()
    return said if said[:1].isdigit() and "\n" not in said else None


async def calls(python: Path, kind: str, scale: float) -> Mapping[str, Seen]:
    """`chat` or `video`: 20 identical calls at once (`cold`), and the same 20 again (`again`)."""
    async with counting_upstream(UPSTREAM_SECONDS * scale) as upstream:
        phases = await _run(python, kind, upstream.url)
    return {
        name: Seen(
            [Answer(status, status == "200", seconds) for status, seconds in phase["answers"]],
            Bill(phase["paid"], phase["paid"] * USD_EACH if kind == "video" else None),
        )
        for name, phase in phases.items()
    }


async def estimates(python: Path) -> tuple[int, int]:
    """How many video models its list of prices has, and for how many of them it would hold nothing of a budget."""
    found = await _run(python, "budget", "http://127.0.0.1:9")
    return found["models"], found["nothing"]


async def _run(python: Path, kind: str, url: str) -> Any:
    said = await output(python, _CALLS, kind, url, str(CALLERS))
    try:
        return json.loads(said.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise DidNotStart(said[-2000:]) from error
