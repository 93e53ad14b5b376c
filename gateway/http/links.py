"""Links to media that work without a key: signed, so that nobody can make one, and for a time."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import urlencode

from gateway.domain.clock import Clock
from gateway.domain.errors import LinkInvalid
from gateway.domain.generation import Blob
from gateway.domain.identity import Digest

_EXTENSIONS = {
    "video/mp4": "mp4",
    "video/webm": "webm",
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/ogg": "ogg",
    "audio/mp4": "m4a",
    "application/json": "json",
    "text/plain": "txt",
}
_MEDIA_TYPES = {extension: media_type for media_type, extension in reversed(_EXTENSIONS.items())}
_UNKNOWN = "bin"


class Links:
    """Makes links and checks them; `secret` is known to the gateway's own processes only."""

    def __init__(self, secret: bytes, *, lifetime_seconds: float, clock: Clock) -> None:
        self._secret = secret
        self._lifetime_seconds = lifetime_seconds
        self._clock = clock

    def path(self, blob: Blob, *, since: float) -> str:
        """The path and query of a link to `blob` that works for the configured time from `since` on.

        When half of that is over it is another one: a link that is given out has at least half of its time before it.
        """
        name = file_name(blob)
        half_seconds = self._lifetime_seconds / 2
        halves_over = max(0.0, self._clock() - since) // half_seconds
        expires = int(since + halves_over * half_seconds + self._lifetime_seconds)
        return f"/blobs/{name}?{urlencode({'expires': expires, 'signature': self._sign(name, expires)})}"

    def check(self, name: str, expires: str, signature: str) -> tuple[Digest, str]:
        """The digest and the media type that a link leads to. Raises LinkInvalid."""
        if not expires.isascii() or not expires.isdigit():
            raise LinkInvalid("This link is not whole: use it as it was given, with its query.")
        if not hmac.compare_digest(signature.encode(), self._sign(name, int(expires)).encode()):
            raise LinkInvalid(
                "This link is not whole, or was not made by this gateway: use it as it was given."
            )
        if self._clock() > int(expires):
            raise LinkInvalid("This link has run out: ask for the request again to get a new one.")
        digest, _, extension = name.partition(".")
        return Digest(digest), _MEDIA_TYPES.get(extension, "application/octet-stream")

    def _sign(self, name: str, expires: int) -> str:
        signed = hmac.new(self._secret, f"blob\n{name}\n{expires}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(signed).rstrip(b"=").decode()


def file_name(blob: Blob) -> str:
    """The blob's digest, with the extension that players look for."""
    return f"{blob.digest}.{_EXTENSIONS.get(blob.media_type.partition(';')[0].strip(), _UNKNOWN)}"
