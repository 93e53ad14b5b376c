from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.errors import Overloaded
from gateway.generation.scheduling import FairSlots


class Workshop:
    """Work that notes its turn and ends when it is told to."""

    def __init__(self, slots: FairSlots) -> None:
        self.slots = slots
        self.turns: list[str] = []
        self.at_once = 0
        self.most_at_once = 0

    async def work(self, tenant: str, until: asyncio.Event | None = None) -> None:
        async with self.slots.slot(tenant):
            self.turns.append(tenant)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if until is not None:
                await until.wait()
            else:
                await asyncio.sleep(0)
            self.at_once -= 1


async def test_no_more_work_than_slots_goes_on_at_once() -> None:
    workshop = Workshop(FairSlots(slots=3, most_waiting=100))

    await asyncio.gather(*(workshop.work("acme") for _ in range(20)))

    assert workshop.most_at_once == 3
    assert len(workshop.turns) == 20


async def test_no_slots_is_no_limit() -> None:
    workshop = Workshop(FairSlots(slots=0, most_waiting=0))
    workshop.slots.check()

    await asyncio.gather(*(workshop.work("acme") for _ in range(20)))

    assert workshop.most_at_once == 20


async def test_tenants_take_turns_however_much_one_of_them_asks_for() -> None:
    workshop = Workshop(FairSlots(slots=1, most_waiting=100))
    done = asyncio.Event()
    tasks = [asyncio.create_task(workshop.work("busy", done))]
    tasks += [asyncio.create_task(workshop.work("busy")) for _ in range(4)]
    tasks += [asyncio.create_task(workshop.work("quiet")) for _ in range(2)]
    while workshop.slots.waiting < 6:
        await asyncio.sleep(0)

    done.set()
    await asyncio.gather(*tasks)

    assert workshop.turns == ["busy", "busy", "quiet", "busy", "quiet", "busy", "busy"]


async def test_whoever_leaves_the_queue_leaves_its_turn_to_the_next() -> None:
    workshop = Workshop(FairSlots(slots=1, most_waiting=100))
    done = asyncio.Event()
    first = asyncio.create_task(workshop.work("a", done))
    leaver = asyncio.create_task(workshop.work("b"))
    stayer = asyncio.create_task(workshop.work("c"))
    while workshop.slots.waiting < 2:
        await asyncio.sleep(0)

    leaver.cancel()
    done.set()
    await asyncio.gather(first, stayer)

    assert workshop.turns == ["a", "c"]
    await workshop.work("d")


async def test_a_slot_that_comes_at_the_moment_of_leaving_is_passed_on() -> None:
    slots = FairSlots(slots=1, most_waiting=100)
    workshop = Workshop(slots)
    done = asyncio.Event()

    async def work_and_send_the_next_away() -> None:
        await workshop.work("a", done)
        # Our slot is the leaver's by now, and the leaver has not run since.
        leaver.cancel()

    first = asyncio.create_task(work_and_send_the_next_away())
    leaver = asyncio.create_task(workshop.work("b"))
    while slots.waiting < 1:
        await asyncio.sleep(0)
    done.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await leaver

    async with asyncio.timeout(5):
        await workshop.work("c")
    assert workshop.turns == ["a", "c"]


async def test_when_enough_wait_the_next_is_refused() -> None:
    workshop = Workshop(FairSlots(slots=1, most_waiting=1))
    done = asyncio.Event()
    tasks = [asyncio.create_task(workshop.work("a", done)), asyncio.create_task(workshop.work("a"))]
    while workshop.slots.waiting < 1:
        await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="1 generations waiting"):
        workshop.slots.check()

    done.set()
    await asyncio.gather(*tasks)
    workshop.slots.check()


async def test_a_free_slot_is_taken_at_once_and_nobody_who_waits_is_passed_over() -> None:
    workshop = Workshop(FairSlots(slots=1, most_waiting=100))
    assert workshop.slots.take()
    assert not workshop.slots.are_free
    waiting = asyncio.create_task(workshop.work("acme"))
    await asyncio.sleep(0)
    workshop.slots.give_back()

    # The slot is the waiting one's, whoever comes before it has begun.
    assert not workshop.slots.take()
    await waiting

    assert workshop.turns == ["acme"]
    assert workshop.slots.take()


async def test_without_a_limit_a_slot_is_always_free() -> None:
    slots = FairSlots(slots=0, most_waiting=0)

    assert all(slots.take() for _ in range(100))
    assert slots.are_free


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["come", "leave", "turn"])), max_size=30),
    st.sampled_from("abcd"),
)
async def test_the_place_that_is_told_is_the_place_that_is_had_if_nobody_else_comes(
    before: list[tuple[str, str]], tenant: str
) -> None:
    slots = FairSlots(slots=1, most_waiting=100)
    turns: list[asyncio.Task[None]] = []
    had: list[asyncio.Task[None]] = []

    async def wait(of: str) -> None:
        async with slots.slot(of):
            had.append(next(each for each in turns if each is asyncio.current_task()))
            await asyncio.Event().wait()

    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def come(of: str) -> asyncio.Task[None]:
        turns.append(asyncio.create_task(wait(of)))
        return turns[-1]

    assert slots.place(tenant) == 0
    come("a")
    await settle()
    for of, what in before:
        if what == "come":
            come(of)
        elif what == "turn":
            had[-1].cancel()
        elif waiting := [each for each in turns if each not in had and not each.done()]:
            waiting[len(of) % len(waiting)].cancel()
        await settle()
        if slots.are_free:
            come("a")
            await settle()

    place, so_far = slots.place(tenant), len(had)
    ours = come(tenant)
    await settle()
    while ours not in had:
        had[-1].cancel()
        await settle()

    assert len(had) - so_far == place
    for each in turns:
        each.cancel()
    await asyncio.gather(*turns, return_exceptions=True)


async def test_whoever_has_gone_and_is_still_in_the_line_is_not_waited_for() -> None:
    slots = FairSlots(slots=1, most_waiting=100)
    assert slots.take()
    leaver = asyncio.create_task(Workshop(slots).work("a"))
    await asyncio.sleep(0)
    assert slots.place("b") == 2

    leaver.cancel()
    await asyncio.wait([leaver])

    assert slots.place("a") == slots.place("b") == 1
