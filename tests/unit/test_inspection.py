"""A file is wholly what its media type says, or the sentence says what is wrong with it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from gateway.domain.errors import ResultBroken
from gateway.generation.inspection import inspect

Problem = Callable[[bytes, str], str | None]

_FORMATS = {
    "video/mp4": "mp4",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
}
_WITHOUT_AN_END = ("audio/mpeg",)


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """What `inspect` says of these bytes; None if it finds nothing."""

    def ask(content: bytes, media_type: str) -> str | None:
        path = tmp_path / "staged"
        path.write_bytes(content)
        try:
            inspect(path, media_type)
        except ResultBroken as broken:
            return str(broken)
        return None

    return ask


@pytest.fixture(scope="module")
def media() -> dict[str, bytes]:
    """Real files, by media type, made by real encoders."""
    return {
        "video/mp4": _video("mp4", "libx264", "yuv420p"),
        "image/gif": _video("gif", "gif", "rgb8"),
        "image/png": _picture("png", "rgb24"),
        "image/jpeg": _picture("mjpeg", "yuvj420p"),
        "image/webp": _picture("libwebp", "yuv420p"),
        "audio/wav": _sound("wav", "pcm_s16le", "s16"),
        "audio/mpeg": _sound("mp3", "libmp3lame", "s16p"),
        "audio/ogg": _sound("ogg", "libopus", "s16"),
    }


@pytest.mark.parametrize("media_type", _FORMATS)
def test_a_whole_file_passes(problem: Problem, media: dict[str, bytes], media_type: str) -> None:
    assert problem(media[media_type], media_type) is None


@pytest.mark.parametrize(
    "media_type", [*_FORMATS, "application/json", "text/plain", "application/x-unheard-of", ""]
)
def test_an_empty_file_is_broken_whatever_it_should_be(problem: Problem, media_type: str) -> None:
    assert "is empty" in (problem(b"", media_type) or "")


@pytest.mark.parametrize("missing_bytes", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("media_type", [kind for kind in _FORMATS if kind not in _WITHOUT_AN_END])
def test_a_file_that_was_cut_short_is_broken(
    problem: Problem, media: dict[str, bytes], media_type: str, missing_bytes: int
) -> None:
    whole = media[media_type]

    assert problem(whole[: -min(missing_bytes, len(whole) - 1)], media_type)


@pytest.mark.parametrize("media_type", [kind for kind in _FORMATS if kind not in _WITHOUT_AN_END])
def test_a_file_cut_anywhere_is_broken(problem: Problem, media: dict[str, bytes], media_type: str) -> None:
    whole = media[media_type]
    step = max(1, len(whole) // 150)

    passed = [length for length in range(1, len(whole), step) if problem(whole[:length], media_type) is None]

    assert passed == []


@pytest.mark.parametrize("media_type", _FORMATS)
@pytest.mark.parametrize(
    ("page", "said"),
    [
        (b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>", "it is an HTML page"),
        (b"\xef\xbb\xbf\r\n  <HTML><head><title>Error</title></head></HTML>", "it is an HTML page"),
        (b'{"error": "not found"}', "it is a JSON document"),
        (b'[{"error": 1}]', "it is a JSON document"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is an XML document"),
    ],
)
def test_an_error_page_is_recognised_and_said(
    problem: Problem, media_type: str, page: bytes, said: str
) -> None:
    assert problem(page, media_type) == f"This is not a whole {media_type}: {said}."


@pytest.mark.parametrize("media_type", _FORMATS)
def test_something_else_is_broken(problem: Problem, media: dict[str, bytes], media_type: str) -> None:
    passed = [
        other for other in _FORMATS if other != media_type and problem(media[other], media_type) is None
    ]

    assert passed == []
    assert problem(b"\x00" * 4096, media_type)
    assert problem(b"once upon a time " * 100, media_type)


def test_parameters_and_case_of_the_media_type_make_no_difference(
    problem: Problem, media: dict[str, bytes]
) -> None:
    assert problem(media["video/mp4"], 'Video/MP4; codecs="avc1.42E01E"') is None
    assert problem(media["video/mp4"][:-1], 'Video/MP4; codecs="avc1.42E01E"')


def test_the_sentence_says_by_how_much_a_video_is_cut_short(problem: Problem) -> None:
    whole = _box(b"ftyp", b"isom0000") + _box(b"moov", b"x" * 20) + _box(b"mdat", b"y" * 100)

    assert problem(whole, "video/mp4") is None
    assert problem(whole[:-1], "video/mp4") == (
        "This is not a whole video/mp4: it is cut short: the mdat box needs 152 bytes, and there are 151."
    )


@pytest.mark.parametrize("missing", [b"ftyp", b"moov", b"mdat"])
def test_a_video_needs_its_three_boxes(problem: Problem, missing: bytes) -> None:
    boxes = {kind: _box(kind, b"z" * 64) for kind in (b"ftyp", b"moov", b"mdat", b"free")}
    del boxes[missing]

    assert f"there is no {missing.decode()} box in it" in (
        problem(b"".join(boxes.values()), "video/mp4") or ""
    )


def test_a_video_into_which_no_media_were_written_is_broken(problem: Problem) -> None:
    content = _box(b"ftyp", b"isom0000") + _box(b"mdat", b"") + _box(b"moov", b"x" * 20)

    assert "there is no mdat box in it" in (problem(content, "video/mp4") or "")


def test_a_box_may_have_a_length_of_64_bits_or_run_to_the_end(problem: Problem) -> None:
    start = _box(b"ftyp", b"isom0000") + _box(b"moov", b"x" * 20)
    wide = struct.pack(">I4sQ", 1, b"mdat", 16 + 50) + b"y" * 50
    open_ended = struct.pack(">I4s", 0, b"mdat") + b"y" * 50

    assert problem(start + wide, "video/mp4") is None
    assert problem(start + wide[:-1], "video/mp4")
    assert problem(start + open_ended, "video/mp4") is None


@pytest.mark.parametrize("length", [2, 7])
def test_a_box_shorter_than_its_own_header_is_broken(problem: Problem, length: int) -> None:
    content = _box(b"ftyp", b"isom0000") + struct.pack(">I4s", length, b"moov") + b"x" * 64

    assert f"the moov box at 16 claims to be {length} bytes long" in (problem(content, "video/mp4") or "")


def test_a_video_is_walked_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "staged"
    sparse_bytes = 1 << 40  # a terabyte of hole: reading it would not end
    start = (
        _box(b"ftyp", b"isom0000") + _box(b"moov", b"x" * 20) + struct.pack(">I4sQ", 1, b"mdat", sparse_bytes)
    )
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) - 16 + sparse_bytes)

    inspect(path, "video/mp4")


def test_one_wrong_byte_in_a_png_is_found(problem: Problem, media: dict[str, bytes]) -> None:
    whole = bytearray(media["image/png"])
    whole[len(whole) // 2] ^= 1

    assert "checksum" in (problem(bytes(whole), "image/png") or "")


def test_a_png_ends_with_its_end(problem: Problem, media: dict[str, bytes]) -> None:
    assert "3 bytes follow its end" in (problem(media["image/png"] + b"abc", "image/png") or "")


def test_a_png_without_a_picture_is_broken(problem: Problem) -> None:
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", b"\x00" * 13) + _chunk(b"IEND", b"")

    assert "no IDAT" in (problem(content, "image/png") or "")
    assert "first chunk" in (
        problem(b"\x89PNG\r\n\x1a\n" + _chunk(b"IDAT", b"") + _chunk(b"IEND", b""), "image/png") or ""
    )


def test_the_end_of_a_jpegs_thumbnail_is_not_the_end_of_the_jpeg(
    problem: Problem, media: dict[str, bytes]
) -> None:
    whole = media["image/jpeg"]
    thumbnail = b"\xff\xd8\xff\xda\x00\x02\x01\x02\xff\xd9"
    with_thumbnail = whole[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + whole[2:]

    assert problem(with_thumbnail, "image/jpeg") is None
    assert problem(with_thumbnail[:-2], "image/jpeg")


def test_what_follows_the_end_of_a_jpeg_is_let_be(problem: Problem, media: dict[str, bytes]) -> None:
    assert problem(media["image/jpeg"] + media["image/jpeg"][:50], "image/jpeg") is None


def test_a_wav_that_was_streamed_does_not_know_its_length(problem: Problem, media: dict[str, bytes]) -> None:
    whole = bytearray(media["audio/wav"])
    struct.pack_into("<I", whole, 4, 0xFFFFFFFF)
    struct.pack_into("<I", whole, whole.index(b"data") + 4, 0xFFFFFFFF)

    assert problem(bytes(whole), "audio/wav") is None


def test_an_mp3_may_begin_with_its_first_frame(problem: Problem, media: dict[str, bytes]) -> None:
    whole = media["audio/mpeg"]
    tag_bytes = 10 + (whole[6] << 21 | whole[7] << 14 | whole[8] << 7 | whole[9])

    assert whole.startswith(b"ID3")
    assert problem(whole[tag_bytes:], "audio/mpeg") is None
    assert problem(whole[:tag_bytes], "audio/mpeg")
    assert problem(whole[:5], "audio/mpeg")


@pytest.mark.parametrize("content", [b"{}", b'{"a": [1, 2, "\xc3\xa9"]}', b"null", b" [1] "])
def test_json_that_parses_passes(problem: Problem, content: bytes) -> None:
    assert problem(content, "application/json") is None
    assert problem(content, "application/geo+json") is None


@pytest.mark.parametrize("content", [b'{"a": 1', b"<html></html>", b'"\xff"', b" "])
def test_json_that_does_not_parse_is_broken(problem: Problem, content: bytes) -> None:
    assert "cannot be parsed" in (problem(content, "application/json; charset=utf-8") or "")


def test_text_is_utf_8_to_its_last_byte(problem: Problem) -> None:
    text = ("a" * ((1 << 20) - 1) + "é").encode()  # the last character lies across two reads

    assert problem(text, "text/plain") is None
    assert "not UTF-8" in (problem(text[:-1], "text/plain") or "")
    assert "not UTF-8" in (problem(b"\xff\xfea\x00", "text/vtt") or "")


def test_what_is_not_known_here_is_only_asked_to_be_something(problem: Problem) -> None:
    assert problem(b"?", "application/octet-stream") is None
    assert problem(b"?", "model/gltf-binary") is None
    assert "HTML" in (problem(b"<html>", "model/gltf-binary") or "")
    assert problem(b'<?xml version="1.0"?><svg/>', "image/svg+xml") is None


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _video(container: str, codec: str, pixels: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        for number in range(5):
            output.mux(stream.encode(_frame(number, pixels)))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _picture(codec: str, pixels: str) -> bytes:
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 64, pixels
    encoder.time_base = Fraction(1, 25)
    frame = _frame(0, pixels)
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _frame(number: int, pixels: str) -> av.VideoFrame:
    frame = av.VideoFrame(64, 64, "rgb24")
    row = frame.planes[0].line_size
    frame.planes[0].update(bytes((x * 3 + y * 7 + number * 40) % 256 for y in range(64) for x in range(row)))
    frame.pts = number
    return frame.reformat(format=pixels)


def _sound(container: str, codec: str, samples: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=48_000)
        stream.layout = "mono"
        stream.format = samples
        for number in range(10):
            frame = av.AudioFrame(samples, "mono", 960)
            frame.planes[0].update(bytes(index * 5 % 256 for index in range(frame.planes[0].buffer_size)))
            frame.sample_rate, frame.pts = 48_000, number * 960
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
