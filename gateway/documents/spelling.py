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


def remedy(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """What follows an unknown name: `, did you mean seed?`; where nothing is near `otherwise`, or all that is known."""
    names = [*known]
    if like := nearest(name, names):
        return f", did you mean {like}?"
    return (f" (known: {', '.join(names) or 'none'})") if otherwise is None else otherwise
