"""Names for requests that nobody can guess."""

from __future__ import annotations

import os

from gateway.domain.identity import RequestId

_AT_A_TIME = 256
_BYTES_EACH = 16
_FORM = b"xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx"
_LENGTH = len(_FORM)
_PLACES = [place for place, sign in enumerate(_FORM) if sign in b"xy"]
_VARIANT_AT = _FORM.index(b"y")
_TO_VARIANT = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)


class RequestIds:
    """Random UUIDs (RFC 9562, version 4), as `uuid.uuid4` makes them, at a tenth of its price."""

    def __init__(self) -> None:
        self._names = b""
        self._at = 0

    def next(self) -> RequestId:
        """The next name."""
        return RequestId(self.next_bytes().decode())

    def next_bytes(self) -> bytes:
        """The next name, in ASCII."""
        if self._at == len(self._names):
            self._names, self._at = _names(), 0
        at = self._at
        self._at = at + _LENGTH
        return self._names[at : self._at]


def _names() -> bytes:
    """So many that a digit of all of them is written at once: one by one, each takes a microsecond."""
    # One digit of each is random and not used: there stands the version.
    digits = os.urandom(_AT_A_TIME * _BYTES_EACH).hex().encode()
    names = bytearray(_FORM * _AT_A_TIME)
    for at, place in enumerate(_PLACES):
        names[place::_LENGTH] = digits[at :: 2 * _BYTES_EACH]
    names[_VARIANT_AT::_LENGTH] = names[_VARIANT_AT::_LENGTH].translate(_TO_VARIANT)
    return bytes(names)
