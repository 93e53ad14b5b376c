from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.journeys.running import House

OpenHouse = Callable[..., Awaitable[House]]


@pytest.fixture(params=[True, False], ids=["hit path on", "hit path off"])
def hit_path(request: pytest.FixtureRequest) -> bool:
    """Every journey is made twice: with the hit path, on which a house insists, and without."""
    return bool(request.param)


@pytest.fixture
async def open_house(tmp_path: Path, hit_path: bool) -> AsyncIterator[OpenHouse]:
    """Opens houses with tenants and settings of the test's own."""
    async with AsyncExitStack() as closing:
        count = 0

        async def open_one(**options: Any) -> House:
            nonlocal count
            count += 1
            return await closing.enter_async_context(
                House(tmp_path / f"house{count}", **{"hit_path": hit_path, **options}).open()
            )

        yield open_one
    structlog.reset_defaults()


@pytest.fixture
async def house(open_house: OpenHouse) -> House:
    """One tenant, `demo`, with $25 a month."""
    return await open_house()
