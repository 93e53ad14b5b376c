from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.journeys.running import House

OpenHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def open_house(tmp_path: Path) -> AsyncIterator[OpenHouse]:
    """Opens houses with tenants and settings of the test's own."""
    async with AsyncExitStack() as closing:
        count = 0

        async def open_one(**options: Any) -> House:
            nonlocal count
            count += 1
            return await closing.enter_async_context(House(tmp_path / f"house{count}", **options).open())

        yield open_one
    structlog.reset_defaults()


@pytest.fixture
async def house(open_house: OpenHouse) -> House:
    """One tenant, `demo`, with $25 a month."""
    return await open_house()
