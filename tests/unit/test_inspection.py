"""A file is wholly what its media type says, or the sentence says what is wrong with it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from gateway.domain.errors import ResultBroken
from gateway.domain.expectation import Expectation, Tolerances
from gateway.generation.inspection import inspect
from gateway.sandbox.media import Recipe, make
from gateway.sandbox.shape import Shape

Problem = Callable[..., str | None]

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
_PROJECT = Path(__file__).parents[2]


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    """What `inspect` says of these bytes, and of what was expected of them; None if it finds nothing."""

    def ask(content: bytes, media_type: str, **expected: Any) -> str | None:
        path = tmp_path / "staged"
        path.write_bytes(content)
        try:
            inspect(path, media_type, Expectation(**expected) if expected else None)
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

    assert problem(whole, "video/mp4") == "This is not a whole video/mp4: there is no picture in it."
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


def test_a_box_may_have_a_length_of_64_bits_or_run_to_the_end(
    problem: Problem, media: dict[str, bytes]
) -> None:
    whole = media["video/mp4"]
    wide = struct.pack(">I4sQ", 1, b"free", 16 + 50) + b"y" * 50
    open_ended = struct.pack(">I4s", 0, b"free") + b"y" * 50

    assert problem(whole + wide, "video/mp4") is None
    assert "the free box needs" in (problem(whole + wide[:-1], "video/mp4") or "")
    assert problem(whole + open_ended, "video/mp4") is None


@pytest.mark.parametrize("length", [2, 7])
def test_a_box_shorter_than_its_own_header_is_broken(problem: Problem, length: int) -> None:
    content = _box(b"ftyp", b"isom0000") + struct.pack(">I4s", length, b"moov") + b"x" * 64

    assert f"the moov box at 16 claims to be {length} bytes long" in (problem(content, "video/mp4") or "")


def test_a_video_is_walked_without_being_read(tmp_path: Path, media: dict[str, bytes]) -> None:
    path = tmp_path / "staged"
    sparse_bytes = 1 << 40  # a terabyte of hole: reading it would not end
    start = media["video/mp4"] + struct.pack(">I4sQ", 1, b"free", 16 + sparse_bytes)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + sparse_bytes)

    inspect(path, "video/mp4")


# ---- the looks that decode


_FILMS = {
    "video/mp4": ("mp4", "libx264"),
    "video/webm": ("webm", "libvpx-vp9"),
    "video/quicktime": ("mov", "mpeg4"),
}


@pytest.mark.parametrize("frames", [1, 2, 30])
@pytest.mark.parametrize("media_type", _FILMS)
def test_a_film_of_any_length_is_seen_to_its_end(problem: Problem, media_type: str, frames: int) -> None:
    container, codec = _FILMS[media_type]
    film = _video(container, codec, "yuv420p", frames=frames)
    near = Tolerances(pixels=0, seconds=0.01, frames=0, share=0)

    assert problem(film, media_type, seconds=frames / 10, width=64, height=64, within=near) is None
    assert "seconds were asked for" in (
        problem(film, media_type, seconds=frames / 10 + 0.1, within=near) or ""
    )


def test_a_film_may_begin_later_than_at_nothing(problem: Problem) -> None:
    film = _video("webm", "libvpx-vp9", "yuv420p", frames=30, start=50)

    assert problem(film, "video/webm", seconds=3) is None


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (0, "This is not a whole video/mp4: its first picture cannot be decoded."),
        (-1, "This is not a whole video/mp4: its last picture cannot be decoded."),
    ],
)
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_a_video_whose_first_or_last_picture_is_blotted_out_is_broken(
    problem: Problem, which: int, said: str, b_frames: str
) -> None:
    film = _video("mp4", "libx264", "yuv420p", frames=40, options={"bf": b_frames, "g": "12"})

    assert problem(film, "video/mp4") is None
    assert problem(_blotted(film, which), "video/mp4") == said


def test_a_picture_in_the_middle_is_let_be(problem: Problem) -> None:
    film = _video("mp4", "libx264", "yuv420p", frames=40, options={"bf": "0", "g": "100"})

    assert problem(_blotted(film, 20), "video/mp4") is None


def test_a_video_whose_media_are_another_files_is_broken(problem: Problem) -> None:
    film = _video("mp4", "libx264", "yuv420p", frames=40)
    start, end = film.index(b"mdat") + 4, film.index(b"moov") - 4
    noise = bytes((index * 7919) >> 3 & 0xFF for index in range(end - start))

    assert "decoded" in (problem(film[:start] + noise + film[end:], "video/mp4") or "")


def test_a_codec_that_this_build_does_not_know_is_let_be_and_only_its_sound_and_frames_are_compared(
    problem: Problem,
) -> None:
    film = _video("mp4", "libx264", "yuv420p", frames=40).replace(b"avc1", b"zzzz")

    assert problem(film, "video/mp4", width=1000, seconds=1000) is None
    assert "sound was promised" in (problem(film, "video/mp4", audio=True) or "")
    assert "frames were asked for" in (problem(film, "video/mp4", frames=400) or "")


def test_a_video_of_another_size_is_not_what_was_asked_for(problem: Problem, media: dict[str, bytes]) -> None:
    film = media["video/mp4"]

    assert problem(film, "video/mp4", width=64, height=128) is None
    assert problem(film, "video/mp4", width=720, height=1280) == (
        "This is not the video/mp4 that was asked for: a width of 720 pixels was asked for, and 64 came; "
        "a height of 1280 pixels was asked for, and 64 came."
    )


def test_a_video_of_another_length_is_not_what_was_asked_for(problem: Problem) -> None:
    film = _video("mp4", "libx264", "yuv420p", frames=30)

    assert problem(film, "video/mp4", seconds=3.4, frames=33) is None
    assert problem(film, "video/mp4", seconds=121 / 24, frames=121) == (
        "This is not the video/mp4 that was asked for: 5.042 seconds were asked for, and 3 came; "
        "121 frames were asked for, and 30 came."
    )


def test_a_video_without_the_sound_that_was_promised_is_not_what_was_asked_for(
    problem: Problem, tmp_path: Path
) -> None:
    silent = _video("mp4", "libx264", "yuv420p")
    path = tmp_path / "with sound"
    shape = Shape(64, 64, 9, Fraction(8), audio=True, seconds=9 / 8)
    make(Recipe("sound", "video/mp4", shape, (), "model", {}), path)
    loud = path.read_bytes()

    assert problem(silent, "video/mp4", audio=True) == (
        "This is not the video/mp4 that was asked for: sound was promised, and there is none."
    )
    assert problem(silent, "video/mp4", audio=False) is None
    assert problem(loud, "video/mp4", audio=True) is None
    assert problem(loud, "video/mp4", audio=False) is None
    assert (
        problem(loud, "video/mp4", seconds=9 / 8, frames=9, within=Tolerances(seconds=0.01, share=0)) is None
    )


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/gif", "image/webp"])
def test_a_picture_of_another_size_is_not_what_was_asked_for(
    problem: Problem, media: dict[str, bytes], media_type: str
) -> None:
    assert problem(media[media_type], media_type, width=64, height=64) is None
    assert "a width of 1024 pixels was asked for, and 64 came" in (
        problem(media[media_type], media_type, width=1024) or ""
    )


def test_a_large_picture_is_decoded_whole(problem: Problem) -> None:
    for media_type, codec, pixels in ("image/png", "png", "rgb24"), ("image/jpeg", "mjpeg", "yuvj420p"):
        large = _picture(codec, pixels, side=1500)

        assert len(large) > 100_000
        assert problem(large, media_type, width=1500, within=Tolerances(pixels=0)) is None


def test_a_png_that_is_whole_outside_and_nonsense_within_is_broken(problem: Problem) -> None:
    header = struct.pack(">IIBBBBB", 64, 64, 7, 2, 0, 0, 0)  # seven bits a colour
    content = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"z" * 99) + _chunk(b"IEND", b"")
    )

    assert problem(content, "image/png") == (
        "This is not a whole image/png: its first picture cannot be decoded."
    )


def test_a_variant_that_this_build_has_not_learnt_is_let_be(problem: Problem) -> None:
    header = struct.pack(">IIBBBBB", 64, 64, 8, 1, 0, 0, 0)  # a kind of colour that PNG does not know
    content = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"z" * 99) + _chunk(b"IEND", b"")
    )

    assert problem(content, "image/png", width=1024) is None


def test_an_animated_webp_is_let_be(problem: Problem) -> None:
    film = _video("webp", "libwebp_anim", "yuv420p")

    assert b"ANMF" in film
    assert problem(film, "image/webp", width=1024) is None


def test_a_play_list_is_not_followed(problem: Problem, tmp_path: Path, media: dict[str, bytes]) -> None:
    (tmp_path / "precious.mp4").write_bytes(media["video/mp4"])
    play_list = f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/precious.mp4\n#EXT-X-ENDLIST\n".encode()

    script = b"ffconcat version 1.0\nfile precious.mp4\n"

    for media_type in "video/mp4", "video/webm", "video/quicktime", "image/gif":
        assert problem(play_list, media_type), media_type
        assert problem(script, media_type), media_type


def test_what_is_expected_of_what_cannot_be_looked_at_is_let_be(
    problem: Problem, media: dict[str, bytes]
) -> None:
    assert problem(media["audio/wav"], "audio/wav", seconds=1000) is None
    assert problem(b"?", "video/unheard-of", seconds=1000, audio=True) is None


def test_nothing_of_the_decoder_is_loaded_before_the_first_result() -> None:
    asked = "import sys, gateway.generation.inspection; print('av' in sys.modules)"

    told = subprocess.run([sys.executable, "-c", asked], cwd=_PROJECT, capture_output=True, check=True)

    assert told.stdout == b"False\n"


# ---- the structure of the others


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


def _video(
    container: str,
    codec: str,
    pixels: str,
    *,
    frames: int = 5,
    start: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        for number in range(start, start + frames):
            output.mux(stream.encode(_frame(number, pixels)))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _blotted(film: bytes, which: int) -> bytes:
    """The same with one of its pictures, counted as they are shown, made nothing."""
    with av.open(io.BytesIO(film), "r") as container:
        packets = sorted(
            (packet.pts, packet.pos, packet.size)
            for packet in container.demux(video=0)
            if packet.pts is not None and packet.pos is not None
        )
    _, start, size = packets[which]
    return film[:start] + bytes(size) + film[start + size :]


def _picture(codec: str, pixels: str, *, side: int = 64) -> bytes:
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = side, side, pixels
    encoder.time_base = Fraction(1, 25)
    frame = _frame(0, pixels, side=side)
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def _frame(number: int, pixels: str, *, side: int = 64) -> av.VideoFrame:
    frame = av.VideoFrame(side, side, "rgb24")
    row = frame.planes[0].line_size
    frame.planes[0].update(
        bytes((x * 3 + y * 7 + number * 40 + x * y // 64) % 256 for y in range(side) for x in range(row))
    )
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
