"""The sandbox's media: what is asked for is made, and can be played."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from gateway.sandbox import font
from gateway.sandbox.media import Recipe, make
from gateway.sandbox.shape import Shape, Unmakeable, shape_of
from gateway.sandbox.studio import Order

VIDEO = "video/mp4"


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"width": 720, "height": 1280, "num_frames": 121}, (704, 1280, 121)),
        ({"width": 256, "height": 287, "num_frames": 181}, (256, 256, 177)),
        ({"width": 256, "height": 256, "num_frames": 1}, (256, 256, 1)),
        ({"width": 256, "height": 256, "num_frames": 8}, (256, 256, 1)),
        ({"width": 256, "height": 256, "num_frames": 9}, (256, 256, 9)),
        ({"resolution": "1080p", "duration": 6}, (1920, 1080, 144)),
        ({"resolution": "720p", "duration": "10", "aspect_ratio": "9:16"}, (720, 1280, 240)),
        ({}, (1280, 720, 120)),
    ],
)
def test_a_video_has_the_size_that_was_asked_for_snapped_down_to_the_grid(
    asked: dict[str, Any], made: tuple[int, int, int]
) -> None:
    shape = shape_of(asked, VIDEO, off_grid="snap")

    assert (shape.width, shape.height, shape.frames) == made


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"width": 521, "height": 600}, (521, 600)),
        ({"size": "1536x1024"}, (1536, 1024)),
        ({"aspect_ratio": "2:3"}, (1024, 1536)),
        ({"size": "2K"}, (1440, 1440)),
        ({}, (1024, 1024)),
    ],
)
def test_a_picture_has_exactly_the_size_that_was_asked_for(
    asked: dict[str, Any], made: tuple[int, int]
) -> None:
    shape = shape_of(asked, "image/png", off_grid="snap")

    assert (shape.width, shape.height) == made


@pytest.mark.parametrize(
    "asked",
    [
        {"width": 31, "height": 256},
        {"width": -256, "height": 256},
        {"width": 100_000, "height": 256},
        {"num_frames": 10**9},
        {"num_frames": -3},
        {"fps": 0},
        {"duration": 10**7},
    ],
)
def test_what_cannot_be_made_is_told(asked: dict[str, Any]) -> None:
    with pytest.raises(Unmakeable):
        shape_of(asked, VIDEO, off_grid="snap")


@pytest.mark.parametrize(
    ("width", "height", "frames", "fps"), [(704, 1280, 33, 24), (256, 256, 9, 8), (32, 32, 1, 30)]
)
def test_a_video_is_h264_and_aac_that_play_to_the_end(
    tmp_path: Path, width: int, height: int, frames: int, fps: int
) -> None:
    path = tmp_path / "film.mp4"
    make(_recipe(Shape(width, height, frames, Fraction(fps), audio=True, seconds=0)), path)

    with av.open(path) as film:
        picture, sound = film.streams.video[0], film.streams.audio[0]
        assert (picture.codec_context.name, picture.pix_fmt) == ("h264", "yuv420p")
        assert (picture.width, picture.height, picture.average_rate) == (width, height, Fraction(fps))
        assert (sound.codec_context.name, sound.layout.name) == ("aac", "stereo")
        assert float(film.duration or 0) / 1e6 == pytest.approx(frames / fps, abs=0.05)
    assert len(_frames(path)) == frames
    with av.open(path) as film:
        heard = sum(tone.samples for tone in film.decode(audio=0))
    assert heard / 24_000 == pytest.approx(frames / fps, abs=0.1)
    # Playable before it is all there: the index is in front of the media.
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_video_without_sound_has_no_sound(tmp_path: Path) -> None:
    shape = shape_of(
        {"width": 64, "height": 64, "num_frames": 9, "generate_audio": False}, VIDEO, off_grid="snap"
    )
    make(_recipe(shape), tmp_path / "film.mp4")

    with av.open(tmp_path / "film.mp4") as film:
        assert [stream.type for stream in film.streams] == ["video"]


@pytest.mark.parametrize("media_type", [VIDEO, "image/png", "image/jpeg", "audio/mpeg", "audio/wav"])
def test_equal_recipes_make_equal_bytes_and_others_do_not(tmp_path: Path, media_type: str) -> None:
    shape = Shape(256, 256, 9, Fraction(24), audio=True, seconds=0.5)
    files = [tmp_path / name for name in ("first", "again", "other")]
    for file, name in zip(files, ("fox", "fox", "hen"), strict=True):
        make(_recipe(shape, name, media_type), file)

    first, again, other = (file.read_bytes() for file in files)
    assert first == again
    assert first != other


def test_other_prompts_are_visibly_other_pictures_and_the_picture_moves(tmp_path: Path) -> None:
    shape = Shape(256, 256, 17, Fraction(24), audio=False, seconds=0)
    for name in ("fox", "hen"):
        make(_recipe(shape, name), tmp_path / name)
    fox, hen = _frames(tmp_path / "fox"), _frames(tmp_path / "hen")

    # Where there is no banner, two mosaics have next to nothing in common.
    assert _difference(fox[0][: 256 * 60], hen[0][: 256 * 60]) > 25
    assert _difference(fox[0][: 256 * 60], fox[-1][: 256 * 60]) > 10
    # A re-encoded still would be nearly equal.
    assert _difference(fox[0], fox[0]) == 0


def test_the_banner_says_sandbox(tmp_path: Path) -> None:
    make(_recipe(Shape(256, 256, 1, Fraction(24), audio=False, seconds=0)), tmp_path / "film")
    light = _frames(tmp_path / "film")[0]

    # The whole banner is black and white: read the first line back, dot by dot.
    rows = [light[row * 256 : (row + 1) * 256] for row in range(256)]
    inked = [row for row in rows if sum(value < 40 for value in row) > 80]
    scale = 5
    left = (256 - 7 * font.ADVANCE * scale) // 2
    read = [
        [inked[4 + dot * scale + 2][left + column * scale + 2] > 128 for column in range(7 * font.ADVANCE)]
        for dot in range(font.HEIGHT)
    ]
    assert read == [list(row) for row in font.dots("SANDBOX")]


def test_letters_are_all_different_and_strangers_are_question_marks() -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.,:?' "
    drawn = {str(font.dots(letter)) for letter in alphabet}

    assert len(drawn) == len(alphabet)
    assert font.dots("狐") == font.dots("?")
    assert font.dots("fox") == font.dots("FOX")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"parameters": {"prompt": "hen"}},
        {"seed": 2},
        {"off_grid": "exact"},
        {"halved": True},
        {"salt": "x"},
        {"media_type": "image/png"},
    ],
)
def test_an_orders_name_tells_it_from_every_other(changes: dict[str, Any]) -> None:
    order: dict[str, Any] = {
        "model": "m",
        "media_type": VIDEO,
        "parameters": {"prompt": "fox", "width": 256},
        "seed": 1,
    }

    assert Order(**order).name == Order(**order | {"parameters": {"width": 256, "prompt": "fox"}}).name
    assert Order(**order).name != Order(**order | changes).name


def _recipe(shape: Shape, name: str = "fox", media_type: str = VIDEO) -> Recipe:
    return Recipe(name, media_type, shape, ("SANDBOX", "A RED FOX", name), "m", {})


def _frames(path: Path) -> list[bytes]:
    """The light of every frame, row by row."""
    with av.open(path) as film:
        return [
            b"".join(
                bytes(frame.planes[0])[row * frame.planes[0].line_size :][: frame.width]
                for row in range(frame.height)
            )
            for frame in film.decode(video=0)
        ]


def _difference(one: bytes, other: bytes) -> float:
    """The mean difference in light, of 255."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
