"""Who goes next when the upstream has only so many slots."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from gateway.domain.errors import Overloaded


class FairSlots:
    """At most `slots` pieces of work at a time; those who wait take turns by tenant, not by arrival.

    A tenant with a thousand requests and one with a single request each get every second slot. `slots` of 0 is no
    limit. When `most_waiting` already wait, the next is refused with Overloaded.
    """

    def __init__(self, *, slots: int, most_waiting: int) -> None:
        self._slots = slots
        self._most_waiting = most_waiting
        self._busy = 0
        self._waiting = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def are_free(self) -> bool:
        """Whether whoever came now would have one at once."""
        return not self._slots or self._busy < self._slots

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return self._waiting

    def place(self, tenant: str) -> int:
        """Which in the line whoever came now for this tenant would be; 0 where there is a slot at once.

        Whoever comes later for a tenant with fewer in the line may still go first.
        """
        if self.are_free:
            return 0
        own = _still_waiting(self._queues.get(tenant, ()))
        turns, goes_first = own + 1, 1
        for other, queue in self._queues.items():
            if other == tenant:
                # Those behind it have had one turn less by the time that this one's comes.
                goes_first = 0
            else:
                turns += min(_still_waiting(queue), own + goes_first)
        return turns

    def check(self) -> None:
        """Raise Overloaded if whoever came now could not even wait."""
        if not self.are_free and self._waiting >= self._most_waiting:
            raise Overloaded(
                f"The gateway already has {self._waiting} generations waiting for a slot at the upstream. "
                "Nothing was bought; try again later."
            )

    def take(self) -> bool:
        """Take a slot if one is free at once, to be given back with `give_back`; nobody who waits is passed over."""
        if not self.are_free:
            return False
        self._busy += 1
        return True

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """A slot, once it is this tenant's turn."""
        if not self.take():
            await self._turn(tenant)
        try:
            yield
        finally:
            self.give_back()

    async def _turn(self, tenant: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        self._waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The slot came at the very moment of leaving: somebody else can use it.
                self.give_back()
            raise
        finally:
            self._waiting -= 1

    def give_back(self) -> None:
        """Somebody else may have the slot now."""
        while self._queues:
            tenant, queue = self._queues.popitem(last=False)
            # Whoever has gone meanwhile takes no turn from others of its tenant.
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                continue
            turn = queue.popleft()
            if queue:
                self._queues[tenant] = queue  # To the back of the line of tenants.
            turn.set_result(None)
            return
        self._busy -= 1


def _still_waiting(queue: Iterable[asyncio.Future[None]]) -> int:
    return sum(not turn.done() for turn in queue)
