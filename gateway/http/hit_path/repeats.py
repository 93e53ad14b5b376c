"""Requests that were answered from memory before, byte for byte: what their next answer takes, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from gateway.domain.identity import Digest
from gateway.http.hit_path.memory import BELIEVED_SECONDS, Balance, Hit
from gateway.http.hit_path.served import Counted, CountedByPurchase

_REPEAT_BYTES = 1500
"""What a request costs beside its own bytes: the head of its answer, marks, a place in a table."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Everything about one request that does not change from answer to answer, while its marks last."""

    marks_of: Callable[[memoryview], tuple[int, ...]]
    """Takes the marks that matter out of their page, all at once."""

    marks: tuple[int, ...]
    revision: int
    """Of the keys: whose this one is, is known as of then."""

    since: float
    until: float
    """Between which times, by the clock, the caller's credits are what is said of them."""

    good_until: float
    """By when it has to be learnt anew, monotonic."""

    digest: Digest
    made_at: float
    head: bytes
    """The template of the head: takes the request's id, the age and the date."""

    counted: Counted | CountedByPurchase
    saved_micros: int


def repeat_of(
    hit: Hit, balance: Balance, keys: tuple[int, int], revision: int, counted: Counted | CountedByPurchase
) -> Repeat:
    """What an answer that was just given will take the next time; `keys` are their place and their mark."""
    marks = (keys, *balance.marks, *hit.marks)
    blanks = (b"%b", b"%b", balance.left, b"%b") if balance.left is not None else (b"%b",) * 3
    head = hit.unlimited if balance.left is None else hit.limited
    return Repeat(
        itemgetter(*(place for place, _ in marks)),
        tuple(mark for _, mark in marks),
        revision,
        balance.since,
        balance.until,
        hit.learnt_at + BELIEVED_SECONDS,
        hit.digest,
        hit.made_at,
        # Filled in once, and still a template: what stands for a per cent sign in it has to do so once more.
        head.replace(b"%%", b"%%%%") % blanks,
        counted,
        hit.saved_micros,
    )


class Repeats(dict[bytes, Repeat]):
    """By their bytes. When they are too many all are forgotten: they are put together again as they come."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes
        self._bytes = 0

    def note(self, request: bytes, repeat: Repeat) -> None:
        """Remember what the next answer to these very bytes takes."""
        if request not in self:
            self._bytes += len(request) + _REPEAT_BYTES
            if self._bytes > self._most_bytes:
                self.clear()
                self._bytes = len(request) + _REPEAT_BYTES
        self[request] = repeat
