"""One flight a key, however many callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
C = TypeVar("C")
T = TypeVar("T")


class Flight(Generic[C, T]):
    """One piece of work for many callers. It belongs to none of them: whoever leaves, it goes on."""

    def __init__(self, work: Callable[[Flight[C, T]], Awaitable[T]]) -> None:
        loop = asyncio.get_running_loop()
        self._cleared: asyncio.Future[C | None] = loop.create_future()
        self._landed: asyncio.Future[T] = loop.create_future()
        self._task = asyncio.create_task(self._run(work))

    def clear(self, clearance: C | None) -> None:
        """Said by the work itself: from here on, nothing can refuse those on board."""
        if not self._cleared.done():
            self._cleared.set_result(clearance)

    def land(self, value: T) -> None:
        """Said by the work itself: this is what it returns, and what it still does keeps nobody waiting."""
        self.clear(None)
        if not self._landed.done():
            self._landed.set_result(value)

    @property
    def landed(self) -> T | None:
        """What the work has brought home; None while it is on its way, and when it brings nothing."""
        return self._landed.result() if self._landed.done() and not self.failed else None

    @property
    def failed(self) -> bool:
        """Whether it will bring nothing home."""
        return self._landed.cancelled() or (self._landed.done() and self._landed.exception() is not None)

    async def clearance(self) -> C | None:
        """Wait until the work has been cleared or has ended, and with what; raises what ended it."""
        return await asyncio.shield(self._cleared)

    async def landing(self) -> T:
        """What the work brings home; it raises what the work raises. Being cancelled ends the waiting only."""
        return await asyncio.shield(self._landed)

    async def _run(self, work: Callable[[Flight[C, T]], Awaitable[T]]) -> None:
        try:
            value = await work(self)
        except Exception as error:  # noqa: BLE001 -- told to the passengers, of whom there may be none
            self._fail(error)
        else:
            self.land(value)

    def _fail(self, error: Exception) -> None:
        for wait in (self._cleared, self._landed):
            if not wait.done():
                wait.set_exception(error)
                wait.exception()  # Retrieved here, so that a flight without passengers fails in silence.

    def _call_off(self) -> None:
        """Its passengers are told: those who wait for the clearance why, and the others by being cancelled."""
        self._landed.cancel()
        self._fail(FlightCancelled("the work was cancelled"))


class FlightCancelled(Exception):
    """The work was called off before it was cleared."""


class SingleFlight(Generic[K, C, T]):
    """The flights that are in the air, by key."""

    def __init__(self) -> None:
        self._flights: dict[K, Flight[C, T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def keys(self) -> AbstractSet[K]:
        """Of the flights that are in the air."""
        return self._flights.keys()

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def landed(self, key: K) -> T | None:
        """What a flight has brought home that is still busy with what nobody waits for; None if there is none."""
        flight = self._flights.get(key)
        return None if flight is None else flight.landed

    def board(self, key: K, work: Callable[[Flight[C, T]], Awaitable[T]]) -> tuple[Flight[C, T], bool]:
        """The flight for `key`, and whether it was already in the air; else `work` takes off.

        Decides without awaiting: between looking for a flight and taking off nobody else can run.
        """
        flight = self._flights.get(key)
        # One that has just failed is as good as gone: whoever boarded it again and again would keep it from going.
        if flight is not None and not flight.failed:
            return flight, True
        flight = Flight(work)
        self._flights[key] = flight
        flight._task.add_done_callback(partial(self._leave, key, flight))  # noqa: SLF001 -- same module
        return flight, False

    def _leave(self, key: K, flight: Flight[C, T], task: asyncio.Task[None]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if task.cancelled():
            flight._call_off()  # noqa: SLF001 -- same module

    async def drain(self, grace_seconds: float) -> None:
        """Let what is in the air land; call off what has not landed when the grace is over."""
        tasks = [flight._task for flight in self._flights.values()]  # noqa: SLF001 -- same module
        if not tasks:
            return
        _, in_the_air = await asyncio.wait(tasks, timeout=grace_seconds)
        for task in in_the_air:
            task.cancel()
        if in_the_air:
            await asyncio.wait(in_the_air)
