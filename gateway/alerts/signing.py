"""Signatures as Standard Webhooks has them (version 1, symmetric): who has the secret knows whose message it is."""

from __future__ import annotations

import base64
import hashlib
import hmac

PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64


class SigningSecret:
    """Signs, and is never shown: neither by `repr` nor by `str` nor by an error of this class."""

    __slots__ = ("_keys",)

    def __init__(self, text: str) -> None:
        """`whsec_` and the base64 of 24 to 64 bytes; several, with spaces between them, sign beside each other.

        So a secret is changed without a gap. ValueError says what is wrong.
        """
        self._keys = [_key(each) for each in text.split()]
        if not self._keys:
            raise ValueError("it is empty")

    def signature(self, message_id: str, timestamp: int, body: bytes) -> str:
        """The value of the header `webhook-signature`."""
        signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
        digests = (hmac.digest(key, signed, hashlib.sha256) for key in self._keys)
        return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)

    def __repr__(self) -> str:
        return "SigningSecret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not copied to anywhere")


def _key(text: str) -> bytes:
    if not text.startswith(PREFIX):
        raise ValueError(f"it does not begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise ValueError(f"what follows {PREFIX} is not base64") from None
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ValueError(f"it has {len(key)} bytes, and should have {_LEAST_BYTES} to {_MOST_BYTES}")
    return key
