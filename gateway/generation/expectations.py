"""What came, compared with what was promised: how it differs, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gateway.domain.expectation import Expectation


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the media has shown; None where it has shown nothing."""

    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    frames: int | None = None
    audio: bool | None = None


def differences(expected: Expectation, seen: Seen) -> Iterator[str]:
    """Each way in which `seen` is not near what was promised, as half a sentence; none if it is near."""
    within = expected.within
    for side, asked, came in (
        ("width", expected.width, seen.width),
        ("height", expected.height, seen.height),
    ):
        if asked is not None and came is not None and abs(came - asked) > within.pixels:
            yield f"a {side} of {asked} pixels was asked for, and {came} came"
    for what, asked_for, has_come, near in (
        ("seconds", expected.seconds, seen.seconds, within.seconds),
        ("frames", expected.frames, seen.frames, within.frames),
    ):
        if asked_for is None or has_come is None:
            continue
        if abs(has_come - asked_for) > max(near, within.share * asked_for):
            yield f"{asked_for:.4g} {what} were asked for, and {has_come:.4g} came"
    if expected.audio and seen.audio is False:
        yield "sound was promised, and there is none"
