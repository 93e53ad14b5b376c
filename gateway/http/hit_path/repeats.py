"""Requests that were answered from memory before: what their next answer takes, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from gateway.domain.identity import Digest
from gateway.http.hit_path.memory import BELIEVED_SECONDS, Balance, Hit
from gateway.http.hit_path.served import Counted, CountedByPurchase

_REPEAT_BYTES = 1500
"""What a question costs beside its own bytes: the head of its answer, marks, a place in a table."""

_BYTES_OF_A_PLACE = 200
_MOST_MET = 100_000


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


Question = tuple[str, str, bytes]
"""A key, a model, and what a body says (`intake.respelled`)."""


class Repeats(dict[bytes, Repeat]):
    """By the bytes of whole requests, and by what they say: it is said in many ways, but by each client in one.

    When they are too many all are forgotten: they are put together again as they come.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.by_question: dict[Question, Repeat] = {}
        self._met: set[int] = set()
        self._most_bytes = most_bytes
        self._bytes = 0

    def note(self, question: Question, repeat: Repeat) -> None:
        """Remember what the next answer to this question takes."""
        if question not in self.by_question:
            self._make_room(len(question[2]) + _REPEAT_BYTES)
        self.by_question[question] = repeat

    def meet(self, request: bytes, repeat: Repeat) -> None:
        """`request` was answered with `repeat`: if these very bytes came before, they are likely to come again."""
        met = hash(request)
        if met in self._met:
            if request not in self:
                self._make_room(len(request) + _BYTES_OF_A_PLACE)
            self[request] = repeat
        elif len(self._met) < _MOST_MET:
            self._met.add(met)
        else:
            self._met = {met}

    def _make_room(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        if self._bytes > self._most_bytes:
            self.clear()
            self.by_question.clear()
            self._bytes = more_bytes
