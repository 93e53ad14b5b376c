"""One flight a key, however many callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
C = TypeVar("C")
T = TypeVar("T")


class Announcement(Generic[T]):
    """Something that is told once, to however many listen, and to nobody if nobody does.

    A task shielded from each of its listeners would do the same; ten thousand of these cost a tenth of that.
    """

    __slots__ = ("_error", "_listeners", "_told", "_value")

    def __init__(self) -> None:
        self._told = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._listeners: list[asyncio.Future[None]] = []

    @property
    def error(self) -> BaseException | None:
        """The bad news, if it was that."""
        return self._error

    def tell(self, value: T) -> None:
        """The first word counts."""
        if not self._told:
            self._value = value
            self._tell()

    @property
    def told(self) -> bool:
        """Whether it is known already, good or bad."""
        return self._told

    def fail(self, error: BaseException) -> None:
        """It is an error, which every listener raises; a CancelledError cancels them."""
        if not self._told:
            self._error = error
            self._tell()

    def _tell(self) -> None:
        self._told = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            if not listener.done():
                listener.set_result(None)

    async def heard(self) -> T:
        """What is told, once it is. Being cancelled ends the listening only."""
        if not self._told:
            listener: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._listeners.append(listener)
            try:
                await listener
            finally:
                if not self._told:
                    self._listeners.remove(listener)
        if self._error is not None:
            # Each listener's own: a traceback would grow with every one of them.
            raise self._error.with_traceback(None)
        return cast("T", self._value)


class Flight(Generic[C, T]):
    """One piece of work for many callers. It belongs to none of them: whoever leaves, it goes on."""

    def __init__(
        self, work: Callable[[Flight[C, T]], Awaitable[T]], leave: Callable[[Flight[C, T]], None]
    ) -> None:
        """`leave` is called when the work has ended, before anybody is told: who asks then takes off anew."""
        self._leave = leave
        self._cleared: Announcement[C | None] = Announcement()
        self._landed: Announcement[T] = Announcement()
        self._task = asyncio.create_task(self._run(work))
        self._task.add_done_callback(self._ended)

    def clear(self, clearance: C | None) -> None:
        """Said by the work itself: from here on, nothing can refuse those on board."""
        self._cleared.tell(clearance)

    def land(self, value: T) -> None:
        """Said by the work itself: this is what it returns, and what it still does keeps nobody waiting."""
        self.clear(None)
        self._landed.tell(value)

    @property
    def landed(self) -> bool:
        """Whether it is known how the flight ended: nobody has to wait for it any more."""
        return self._landed.told

    async def clearance(self) -> C | None:
        """Wait until the work has been cleared or has ended, and with what; raises what ended it."""
        return await self._cleared.heard()

    async def landing(self) -> T:
        """What the work brings home; it raises what the work raises. Being cancelled ends the waiting only."""
        return await self._landed.heard()

    async def _run(self, work: Callable[[Flight[C, T]], Awaitable[T]]) -> None:
        try:
            value = await work(self)
        except Exception as error:  # noqa: BLE001 -- told to the passengers, of whom there may be none
            self._leave(self)
            self._cleared.fail(error)
            self._landed.fail(error)
        else:
            self._leave(self)
            self.land(value)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            # Its passengers are told: those who wait for the clearance why, and the others by being cancelled.
            self._leave(self)
            self._cleared.fail(FlightCancelled("the work was cancelled"))
            self._landed.fail(asyncio.CancelledError())


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
        flight = Flight(work, partial(self._leave, key))
        self._flights[key] = flight
        return flight, False

    def _leave(self, key: K, flight: Flight[C, T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

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
