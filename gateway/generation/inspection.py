"""Whether a file is wholly what its media type says, and near what was asked for.

Three looks, each dearer than the one before: at the structure from outside (is it whole, or an error page?), at the first and
the last picture (can they be decoded?), and at what these show (the size, the length, the sound that were promised?).
Between the two pictures a byte may be another without being seen; the digest guards the bytes from here on.
"""

from __future__ import annotations

import codecs
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from gateway.domain.errors import ResultBroken
from gateway.domain.expectation import Expectation
from gateway.generation.expectations import Seen, differences

_HEAD_BYTES = 512
_READ_BYTES = 1 << 20
_MOST_PARTS = 1_000_000
_MOST_PADDING_BYTES = 1 << 16
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)  # written by encoders that could not seek back


def inspect(path: Path, media_type: str, expectation: Expectation | None = None) -> None:
    """Raise ResultBroken, with a sentence that says what is wrong, if the file is not what it should be.

    It has to be wholly a `media_type`; the first picture of an image and the first and the last of a video have to be
    decodable, and near `expectation` in size, length and sound. What cannot be looked at is not held against it: a media type
    that is not known here is only asked to be something, and a codec that this build cannot decode is only walked.

    Blocks, for some tens of milliseconds: to be called in a thread. Reads headers and seeks over the rest where the
    format lets it (MP4, WAV, Ogg), then what it decodes: of a video, from its last key frame on.
    """
    essence = media_type.partition(";")[0].strip().lower()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ResultBroken(f"The file is empty; {essence or 'something'} was expected.")
        try:
            _refuse_error_page(file, essence)
            _check_for(essence)(file, size)
            seen = _look(path, essence)
        except _Flaw as flaw:
            raise ResultBroken(f"This is not a whole {essence}: {flaw}.") from flaw
    if expectation is not None and (differing := "; ".join(differences(expectation, seen))):
        raise ResultBroken(f"This is not the {essence} that was asked for: {differing}.")


def _look(path: Path, essence: str) -> Seen:
    if not essence.startswith(("video/", "image/")):
        return Seen()
    from gateway.generation import decoding  # noqa: PLC0415 -- loads FFmpeg: not for each command and each start

    try:
        return decoding.look(path, essence)
    except decoding.Undecodable as undecodable:
        raise _Flaw(str(undecodable)) from undecodable


class _Flaw(Exception):
    """What is wrong, as half a sentence."""


_Check = Callable[[BinaryIO, int], None]
"""Raises _Flaw for what is wrong with a file that is so many bytes long and not empty."""


def _check_for(essence: str) -> _Check:
    if essence in _CHECKS:
        return _CHECKS[essence]
    if essence.endswith("+json"):
        return _json
    if essence.startswith("text/"):
        return _text
    return _anything


def _refuse_error_page(file: BinaryIO, essence: str) -> None:
    """Recognise what servers and proxies send in place of media, often under a status that says all is well."""
    kind = essence.partition("/")[0]
    if kind not in ("video", "image", "audio", "font", "model") or essence.endswith(("+xml", "+json")):
        return
    file.seek(0)
    head = file.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise _Flaw("it is an HTML page")
    if head.startswith(b"<?xml"):
        raise _Flaw("it is an XML document")
    if re.match(rb'\{\s*["}]|\[\s*[\[\]{"]', head):
        raise _Flaw("it is a JSON document")


def _read(file: BinaryIO, offset: int, length: int, what: str) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise _Flaw(f"it ends within {what}, after {offset + len(data)} bytes")
    return data


def _anything(_file: BinaryIO, _size: int) -> None:
    """Not empty, and that is all that can be said."""


def _mp4(file: BinaryIO, size: int) -> None:
    """Walk the outermost boxes: they have to fill the file to its last byte. Players and probes don't look."""
    kinds: set[bytes] = set()
    for offset, kind, length in _mp4_boxes(file, size):
        if not kinds and not kind.isalnum():
            raise _Flaw("it does not begin with an MP4 box")
        if offset + length > size:
            raise _Flaw(
                f"it is cut short: the {_name(kind)} box needs {offset + length} bytes, and there are {size}"
            )
        if kind == b"mdat" and length <= 16:
            continue  # a placeholder that nothing was written into
        kinds.add(kind)
    missing = [kind.decode() for kind in (b"ftyp", b"moov", b"mdat") if kind not in kinds]
    if missing:
        raise _Flaw(f"there is no {' and no '.join(missing)} box in it")


