"""Real media for made-up results: they play, they have the size that was asked for, and they say SANDBOX.

Equal calls make equal bytes: one thread, no time stamps, nothing random. Everything here takes CPU time and belongs
into a thread of its own; the encoders let go of the interpreter lock while they work.
"""

from __future__ import annotations

import array
import functools
import hashlib
import io
import json
import math
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av

from gateway.domain.generation import Json, Parameters
from gateway.sandbox.picture import Painting
from gateway.sandbox.shape import Shape, Unmakeable

EXTENSIONS = {
    "video/mp4": "mp4",
    "image/png": "png",
    "image/jpeg": "jpg",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "application/json": "json",
}
"""What can be made, and how its files are called."""

_CODEC_BITEXACT = 1 << 23
_FILE_BITEXACT = 1 << 10
_SAMPLE_RATE = 24_000
_SAMPLES_A_FRAME = 1024


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is to be made: the same recipe gives the same bytes."""

    name: str
    """Tells one recipe from another: decides colours and sound."""

    media_type: str
    shape: Shape
    lines: tuple[str, ...]
    """What stands on the pictures."""

    model: str
    parameters: Parameters


def make(recipe: Recipe, path: Path) -> None:
    """Write the media to `path`. Raises Unmakeable when there is no such thing."""
    match recipe.media_type:
        case "video/mp4":
            _make_film(recipe, path)
        case "image/png" | "image/jpeg":
            path.write_bytes(_picture(recipe))
        case "audio/mpeg":
            _make_mp3(recipe, path)
        case "audio/wav":
            path.write_bytes(_wav(recipe))
        case "application/json":
            path.write_bytes(_answer(recipe))
        case unknown:
            raise Unmakeable(f"the sandbox cannot make {unknown}")


def _make_film(recipe: Recipe, path: Path) -> None:
    shape = recipe.shape
    try:
        with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as film:
            film.flags |= _FILE_BITEXACT
            pictures = film.add_stream(
                "libx264", rate=shape.fps, options={"preset": "ultrafast", "threads": "1"}
            )
            pictures.width, pictures.height, pictures.pix_fmt = shape.width, shape.height, "yuv420p"
            pictures.time_base = 1 / shape.fps
            pictures.codec_context.flags |= _CODEC_BITEXACT
            sound = None
            tones: Iterator[av.AudioFrame] = iter(())
            if shape.audio:
                sound = film.add_stream(
                    "aac", rate=_SAMPLE_RATE, options={"threads": "1", "aac_coder": "fast"}
                )
                sound.layout = "stereo"
                sound.bit_rate = 64_000
                sound.codec_context.flags |= _CODEC_BITEXACT
                tones = _tones(recipe.name, samples=round(shape.frames / shape.fps * _SAMPLE_RATE))
            painting = Painting(recipe.name, recipe.lines, width=shape.width, height=shape.height)
            tone = next(tones, None)
            for index in range(shape.frames):
                frame = painting.frame(index, shape.frames)
                frame.pts, frame.time_base = index, 1 / shape.fps
                film.mux(pictures.encode(frame))
                while (
                    sound is not None
                    and tone is not None
                    and (tone.pts or 0) * shape.fps <= index * _SAMPLE_RATE
                ):
                    film.mux(sound.encode(tone))
                    tone = next(tones, None)
            film.mux(pictures.encode(None))
            if sound is not None:
                while tone is not None:
                    film.mux(sound.encode(tone))
                    tone = next(tones, None)
                film.mux(sound.encode(None))
    except av.FFmpegError as error:
        raise Unmakeable(f"the encoder refuses {shape.width}x{shape.height} at {shape.fps} fps") from error


def _picture(recipe: Recipe) -> bytes:
    shape = recipe.shape
    painted = Painting(recipe.name, recipe.lines, width=shape.width, height=shape.height).frame(0, 1)
    codec, pixels = ("png", "rgb24") if recipe.media_type == "image/png" else ("mjpeg", "yuvj420p")
    encoder = cast("av.VideoCodecContext", av.CodecContext.create(codec, "w"))
    encoder.width, encoder.height, encoder.pix_fmt = shape.width, shape.height, pixels
    encoder.time_base = Fraction(1, 1)
    encoder.thread_count = 1
    encoder.flags |= _CODEC_BITEXACT
    frame = painted.reformat(format=pixels)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _make_mp3(recipe: Recipe, path: Path) -> None:
    with av.open(path, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as file:
        file.flags |= _FILE_BITEXACT
        sound = file.add_stream("libmp3lame", rate=_SAMPLE_RATE)
        sound.layout = "stereo"
        sound.bit_rate = 64_000
        sound.codec_context.flags |= _CODEC_BITEXACT
        sound.codec_context.format = "fltp"
        for tone in _tones(recipe.name, samples=round(recipe.shape.seconds * _SAMPLE_RATE)):
            file.mux(sound.encode(tone))
        file.mux(sound.encode(None))


def _wav(recipe: Recipe) -> bytes:
    left, right = (
        array.array("h", (round(sample * 32_767) for sample in voice)) for voice in _voices(recipe.name)
    )
    block = array.array("h", (sample for pair in zip(left, right, strict=True) for sample in pair)).tobytes()
    length = round(recipe.shape.seconds * _SAMPLE_RATE) * 4
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE)
        file.writeframes((block * (length // len(block) + 1))[:length])
    return out.getvalue()


def _tones(name: str, *, samples: int) -> Iterator[av.AudioFrame]:
    blocks = [voice.tobytes() for voice in _voices(name)]
    voices = [block * 2 for block in blocks]
    size = len(blocks[0])
    for first in range(0, samples, _SAMPLES_A_FRAME):
        count = min(_SAMPLES_A_FRAME, samples - first)
        frame = av.AudioFrame(format="fltp", layout="stereo", samples=count)
        frame.sample_rate, frame.pts, frame.time_base = _SAMPLE_RATE, first, Fraction(1, _SAMPLE_RATE)
        start = first * 4 % size
        for plane, voice in zip(frame.planes, voices, strict=True):
            plane.update(voice[start : start + count * 4].ljust(plane.buffer_size, b"\0"))
        yield frame


def _voices(name: str) -> list[array.array[float]]:
    """A tenth of a second for each ear: two tones of whole tens of hertz each, so that it can be repeated."""
    ears = hashlib.sha256(name.encode()).digest()
    voices = []
    for low, high, loud in (ears[:3], ears[3:6]):
        tones = zip(_tone(20 + low % 60), _tone(90 + high % 60), strict=True)
        share = 0.05 + loud / 255 * 0.1
        voices.append(array.array("f", (share * one + 0.05 * other for one, other in tones)))
    return voices


def _tone(cycles: int) -> array.array[float]:
    return (_sine() * cycles)[::cycles]


@functools.cache
def _sine() -> array.array[float]:
    count = _SAMPLE_RATE // 10
    return array.array("d", (math.sin(2 * math.pi * sample / count) for sample in range(count)))


def _answer(recipe: Recipe) -> bytes:
    """What a model says that answers in words: a transcript, or a chat completion."""
    words = "This is the sandbox: no model was asked. " + " / ".join(recipe.lines[1:])
    answer: dict[str, Json]
    if "audio_url" in recipe.parameters:
        answer = {"text": words, "language_code": "eng", "language_probability": 1.0, "words": []}
    else:
        tokens = len(words.split())
        answer = {
            "id": f"chatcmpl-sandbox-{recipe.name[:16]}",
            "object": "chat.completion",
            "created": 0,
            "model": recipe.model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens},
        }
    return json.dumps(answer).encode()
