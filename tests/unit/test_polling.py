from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from gateway.upstream.limits import Limits
from gateway.upstream.polling import Turns, pause_seconds, pauses

LIMITS = Limits(poll_first_seconds=0.25, poll_longest_seconds=10.0, poll_factor=1.25)


def _polls(expected_seconds: float, until_seconds: float) -> Iterator[float]:
    """When what usually takes so long is polled, counted from the purchase on."""
    elapsed = 0.0
    while elapsed < until_seconds:
        yield elapsed
        elapsed += pause_seconds(elapsed, expected_seconds, LIMITS)


@pytest.mark.parametrize("expected_seconds", [3.0, 12.0, 102.69, 600.0])
def test_around_the_usual_time_the_news_is_late_by_little_of_it(expected_seconds: float) -> None:
    around = [
        moment
        for moment in _polls(expected_seconds, 1.5 * expected_seconds)
        if moment >= 0.92 * expected_seconds
    ]
    latest = max(later - sooner for sooner, later in itertools.pairwise(around))

    assert latest <= max(LIMITS.poll_first_seconds, 0.015 * expected_seconds) + 1e-9


@pytest.mark.parametrize(("expected_seconds", "most"), [(12.0, 20), (102.69, 22), (600.0, 70)])
def test_until_the_usual_time_few_polls_are_made(expected_seconds: float, most: int) -> None:
    assert len(list(_polls(expected_seconds, expected_seconds))) <= most


def test_what_is_overdue_is_polled_ever_more_seldom_and_never_given_up() -> None:
    overdue = [pause_seconds(100.0 * times, 100.0, LIMITS) for times in (1.5, 2, 3, 5, 100)]

    assert overdue == sorted(overdue)
    assert overdue[0] < overdue[1]
    assert overdue[-1] == LIMITS.poll_longest_seconds


def test_no_pause_is_shorter_than_the_first_or_longer_than_the_longest() -> None:
    for expected in (0.001, 0.3, 5.0, 100.0, 10_000.0):
        for elapsed in (0.0, 0.1, 1.0, 50.0, 100.0, 9_000.0, 1e6):
            assert 0.25 <= pause_seconds(elapsed, expected, LIMITS) <= 10.0


async def test_where_nobody_knows_how_long_it_takes_the_pauses_grow_to_the_longest() -> None:
    waits = list(itertools.islice(pauses(None, 0.0, LIMITS), 40))

    # Each is shaken by a fifth.
    assert 0.2 <= waits[0] <= 0.3
    assert all(8.0 <= wait <= 12.0 for wait in waits[-10:])


async def test_what_was_bought_long_ago_is_polled_as_what_is_about_to_end() -> None:
    fresh = next(pauses(100.0, 0.0, LIMITS))
    adopted = next(pauses(100.0, 99.0, LIMITS))

    assert adopted < fresh
    assert adopted <= 1.5 * 1.2


async def test_who_can_wait_least_has_the_next_turn_and_everybody_has_one() -> None:
    turns = Turns(per_second=2000)
    served: list[float] = []

    async def ask(patience_seconds: float) -> None:
        await turns.turn(patience_seconds)
        served.append(patience_seconds)

    await turns.turn(0.0)
    async with asyncio.timeout(10):
        await asyncio.gather(*(ask(patience) for patience in (10.0, 0.5, 5.0, 1.0, 0.25)))

    assert served == [0.25, 0.5, 1.0, 5.0, 10.0]


async def test_the_patient_have_their_turn_even_if_others_never_stop_asking() -> None:
    turns = Turns(per_second=5000)
    stop = asyncio.Event()

    async def insist() -> None:
        while not stop.is_set():
            await turns.turn(0.001)

    insistent = [asyncio.create_task(insist()) for _ in range(20)]
    async with asyncio.timeout(10):
        await turns.turn(0.1)
    stop.set()
    await asyncio.gather(*insistent)


async def test_who_leaves_the_queue_keeps_nobody_from_a_turn() -> None:
    turns = Turns(per_second=1000)
    await turns.turn(0.0)
    leaving = [asyncio.create_task(turns.turn(0.0)) for _ in range(50)]
    staying = asyncio.create_task(turns.turn(1.0))
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()

    async with asyncio.timeout(10):
        await staying
        await turns.turn(0.0)


async def test_without_a_limit_nobody_waits_for_a_turn() -> None:
    turns = Turns(per_second=0)
    asked = [asyncio.create_task(turns.turn(0.0)) for _ in range(1000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert all(task.done() for task in asked)


async def test_a_turn_that_was_worth_it_does_not_count() -> None:
    # The next one would be due in a thousand seconds.
    turns = Turns(per_second=0.001)
    await turns.turn(0.0)
    waiting = [asyncio.create_task(turns.turn(1.0)) for _ in range(3)]
    await asyncio.sleep(0)

    async with asyncio.timeout(10):
        for task in waiting:
            turns.was_worth_it()
            await task