def _mp4_boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int]]:
    offset = 0
    for _ in range(_MOST_PARTS):
        if offset >= size:
            return
        length, kind = struct.unpack(">I4s", _read(file, offset, 8, "a box header"))
        header = 8
        if length == 1:
            (length,) = struct.unpack(">Q", _read(file, offset + 8, 8, "a box header"))
            header = 16
        elif length == 0:
            length = size - offset  # to the end of the file
        if length < header:
            raise _Flaw(f"the {_name(kind)} box at {offset} claims to be {length} bytes long")
        yield offset, kind, length
        offset += length
    raise _Flaw("it has more boxes than any video")


def _name(kind: bytes) -> str:
    return kind.decode() if kind.isalnum() else kind.hex()


def _png(file: BinaryIO, size: int) -> None:
    if _read(file, 0, 8, "its signature") != b"\x89PNG\r\n\x1a\n":
        raise _Flaw("it does not begin with the PNG signature")
    offset, kinds = 8, set[bytes]()
    while b"IEND" not in kinds:
        length, kind = struct.unpack(">I4s", _read(file, offset, 8, "a chunk header"))
        if offset + 12 + length > size:
            raise _Flaw(f"it is cut short within its {_name(kind)} chunk")
        content = _read(file, offset + 8, length, "a chunk")
        (checksum,) = struct.unpack(">I", _read(file, offset + 8 + length, 4, "a checksum"))
        if zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise _Flaw(f"the checksum of its {_name(kind)} chunk at {offset} is wrong")
        if not kinds and kind != b"IHDR":
            raise _Flaw("its first chunk is not IHDR")
        kinds.add(kind)
        offset += 12 + length
    if b"IDAT" not in kinds:
        raise _Flaw("there is no IDAT chunk in it")
    if offset != size:
        raise _Flaw(f"{size - offset} bytes follow its end")


def _jpeg(file: BinaryIO, _size: int) -> None:
    file.seek(0)
    data = file.read()
    if not data.startswith(b"\xff\xd8\xff"):
        raise _Flaw("it does not begin with a JPEG start marker")
    offset, scanned = 2, False
    # Segments say how long they are, so the end marker of a thumbnail inside one is not taken for ours. Bytes after our
    # end marker are let be: cameras and encoders put second pictures there.
    while (marker := _JPEG_MARKER.match(data, offset)) is not None:
        kind, offset = marker[1][0], marker.end()
        if kind == 0xD9:
            if not scanned:
                raise _Flaw("there is no picture before its end marker")
            return
        length = int.from_bytes(data[offset : offset + 2], "big")
        if length < 2 or offset + length > len(data):
            break
        offset += length
        if kind == 0xDA:
            scanned = True
            following = _JPEG_AFTER_SCAN.search(data, offset)
            if following is None:
                break
            offset = following.start()
    raise _Flaw(
        f"it is cut short or broken after {min(offset, len(data))} of {len(data)} bytes: no end marker"
    )


_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_JPEG_AFTER_SCAN = re.compile(
    rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL
)  # neither a stuffed byte nor a restart


def _gif(file: BinaryIO, _size: int) -> None:
    head = _read(file, 0, 13, "its header")
    if head[:6] not in (b"GIF87a", b"GIF89a"):
        raise _Flaw("it does not begin with the GIF signature")
    offset, frames = 13 + _gif_palette_bytes(head[10]), 0
    while (kind := _read(file, offset, 1, "a block")) != b"\x3b":
        if kind == b"\x21":  # an extension: its label, then sub-blocks
            offset += 2
        elif kind == b"\x2c":  # a frame: its descriptor, its palette, a byte of LZW, then sub-blocks
            offset += 11 + _gif_palette_bytes(_read(file, offset, 10, "a frame")[9])
            frames += 1
        else:
            raise _Flaw(f"there is an unknown block at {offset}")
        while (length := _read(file, offset, 1, "a block")[0]) != 0:
            offset += 1 + length
        offset += 1
    if not frames:
        raise _Flaw("there is no frame in it")


