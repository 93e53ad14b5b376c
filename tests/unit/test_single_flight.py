from __future__ import annotations

import asyncio
import gc

import pytest

from gateway.generation.single_flight import Announcement, Flight, FlightCancelled, SingleFlight


class Airport:
    """Flights that land when they are told to, and a count of how many took off."""

    def __init__(self) -> None:
        self.flights: SingleFlight[str, str, str] = SingleFlight()
        self.departures = 0
        self.may_land = asyncio.Event()

    async def work(self, flight: Flight[str, str]) -> str:
        self.departures += 1
        flight.clear("cleared")
        await self.may_land.wait()
        return "landed"

    def board(self, key: str = "key") -> tuple[Flight[str, str], bool]:
        return self.flights.board(key, self.work)


@pytest.fixture
async def airport() -> Airport:
    return Airport()


async def test_everybody_who_asks_for_the_same_boards_the_same_flight(airport: Airport) -> None:
    boarded = [airport.board() for _ in range(20)]
    airport.may_land.set()

    assert [await flight.landing() for flight, _ in boarded] == ["landed"] * 20
    assert [joined for _, joined in boarded] == [False] + [True] * 19
    assert airport.departures == 1


async def test_different_keys_fly_apart(airport: Airport) -> None:
    airport.board("one")
    airport.board("two")
    airport.may_land.set()
    await asyncio.gather(airport.board("one")[0].landing(), airport.board("two")[0].landing())

    assert airport.departures == 2


async def test_the_first_caller_may_leave_and_the_others_are_served(airport: Airport) -> None:
    first = asyncio.create_task(airport.board()[0].landing())
    others = [asyncio.create_task(airport.board()[0].landing()) for _ in range(9)]
    await airport.board()[0].clearance()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    airport.may_land.set()

    assert await asyncio.gather(*others) == ["landed"] * 9
    assert airport.departures == 1


async def test_a_flight_that_everybody_has_left_lands_all_the_same(airport: Airport) -> None:
    flight, _ = airport.board()
    only = asyncio.create_task(flight.landing())
    await flight.clearance()
    only.cancel()
    airport.may_land.set()

    assert await flight.landing() == "landed"


async def test_after_a_landing_the_next_caller_takes_off_anew(airport: Airport) -> None:
    airport.may_land.set()
    await airport.board()[0].landing()
    await airport.board()[0].landing()

    assert airport.departures == 2
    await asyncio.sleep(0)
    assert len(airport.flights) == 0


async def test_what_ends_a_flight_before_its_clearance_is_told_to_all_who_wait_for_it(
    airport: Airport,
) -> None:
    async def refused(_: Flight[str, str]) -> str:
        raise LookupError("no budget")

    flight, _ = airport.flights.board("key", refused)
    for wait in (flight.clearance, flight.clearance, flight.landing):
        with pytest.raises(LookupError, match="no budget"):
            await wait()


async def test_a_flight_that_fails_for_nobody_fails_in_silence(airport: Airport) -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def broken(_: Flight[str, str]) -> str:
        raise LookupError

    flight, _ = airport.flights.board("key", broken)
    while "key" in airport.flights:
        await asyncio.sleep(0)
    del flight
    gc.collect()

    assert complaints == []


async def test_what_has_landed_is_there_for_all_while_the_work_goes_on(airport: Airport) -> None:
    may_end = asyncio.Event()

    async def lingering(flight: Flight[str, str]) -> str:
        flight.land("landed")
        await may_end.wait()
        return "never seen"

    flight, _ = airport.flights.board("key", lingering)
    assert await flight.landing() == "landed"
    late, joined = airport.flights.board("key", lingering)

    assert joined
    assert await late.clearance() is None
    assert await late.landing() == "landed"

    drained = asyncio.create_task(airport.flights.drain(grace_seconds=10))
    await asyncio.sleep(0)
    assert not drained.done()
    may_end.set()
    await drained
    assert len(airport.flights) == 0
    assert await flight.landing() == "landed"


async def test_nobody_boards_a_flight_that_has_failed(airport: Airport) -> None:
    refusals = 0

    async def refused(_: Flight[str, str]) -> str:
        nonlocal refusals
        refusals += 1
        raise LookupError("no budget")

    async def insistent() -> int:
        # Asks again within the very turn of the loop in which the flight fails.
        tries = 0
        while refusals < 3:
            tries += 1
            flight, _ = airport.flights.board("key", refused)
            with pytest.raises(LookupError):
                await flight.clearance()
        return tries

    async with asyncio.timeout(5):
        tries = await asyncio.gather(*(insistent() for _ in range(5)))

    assert max(tries) <= 3
    while "key" in airport.flights:
        await asyncio.sleep(0)


async def test_who_leaves_stops_listening_and_the_others_hear_it() -> None:
    news: Announcement[str] = Announcement()
    listening = [asyncio.create_task(news.heard()) for _ in range(3)]
    await asyncio.sleep(0)
    listening[1].cancel()
    await asyncio.sleep(0)
    assert len(news._listeners) == 2

    news.tell("the first word")
    news.tell("not another")
    news.fail(LookupError())

    heard = await asyncio.gather(*listening, news.heard(), return_exceptions=True)
    assert [heard[0], heard[2], heard[3]] == ["the first word"] * 3
    assert isinstance(heard[1], asyncio.CancelledError)
    assert news.error is None


async def test_who_is_cancelled_at_the_very_moment_of_the_news_is_cancelled() -> None:
    news: Announcement[str] = Announcement()
    listener = asyncio.create_task(news.heard())
    await asyncio.sleep(0)
    news.tell("good")
    listener.cancel()

    with pytest.raises(asyncio.CancelledError):
        await listener
    assert await news.heard() == "good"


async def test_a_flight_that_is_called_off_before_it_began_keeps_nobody_waiting(airport: Airport) -> None:
    flight, _ = airport.board()
    flight._task.cancel()

    with pytest.raises(FlightCancelled):
        await flight.clearance()
    with pytest.raises(asyncio.CancelledError):
        await flight.landing()


async def test_draining_waits_for_what_lands_in_time_and_calls_off_the_rest(airport: Airport) -> None:
    started = asyncio.Event()

    async def endless(_: Flight[str, str]) -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    soon, _ = airport.board("soon")
    never, _ = airport.flights.board("never", endless)
    await started.wait()
    airport.may_land.set()

    await airport.flights.drain(grace_seconds=0.01)

    assert await soon.landing() == "landed"
    with pytest.raises(FlightCancelled):
        await never.clearance()
    with pytest.raises(asyncio.CancelledError):
        await never.landing()
