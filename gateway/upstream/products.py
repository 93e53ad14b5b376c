"""What a finished answer holds: where the media are, or the media themselves."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gateway.upstream.answers import parse, written

OPAQUE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Link:
    """A file to be fetched."""

    url: str


@dataclass(frozen=True, slots=True)
class Inline:
    """Media, or text, that came within the answer."""

    media_type: str
    content: bytes


Product = Link | Inline


def v2_products(result: Mapping[str, object], *, textual: bool) -> tuple[Product, ...]:
    """Everything that a v2 result says was made, the principal product first, none twice; may be empty.

    `textual`: the model makes text. Its output is then taken as it is, though it may look like an address.
    """
    output = result.get("output")
    if textual:
        return _text(output)
    # No other member: a result repeats its request, and `image` may be what was sent.
    made = [
        *_media(output),
        *(m for name in ("video", "audio", "images") for m in _media(_filed(result.get(name)))),
    ]
    return tuple(dict.fromkeys(made)) or _text(output)


def v1_products(body: object, *, textual: bool) -> tuple[Product, ...]:
    """Everything that a v1 answer in JSON holds: media only, unless the model makes text; may be empty."""
    return _text(body) if textual else tuple(dict.fromkeys(_media(body)))


def _filed(value: object) -> object:
    """`value` if it describes files, as `video` and `images` of a result do, and not just names one."""
    return value if isinstance(value, dict | list) else None


_DEEPEST = 4
_MEMBERS = (
    "output",
    "url",
    "image",
    "image_url",
    "images",
    "video",
    "video_url",
    "audio",
    "audio_url",
    "b64_json",
    "data",
)


def _media(value: object, depth: int = 0) -> Iterator[Product]:
    """The media in `value`, in all the shapes that have been seen: none of them is promised."""
    match value:
        case _ if depth > _DEEPEST:
            return
        case str():
            yield from _medium(value)
        case list():
            found = [tuple(_media(item, depth + 1)) for item in value]
            # A list with anything else in it is data, not a list of files.
            if all(found):
                yield from (product for products in found for product in products)
        case dict():
            for name in _MEMBERS:
                yield from _media(value.get(name), depth + 1)


def _medium(text: str) -> Iterator[Product]:
    if re.fullmatch(r"https?://[^\s\"<>\\^`{|}]+", text, re.IGNORECASE):
        yield Link(text)
    elif text[:5].lower() == "data:":
        if inline := _data_url(text):
            yield inline
    elif len(text) >= 64 and (content := _base64(text)) and (media_type := sniff(content)) != OPAQUE:
        yield Inline(media_type, content)


def _data_url(text: str) -> Inline | None:
    head, comma, payload = text[5:].partition(",")
    if not comma:
        return None
    media_type, *flags = head.split(";")
    content = _base64(payload) if "base64" in flags else unquote_to_bytes(payload)
    if content is None:
        return None
    return Inline(media_type.strip().lower() or sniff(content), content)


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _text(output: object) -> tuple[Product, ...]:
    if output is None or output in ("", [], {}):
        return ()
    if not isinstance(output, str):
        return (Inline("application/json", written(output).encode()),)
    is_json = isinstance(parse(output), dict | list)
    return (Inline("application/json" if is_json else "text/plain; charset=utf-8", output.encode()),)


def declared_media_type(headers: Mapping[str, str], first_bytes: bytes) -> str:
    """The Content-Type; what the bytes look like where that is missing or says nothing."""
    declared = headers.get("content-type", "").strip()
    if declared.partition(";")[0].strip().lower() in {"", OPAQUE, "binary/octet-stream"}:
        return sniff(first_bytes)
    return declared


_SIGNATURES = (
    (re.compile(rb"....ftypqt  ", re.DOTALL), "video/quicktime"),
    (re.compile(rb"....ftypM4A", re.DOTALL), "audio/mp4"),
    (re.compile(rb"....ftypavif", re.DOTALL), "image/avif"),
    (re.compile(rb"....ftyp(heic|heix|mif1)", re.DOTALL), "image/heic"),
    (re.compile(rb"....ftyp", re.DOTALL), "video/mp4"),
    (re.compile(rb"\x1aE\xdf\xa3"), "video/webm"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "audio/wav"),
    (re.compile(rb"ID3|\xff[\xfb\xf3\xf2]"), "audio/mpeg"),
    (re.compile(rb"OggS"), "audio/ogg"),
    (re.compile(rb"fLaC"), "audio/flac"),
    (re.compile(rb"glTF"), "model/gltf-binary"),
)


def sniff(first_bytes: bytes) -> str:
    """The media type that a file's first bytes give away, else `application/octet-stream`."""
    for signature, media_type in _SIGNATURES:
        if signature.match(first_bytes):
            return media_type
    return OPAQUE
