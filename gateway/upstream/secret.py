"""A key that is used and never shown."""

from __future__ import annotations


class Secret:
    """Holds the upstream's key; neither `repr` nor `str` nor an error of this class shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """White space around the key (a file's last line break) is left out; ValueError if it can be no header."""
        stripped = value.strip()
        if not stripped or not all("!" <= character <= "~" for character in stripped):
            raise ValueError("the key is empty or holds characters that no key has")
        self._value = stripped

    def reveal(self) -> str:
        """The key itself; only `wire.py` has a use for it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not copied to anywhere")
