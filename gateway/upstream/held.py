"""v1 answers that wait, open, for somebody to read them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.domain.identity import Ticket
from gateway.upstream.calls import OpenAnswer


@dataclass(frozen=True, slots=True)
class _Held:
    response: OpenAnswer
    expiry: asyncio.TimerHandle


class HeldAnswers:
    """Each is taken once, or closed: when its time is up, or at the end."""

    def __init__(self, *, held_seconds: float) -> None:
        self._held_seconds = held_seconds
        self._by_ticket: dict[Ticket, _Held] = {}

    def keep(self, ticket: Ticket, response: OpenAnswer) -> None:
        self._drop(ticket)
        expiry = asyncio.get_running_loop().call_later(self._held_seconds, self._drop, ticket)
        self._by_ticket[ticket] = _Held(response, expiry)

    def take(self, ticket: Ticket) -> OpenAnswer | None:
        """The ticket's answer, from now on the taker's to close; None if there is none, or not any more."""
        held = self._by_ticket.pop(ticket, None)
        if held is None:
            return None
        held.expiry.cancel()
        return held.response

    def close(self) -> None:
        for ticket in list(self._by_ticket):
            self._drop(ticket)

    def _drop(self, ticket: Ticket) -> None:
        if response := self.take(ticket):
            response.close()
