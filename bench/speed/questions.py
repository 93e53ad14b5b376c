"""What is asked: small pictures of many prompts, one video, one long sound, and ends of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from bench.paid_once.ours import PROJECT
from bench.paid_once.scenes import Request
from bench.speed.servers import Asked, Server

DISTINCT = 50
"""How many small questions there are. Each tenant asks one of them."""

_PROMPT_LETTERS = 780
_SOUND_BYTES_A_SECOND = 96_000
_WAV_HEAD_BYTES = 44


def small(number: int) -> Asked:
    """About a kilobyte, eight parameters; so is the answer, a picture."""
    prompt = f"Picture {number:04}: a lighthouse keeper, and what he does all day".ljust(_PROMPT_LETTERS, ".")
    return Asked(
        "bench-picture",
        json.dumps(
            {
                "prompt": prompt,
                "negative_prompt": "blurry, watermark, subtitles",
                "width": 40,
                "height": 32,
                "seed": number,
                "steps": 4,
                "guidance_scale": 4.5,
                "output_format": "jpg",
            }
        ).encode(),
    )


def respelled(asked: Asked) -> Sequence[Asked]:
    """The same request in other orders of its members, and with other forms of its numbers."""
    members = list(json.loads(asked.body).items())
    spellings = []
    for turn, number in itertools.product(range(len(members)), ("4.5", "45e-1")):
        turned = dict(members[turn:] + members[:turn])
        spelled = json.dumps(turned).replace('"guidance_scale": 4.5', f'"guidance_scale": {number}')
        spellings.append(replace(asked, body=spelled.encode()))
    return spellings


def video(seconds: int) -> Asked:
    """A real one: 50 seconds come to three megabytes."""
    shape = {"width": 1280, "height": 1280, "num_frames": 24 * seconds + 1, "fps": 24}
    return Asked("bench-video", json.dumps({"prompt": "A lighthouse in a storm", **shape}).encode())


def sound(size_bytes: int) -> Asked:
    """A large answer of a size at will: a video of twenty megabytes takes the sandbox too long to make."""
    seconds = (size_bytes - _WAV_HEAD_BYTES) / _SOUND_BYTES_A_SECOND
    content = {"prompt": "Rain on the lamp room", "output_seconds": round(seconds, 6)}
    return Asked("bench-sound", json.dumps(content).encode())


def by_all_tenants(asked: Sequence[Asked], server: Server) -> Sequence[Request]:
    """One request a tenant; the questions in turn."""
    return [one.of(server, key) for one, key in zip(itertools.cycle(asked), server.keys, strict=False)]


def tail(record: bytes, server: Server, size_bytes: int, tail_bytes: int) -> Request:
    """The last bytes of the media of a `record`, as v1 answers to whoever prefers JSON, through its link."""
    where = urlsplit(json.loads(record)["output"])
    headers = {"Range": f"bytes={max(0, size_bytes - tail_bytes)}-"}
    return Request("GET", f"{server.url}{where.path}?{where.query}", headers)


def write_models(directory: Path) -> Path:
    """The catalogue, with the models that only this benchmark has. Returns `directory`."""
    directory.mkdir()
    for models in (PROJECT / "config" / "models", Path(__file__).with_name("models")):
        for file in models.glob("*.yaml"):
            (directory / file.name).symlink_to(file)
    return directory