def _gif_palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(file: BinaryIO, size: int) -> None:
    chunks = _riff(file, size, b"WEBP")
    if not chunks & {b"VP8 ", b"VP8L", b"ANMF"}:
        raise _Flaw("there is no picture in it")


def _wav(file: BinaryIO, size: int) -> None:
    missing = [kind.decode().strip() for kind in (b"fmt ", b"data") if kind not in _riff(file, size, b"WAVE")]
    if missing:
        raise _Flaw(f"there is no {' and no '.join(missing)} chunk in it")


def _riff(file: BinaryIO, size: int, form: bytes) -> set[bytes]:
    """The kinds of its chunks."""
    signature, length, found = struct.unpack("<4sI4s", _read(file, 0, 12, "its header"))
    if signature not in (b"RIFF", b"RF64") or found != form:
        raise _Flaw(f"it does not begin with a RIFF header of {form.decode()}")
    if length not in _UNKNOWN_LENGTHS and 8 + length > size:
        raise _Flaw(f"it is cut short: {8 + length} bytes were announced, and there are {size}")
    end = size if length in _UNKNOWN_LENGTHS else 8 + length
    kinds: set[bytes] = set()
    offset = 12
    while offset + 8 <= end:
        kind, length = struct.unpack("<4sI", _read(file, offset, 8, "a chunk header"))
        kinds.add(kind)
        if kind == b"data" and length in _UNKNOWN_LENGTHS:
            break
        if offset + 8 + length > end:
            raise _Flaw(f"it is cut short within its {_name(kind.strip())} chunk")
        offset += 8 + length + (length & 1)
    return kinds


def _mp3(file: BinaryIO, size: int) -> None:
    offset, head = 0, _read(file, 0, min(10, size), "its header")
    if head.startswith(b"ID3"):
        sizes = _read(file, 6, 4, "its ID3 tag")
        offset = 10 + (sizes[0] << 21 | sizes[1] << 14 | sizes[2] << 7 | sizes[3])  # seven bits a byte
        if offset >= size:
            raise _Flaw(f"it is cut short: its ID3 tag alone needs {offset} bytes, and there are {size}")
        file.seek(offset)
        after = file.read(_MOST_PADDING_BYTES)
        offset += len(after) - len(after.lstrip(b"\x00"))
    sync = _read(file, offset, 2, "its first frame")
    if sync[0] != 0xFF or sync[1] & 0xE0 != 0xE0:
        raise _Flaw("there is no MPEG audio frame at its start")


def _ogg(file: BinaryIO, size: int) -> None:
    offset = 0
    for _ in range(_MOST_PARTS):
        header = _read(file, offset, 27, "a page header")
        if not header.startswith(b"OggS"):
            raise _Flaw(f"there is no Ogg page at {offset}")
        lengths = _read(file, offset + 27, header[26], "a page header")
        offset += 27 + len(lengths) + sum(lengths)
        if offset > size:
            raise _Flaw(f"it is cut short: its last page needs {offset} bytes, and there are {size}")
        if offset == size:
            return
    raise _Flaw("it has more pages than any sound")


def _json(file: BinaryIO, _size: int) -> None:
    file.seek(0)
    try:
        orjson.loads(file.read())
    except orjson.JSONDecodeError as error:
        raise _Flaw(f"it cannot be parsed at line {error.lineno}, column {error.colno}") from error


def _text(file: BinaryIO, _size: int) -> None:
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while block := file.read(_READ_BYTES):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _Flaw("it is not UTF-8") from error


_CHECKS: dict[str, _Check] = {
    "video/mp4": _mp4,
    "video/x-m4v": _mp4,
    "audio/mp4": _mp4,
    "audio/x-m4a": _mp4,
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/jpg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
    "audio/wav": _wav,
    "audio/wave": _wav,
    "audio/x-wav": _wav,
    "audio/vnd.wave": _wav,
    "audio/mpeg": _mp3,
    "audio/mp3": _mp3,
    "audio/ogg": _ogg,
    "video/ogg": _ogg,
    "application/ogg": _ogg,
    "application/json": _json,
}
