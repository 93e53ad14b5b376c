"""What differs too much from what was promised is said; what is near, or not known, is not."""

from __future__ import annotations

import pytest

from gateway.domain.expectation import Expectation, Tolerances
from gateway.generation.expectations import Seen, differences

WHOLE = Seen(width=704, height=1280, seconds=121 / 24, frames=121, audio=True)


def is_near(asked: Expectation, seen: Seen) -> bool:
    return not list(differences(asked, seen))


def test_what_came_as_it_was_asked_for_does_not_differ() -> None:
    asked = Expectation(width=704, height=1280, seconds=121 / 24, frames=121, audio=True)

    assert list(differences(asked, WHOLE)) == []


def test_where_nothing_is_promised_nothing_differs() -> None:
    assert list(differences(Expectation(), WHOLE)) == []


def test_what_was_not_seen_does_not_differ() -> None:
    asked = Expectation(width=1, height=1, seconds=1, frames=1, audio=True)

    assert list(differences(asked, Seen())) == []


def test_everything_that_differs_is_said_at_once() -> None:
    asked = Expectation(width=100, height=200, seconds=10, frames=240, audio=True)
    came = Seen(width=300, height=400, seconds=2.5, frames=60, audio=False)

    assert list(differences(asked, came)) == [
        "a width of 100 pixels was asked for, and 300 came",
        "a height of 200 pixels was asked for, and 400 came",
        "10 seconds were asked for, and 2.5 came",
        "240 frames were asked for, and 60 came",
        "sound was promised, and there is none",
    ]


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize(
    ("came", "near"), [(720, True), (704, True), (656, True), (655, False), (784, True), (785, False)]
)
def test_a_size_within_a_step_of_the_grid_is_near(side: str, came: int, near: bool) -> None:
    asked, seen = {
        "width": (Expectation(width=720), Seen(width=came)),
        "height": (Expectation(height=720), Seen(height=came)),
    }[side]

    assert is_near(asked, seen) is near


@pytest.mark.parametrize(
    ("asked", "came", "near"),
    [
        (1.0, 0.5, True),  # within half a second, which is half of it
        (1.0, 0.49, False),
        (10.0, 8.8, True),  # within 12 %
        (10.0, 8.79, False),
        (10.0, 11.2, True),
        (10.0, 11.21, False),
    ],
)
def test_a_length_within_half_a_second_or_12_percent_is_near(asked: float, came: float, near: bool) -> None:
    assert is_near(Expectation(seconds=asked), Seen(seconds=came)) is near


@pytest.mark.parametrize(
    ("asked", "came", "near"),
    [(8, 1, True), (9, 1, True), (10, 1, False), (161, 153, True), (400, 352, True), (400, 351, False)],
)
def test_frames_that_are_snapped_away_are_near(asked: int, came: int, near: bool) -> None:
    assert is_near(Expectation(frames=asked), Seen(frames=came)) is near


def test_how_near_is_near_can_be_said() -> None:
    exact = Tolerances(pixels=0, seconds=0, frames=0, share=0)
    asked = Expectation(width=704, height=1280, seconds=121 / 24, frames=121, within=exact)

    assert list(differences(asked, WHOLE)) == []
    assert len(list(differences(asked, Seen(width=705, height=1279, seconds=5.1, frames=122)))) == 4


@pytest.mark.parametrize("promised", [False, None])
def test_sound_that_nobody_asked_for_is_let_be(promised: bool | None) -> None:
    assert list(differences(Expectation(audio=promised), Seen(audio=True))) == []
    assert list(differences(Expectation(audio=promised), Seen(audio=False))) == []
