from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.journeys.sandbox.running import NEVER, RunningSandbox


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[RunningSandbox]:
    """One whose jobs end at once."""
    async with RunningSandbox(tmp_path / "sandbox") as running:
        yield running


@pytest.fixture
async def slow_sandbox(tmp_path: Path) -> AsyncIterator[RunningSandbox]:
    """One whose jobs run for longer than any test."""
    async with RunningSandbox(tmp_path / "sandbox", time_scale=NEVER) as running:
        yield running
