"""What is promised of a result before it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far a result may be from what was promised and still be near: a refusal throws away what was paid for."""

    pixels: int = 64
    """For width and for height: models work on a grid, and snap to it."""

    seconds: float = 0.5

    frames: int = 8
    """Models make 8k+1 frames, and snap down to that."""

    share: float = 0.12
    """Of the seconds or frames promised, where it comes to more than these."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is promised of one result; None where nothing is."""

    seconds: float | None = None
    width: int | None = None
    """Pixels."""

    height: int | None = None
    """Pixels."""

    frames: int | None = None
    audio: bool | None = None
    """Whether it has sound. Where False was promised, a sound track that came all the same is let be."""

    within: Tolerances = Tolerances()
