"""The sandbox's switchboard, and its page in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.sandbox.faults import FAULTS, BadSetting, Faults

DOCUMENT = Path(__file__).parents[2] / "docs" / "sandbox.md"


def faults(*chances: float) -> Faults:
    """A switchboard whose chances come in this order."""
    drawn = iter(chances)
    return Faults(lambda: next(drawn))


def test_a_fault_that_is_off_never_strikes() -> None:
    assert faults().draw("submit_dropped", "m") is None


def test_a_probability_strikes_as_often_as_chance_falls_below_it() -> None:
    board = faults(0.29, 0.3, 0.31, 0.0)
    board.put({"submit_dropped": {"probability": 0.3}})

    assert [board.draw("submit_dropped", "m") is not None for _ in range(4)] == [True, False, False, True]


def test_a_count_strikes_the_next_so_many_times_without_asking_chance() -> None:
    board = faults()
    board.put({"submit_dropped": {"count": 2}})

    assert [board.draw("submit_dropped", "m") is not None for _ in range(4)] == [True, True, False, False]


def test_a_count_with_a_probability_is_used_up_only_by_strikes() -> None:
    board = faults(0.9, 0.1, 0.9, 0.1)
    board.put({"submit_dropped": {"probability": 0.5, "count": 2}})

    assert [board.draw("submit_dropped", "m") is not None for _ in range(5)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_another_models_request_uses_nothing_up() -> None:
    board = faults()
    board.put({"submit_dropped": {"count": 1, "model": "mine"}})

    assert board.draw("submit_dropped", "other") is None
    assert board.draw("submit_dropped", "mine") is not None


def test_a_job_is_dealt_the_faults_of_jobs_and_of_its_api_only() -> None:
    board = faults()
    board.put({fault.name: {"count": 1} for fault in FAULTS})
    of_v1, of_v2 = set(board.draw_for_job("m", "v1")), set(board.draw_for_job("m", "v2"))

    assert of_v1 == {fault.name for fault in FAULTS if fault.strikes in {"job", "v1 job"}}
    assert of_v2 == {fault.name for fault in FAULTS if fault.strikes == "v2 job"}


def test_a_knob_that_is_not_given_has_its_default() -> None:
    board = faults()
    board.put({"poll_error": {"count": 1}, "submit_slow": {"seconds": 0.5}})

    poll, slow = board.draw("poll_error", "m"), board.draw("submit_slow", "m")
    assert poll is not None
    assert slow is not None
    assert (poll.status(), slow.number("seconds")) == (504, 0.5)


def test_a_strike_keeps_its_knobs_when_they_are_turned_later() -> None:
    board = faults()
    board.put({"failed": {"error": "first"}})
    struck = board.draw("failed", "m")
    board.put({"failed": {"error": "second"}})

    assert struck is not None
    assert struck.text("error") == "first"


def test_one_bad_setting_changes_nothing() -> None:
    board = faults()
    board.put({"poll_error": {"count": 1}})
    with pytest.raises(BadSetting, match="did you mean 'submit_slow'"):
        board.put({"poll_error": {}, "submit_slo": {}})

    assert board.draw("poll_error", "m") is not None


def test_the_document_lists_every_fault_with_its_knobs_as_they_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (.+?) \| (.*?) ?\|$", DOCUMENT.read_text(), re.MULTILINE)
    documented = {
        name: (strikes, does, re.findall(r"`(\w+)` \((.*?)\): (.+?)(?:; (?=`)|$)", knobs))
        for name, strikes, does, knobs in rows
    }

    assert documented == {
        fault.name: (
            fault.strikes,
            fault.does,
            [
                (
                    knob.name,
                    str(knob.default).lower() if isinstance(knob.default, bool) else str(knob.default),
                    knob.meaning,
                )
                for knob in fault.knobs
            ],
        )
        for fault in FAULTS
    }
