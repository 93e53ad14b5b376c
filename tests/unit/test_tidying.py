"""Work that nobody waits for: done all the same, hurried by whoever does wait, and never in the way of an end."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator

import pytest

from gateway.database.tidying import Slices, Tidying
from gateway.domain.errors import StorageUnavailable

_FOR_EVER = 3600.0


class _Work:
    """Counts its slices, and its ends."""

    def __init__(self, slices: int) -> None:
        self._slices = slices
        self.done = 0
        self.ended = 0

    def __call__(self) -> Slices:
        try:
            for _ in range(self._slices):
                yield
                self.done += 1
        finally:
            self.ended += 1


@pytest.fixture
def closing_all() -> Iterator[list[Tidying]]:
    all_: list[Tidying] = []
    yield all_
    for tidying in all_:
        tidying.close(lambda: None)


async def test_whoever_waits_has_it_start_at_once_and_done_without_a_pause(
    closing_all: list[Tidying],
) -> None:
    work = _Work(1000)
    tidying = Tidying(work, name="test", begin_after_seconds=_FOR_EVER)
    closing_all.append(tidying)
    tidying.begin()

    await tidying.settled()

    assert (work.done, work.ended) == (1000, 1)


async def test_nobody_needs_to_wait_for_it(closing_all: list[Tidying]) -> None:
    ended = threading.Event()

    def work() -> Slices:
        yield
        ended.set()

    tidying = Tidying(work, name="test", begin_after_seconds=0.0)
    closing_all.append(tidying)
    tidying.begin()

    assert await asyncio.to_thread(ended.wait, 10)
    assert not tidying.hurried


async def test_each_begin_is_one_round_and_without_one_nothing_is_waited_for(
    closing_all: list[Tidying],
) -> None:
    work = _Work(3)
    tidying = Tidying(work, name="test", begin_after_seconds=_FOR_EVER)
    closing_all.append(tidying)

    await tidying.settled()
    assert work.ended == 0

    for _ in range(3):
        tidying.begin()
    await tidying.settled()
    assert (work.done, work.ended) == (9, 3)


async def test_what_goes_wrong_is_told_to_whoever_waits_and_ends_that_round_only(
    closing_all: list[Tidying],
) -> None:
    rounds = 0

    def work() -> Slices:
        nonlocal rounds
        rounds += 1
        yield
        if rounds == 1:
            raise StorageUnavailable("The disk is full.")

    tidying = Tidying(work, name="test", begin_after_seconds=_FOR_EVER)
    closing_all.append(tidying)

    tidying.begin()
    with pytest.raises(StorageUnavailable, match="full"):
        await tidying.settled()
    tidying.begin()
    await tidying.settled()
    assert rounds == 2


async def test_a_waiter_that_is_cancelled_takes_nobody_with_it(closing_all: list[Tidying]) -> None:
    go_on = threading.Event()

    def work() -> Slices:
        yield
        go_on.wait()

    tidying = Tidying(work, name="test", begin_after_seconds=_FOR_EVER)
    closing_all.append(tidying)
    tidying.begin()

    first, second = asyncio.create_task(tidying.settled()), asyncio.create_task(tidying.settled())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    await second


def test_close_does_not_wait_for_what_has_not_begun_nor_for_a_pause() -> None:
    work = _Work(10)
    tidying = Tidying(work, name="test", begin_after_seconds=_FOR_EVER)
    tidying.begin()

    tidying.close(lambda: None)
    tidying.close(lambda: None)

    assert work.done == 0


async def test_close_ends_endless_work_between_two_slices_and_lets_it_clear_up() -> None:
    under_way = threading.Event()
    cleared_up = threading.Event()

    def endless() -> Slices:
        try:
            while True:
                under_way.set()
                yield
        finally:
            cleared_up.set()

    tidying = Tidying(endless, name="test", begin_after_seconds=0.0)
    tidying.begin()
    waiting = asyncio.create_task(tidying.settled())
    await asyncio.to_thread(under_way.wait)

    await asyncio.to_thread(tidying.close, lambda: None)

    assert cleared_up.is_set()
    await waiting  # given up, and nothing went wrong


async def test_close_interrupts_the_slice_under_way_again_and_again() -> None:
    under_way, interrupted = threading.Event(), threading.Semaphore(0)

    def work() -> Slices:
        yield
        under_way.set()
        for _ in range(3):
            interrupted.acquire()
        raise sqlite3.OperationalError("interrupted")

    tidying = Tidying(work, name="test", begin_after_seconds=0.0)
    tidying.begin()
    waiting = asyncio.create_task(tidying.settled())
    await asyncio.to_thread(under_way.wait)

    await asyncio.to_thread(tidying.close, interrupted.release)

    await waiting
