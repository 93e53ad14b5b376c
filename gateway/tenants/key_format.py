"""What a key looks like: a prefix by which scanners know it, 192 random bits, a checksum that finds a typo."""

from __future__ import annotations

import hashlib
import secrets
import zlib

PREFIX = "gwk_"

_RANDOM_BYTES = 24
_BODY_LENGTH = 33
_CHECKSUM_LENGTH = 6
_HINT_LENGTH = len(PREFIX) + 8
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def made() -> str:
    """A new key."""
    body = _base62(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _BODY_LENGTH)
    return f"{PREFIX}{body}{_checksum(body)}"


def hint(key: str) -> str:
    """Its first characters, by which its owner recognises it."""
    return key[:_HINT_LENGTH]


def hashed(key: str) -> bytes:
    """What is kept of it."""
    # 192 random bits cannot be guessed, so a fast hash keeps them: a slow one would only slow us.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def hash_text(key: str) -> str:
    """What is kept of it, as it is written down where keys are declared."""
    return f"sha256:{hashed(key).hex()}"


def is_well_formed(key: str) -> bool:
    """Whether it begins and is as long as a key, and its checksum fits."""
    if not key.startswith(PREFIX):
        return False
    body, checksum = key[len(PREFIX) : -_CHECKSUM_LENGTH], key[-_CHECKSUM_LENGTH:]
    return len(body) == _BODY_LENGTH and checksum == _checksum(body)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(f"{PREFIX}{body}".encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits.rjust(length, _ALPHABET[0])
