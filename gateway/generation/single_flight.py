"""One flight a key, however many callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
C = TypeVar("C")
T = TypeVar("T")


class Flight(Generic[C, T]):
    """One piece of work for many callers. It belongs to none of them: whoever leaves, it goes on."""

    def __init__(self, work: Callable[[Flight[C, T]], Awaitable[T]]) -> None:
        self._cleared: asyncio.Future[C | None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(work))

    def clear(self, clearance: C | None) -> None:
        """Said by the work itself: from here on, nothing can refuse those on board."""
        if not self._cleared.done():
            self._cleared.set_result(clearance)

    async def clearance(self) -> C | None:
        """Wait until the work has been cleared or has ended, and with what; raises what ended it."""
        return await asyncio.shield(self._cleared)

    async def landing(self) -> T:
        """What the work returns; it raises what the work raises. Being cancelled ends the waiting only."""
        return await asyncio.shield(self._task)

    async def _run(self, work: Callable[[Flight[C, T]], Awaitable[T]]) -> T:
        try:
            value = await work(self)
        except BaseException as error:
            if not self._cleared.done():
                # A flight that is called off was cleared by nobody; its passengers are told why, not cancelled.
                self._cleared.set_exception(
                    error if isinstance(error, Exception) else FlightCancelled("the work was cancelled")
                )
            self._cleared.exception()
            raise
        self.clear(None)
        return value


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

    def board(self, key: K, work: Callable[[Flight[C, T]], Awaitable[T]]) -> tuple[Flight[C, T], bool]:
        """The flight for `key`, and whether it was already in the air; else `work` takes off.

        Decides without awaiting: between looking for a flight and taking off nobody else can run.
        """
        flight = self._flights.get(key)
        if flight is not None:
            return flight, True
        flight = Flight(work)
        self._flights[key] = flight
        flight._task.add_done_callback(lambda task: self._land(key, task))  # noqa: SLF001 -- same module
        return flight, False

    def _land(self, key: K, task: asyncio.Task[T]) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # Retrieved here, so that a flight without passengers fails in silence.

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
