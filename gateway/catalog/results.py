"""What a model promises of its result, as far as anybody knows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from gateway.domain.expectation import Expectation, Tolerances
from gateway.domain.generation import Parameters


@dataclass(frozen=True, slots=True)
class Promise:
    """By the names of the parameters that say what is asked for; None where nothing is promised."""

    width: str | None = None
    height: str | None = None
    seconds: str | None = None
    frames: str | None = None
    fps: str | None = None
    audio: bool | str | None = None
    """Itself, or the name of the parameter that decides."""

    within: Tolerances = field(default_factory=Tolerances)

    def expectation(self, parameters: Parameters) -> Expectation:
        """What these complete parameters promise; nothing for one that was left out or says nothing (0, -1, auto)."""
        seconds, within = _number(parameters, self.seconds), self.within
        frames, fps = _number(parameters, self.frames), _number(parameters, self.fps)
        if frames is not None and fps is not None:
            seconds = frames / fps
            # Frames that may be missing are seconds that may be missing: eight of them, at one frame a second.
            within = replace(within, seconds=max(within.seconds, within.frames / fps))
        return Expectation(
            seconds=seconds,
            width=_whole(_number(parameters, self.width)),
            height=_whole(_number(parameters, self.height)),
            frames=_whole(frames),
            audio=_flag(parameters, self.audio),
            within=within,
        )


def _number(parameters: Parameters, name: str | None) -> float | None:
    value = None if name is None else parameters.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value > 0 and math.isfinite(value) else None


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _flag(parameters: Parameters, promised: bool | str | None) -> bool | None:
    value = parameters.get(promised) if isinstance(promised, str) else promised
    return value if isinstance(value, bool) else None
