"""Where the media are made and kept: one file a recipe, however many jobs want it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gateway.domain.generation import Json, Parameters
from gateway.sandbox import media
from gateway.sandbox.media import Recipe
from gateway.sandbox.shape import Unmakeable, shape_of

_PROMPT_LETTERS = 24


@dataclass(frozen=True, slots=True)
class Order:
    """What a job wants made."""

    model: str
    media_type: str
    parameters: Parameters
    seed: int | None
    off_grid: str = "snap"
    halved: bool = False
    salt: str = ""
    """Other bytes for the same order."""

    @property
    def name(self) -> str:
        """Equal for equal orders, and only for those: 40 hexadecimal digits."""
        order = [
            self.model,
            self.media_type,
            self.parameters,
            self.seed,
            self.off_grid,
            self.halved,
            self.salt,
        ]
        return hashlib.sha256(json.dumps(order, sort_keys=True).encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Take:
    """What was made."""

    file: str
    facts: dict[str, Json]


class Studio:
    """`encoders` things are made at once; whoever else wants something waits, and the event loop never does."""

    def __init__(self, directory: Path, *, encoders: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="sandbox-encoder")

    async def make(self, order: Order) -> Take:
        """Make what is ordered, or find that it was made before. Raises Unmakeable."""
        return await asyncio.get_running_loop().run_in_executor(self._encoders, self._make, order)

    def path(self, file: str) -> Path:
        return self._directory / file

    def sweep(self, used: AbstractSet[str]) -> None:
        """Delete what nobody uses, and what a crash has left half made. Only while nothing is being made."""
        for path in self._directory.iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._encoders.shutdown(cancel_futures=True)

    def _make(self, order: Order) -> Take:
        name = order.name
        extension = media.EXTENSIONS.get(order.media_type)
        if extension is None:
            raise Unmakeable(f"the sandbox cannot make {order.media_type}")
        shape = shape_of(order.parameters, order.media_type, off_grid=order.off_grid)
        if order.halved:
            shape = shape.halved()
        path = self.path(f"{name}.{extension}")
        if not path.exists():
            recipe = Recipe(name, order.media_type, shape, _lines(order, name), order.model, order.parameters)
            self._make_file(recipe, path)
        facts: dict[str, Json] = {"size_bytes": path.stat().st_size}
        if not order.media_type.startswith(("audio/", "application/")):
            facts |= {"width": shape.width, "height": shape.height}
        if order.media_type.startswith("video/"):
            facts |= {"frames": shape.frames, "fps": float(shape.fps)}
        return Take(path.name, facts)

    def _make_file(self, recipe: Recipe, path: Path) -> None:
        beside = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            media.make(recipe, beside)
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _lines(order: Order, name: str) -> tuple[str, ...]:
    prompt = order.parameters.get("prompt") or order.parameters.get("text") or order.model
    return (
        "SANDBOX",
        str(prompt)[:_PROMPT_LETTERS].strip(),
        f"SEED {order.seed}  {name[:8]}" if order.seed is not None else name[:8],
    )
