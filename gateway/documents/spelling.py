"""What somebody probably meant to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 64
"""Comparing is quadratic in the length, and nobody misspells a whole paragraph."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` looks like (`sed` -> `seed`, `2K` -> `2k`); None if none does."""
    if len(name) > _LONGEST:
        return None
    folded = {each.casefold(): each for each in known if len(each) <= _LONGEST}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[close[0]] if close else None
