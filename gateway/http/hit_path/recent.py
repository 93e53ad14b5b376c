"""What was used lately, as far as there is room."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A bounded memory of two halves: what is new or in use is in the younger one, and when that is full, the older is forgotten.

    So whatever has been asked for while half of the room was filled is still there, and nothing is ever searched for:
    dropping the oldest key of a dict over and over would look past all those that were dropped before, each time.
    """

    def __init__(self, most: int, weigh: Callable[[K], int] = lambda _: 1) -> None:
        """`most` is what all keys together may weigh; each weighs one if nothing else is said."""
        self._most_in_a_half = most // 2
        self._weigh = weigh
        self._younger: dict[K, V] = {}
        self._older: dict[K, V] = {}
        self._weight = 0

    def get(self, key: K) -> V | None:
        """What is remembered by that name; asking for it keeps it."""
        value = self._younger.get(key)
        if value is None:
            value = self._older.get(key)
            if value is not None:
                self.note(key, value)
        return value

    def __contains__(self, key: K) -> bool:
        return key in self._younger or key in self._older

    def note(self, key: K, value: V) -> None:
        """Remember it, whatever was remembered by that name."""
        if key not in self._younger:
            self._weight += self._weigh(key)
            if self._weight > self._most_in_a_half:
                self._older, self._younger = self._younger, {}
                self._weight = self._weigh(key)
        self._younger[key] = value
