"""What a model's parameters ask of the media: size, length, sound."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gateway.domain.generation import Json, Parameters

_SHORT_SIDES = {"480p": 480, "540p": 540, "720p": 720, "1080p": 1080, "1k": 1024, "2k": 1440, "4k": 2160}
_LONGEST_SIDE = 8192
_MOST_FRAMES = 4000
_MOST_SECONDS = 900


class Unmakeable(Exception):
    """No media can be made of these parameters; the text is what the upstream's model would say."""


@dataclass(frozen=True, slots=True)
class Shape:
    width: int
    height: int
    frames: int
    fps: Fraction
    audio: bool
    seconds: float

    def halved(self) -> Shape:
        """The same in half the size: what nobody asked for."""
        return Shape(
            max(32, self.width // 4 * 2),
            max(32, self.height // 4 * 2),
            self.frames,
            self.fps,
            self.audio,
            self.seconds,
        )


def shape_of(parameters: Parameters, media_type: str, *, off_grid: str) -> Shape:
    """The shape that `parameters` ask for. Raises Unmakeable.

    Video models work on a grid: sides are multiples of 32, frames are 8k+1. `off_grid` says what becomes of a request
    beside it: `snap` goes down to the grid, `exact` leaves it, `reject` refuses.
    """
    video = media_type.startswith("video/")
    width, height, explicit = _size(parameters, video=video)
    fps = Fraction(_number(parameters, "fps", "frame_rate", default=24)).limit_denominator(1001)
    if fps <= 0:
        raise Unmakeable(f"fps must be greater than 0, got {parameters.get('fps')}")
    counted = _number(parameters, "num_frames", "length", default=0)
    seconds = _number(parameters, "duration", "output_seconds", "seconds", default=5 if video else 3)
    frames = int(counted) if counted else int(seconds * fps)
    if video:
        width, height, frames = _on_grid(
            width, height, frames, off_grid, sized=explicit, counted=bool(counted)
        )
    if not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE):
        raise Unmakeable(f"cannot make {width}x{height} pixels")
    if not 0 < frames <= _MOST_FRAMES or not 0 < seconds <= _MOST_SECONDS:
        raise Unmakeable(f"cannot make {frames} frames or {seconds} seconds")
    return Shape(width, height, frames, fps, parameters.get("generate_audio") is not False, float(seconds))


def _on_grid(
    width: int, height: int, frames: int, off_grid: str, *, sized: bool, counted: bool
) -> tuple[int, int, int]:
    snapped = (
        width // 32 * 32 if sized else width,
        height // 32 * 32 if sized else height,
        (frames - 1) // 8 * 8 + 1 if counted else frames,
    )
    if off_grid == "reject" and snapped != (width, height, frames):
        raise Unmakeable(
            f"`height` and `width` have to be divisible by 32 and `num_frames` has to be 8k+1 but are {height}, "
            f"{width} and {frames}."
        )
    if off_grid == "snap":
        width, height, frames = snapped
    # Colours are stored for two by two pixels: an odd side does not exist in yuv420p.
    return width // 2 * 2, height // 2 * 2, frames


def _size(parameters: Parameters, *, video: bool) -> tuple[int, int, bool]:
    """Width, height, and whether they were asked for in pixels."""
    width, height = (int(_number(parameters, side, default=0)) for side in ("width", "height"))
    if width and height:
        return width, height, True
    match str(parameters.get("size", "")).lower().split("x"):
        case [across, down] if across.isdecimal() and down.isdecimal():
            return int(across), int(down), True
        case _:
            pass
    named = next(
        (
            _SHORT_SIDES[text]
            for name in ("resolution", "output_resolution", "size")
            if (text := str(parameters.get(name, "")).lower()) in _SHORT_SIDES
        ),
        720 if video else 1024,
    )
    short = int(_number(parameters, "target_size", default=named))
    ratio = _ratio(parameters.get("aspect_ratio"), default=Fraction(16, 9) if video else Fraction(1))
    return (int(short * ratio), short, False) if ratio >= 1 else (short, int(short / ratio), False)


def _ratio(given: Json, *, default: Fraction) -> Fraction:
    match str(given).split(":"):
        case [across, down] if across.isdecimal() and down.isdecimal() and int(across) and int(down):
            return Fraction(int(across), int(down))
        case _:
            return default


def _number(parameters: Parameters, *names: str, default: float) -> float:
    """The first of these parameters that is a number, or a text of digits (one model's `duration` is a text)."""
    for name in names:
        match parameters.get(name):
            case bool():
                continue
            case int() | float() as value:
                return value
            case str() as text if text.isdecimal():
                return int(text)
            case _:
                continue
    return default
