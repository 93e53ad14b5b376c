"""Pace: exactly as many go ahead as may, in one process and over several, and a page outlives whoever used it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.database.pace import Pace, Taken

_PROJECT = Path(__file__).parents[2]
NOW = 1_800_000_000.0


@pytest.fixture
def pace(tmp_path: Path) -> Iterator[Pace]:
    with closing(Pace(tmp_path / "pace")) as pace:
        yield pace


def _sixty_a_minute(pace: Pace, now: float, *, place: int = 1, burst: int = 10) -> Taken:
    return pace.take(place, now, requests=60, seconds=60, burst=burst)


def test_so_many_as_may_come_at_once_go_ahead_and_the_next_is_told_how_long_to_wait(pace: Pace) -> None:
    told = [_sixty_a_minute(pace, NOW) for _ in range(11)]

    assert [each.wait_seconds for each in told] == [0.0] * 10 + [1.0]
    assert [each.left for each in told] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert [each.full_in_seconds for each in told] == [*map(float, range(1, 11)), 10.0]


def test_whoever_waits_as_long_as_was_said_goes_ahead_and_a_moment_sooner_does_not(pace: Pace) -> None:
    for _ in range(10):
        _sixty_a_minute(pace, NOW)

    assert _sixty_a_minute(pace, NOW + 0.25).wait_seconds == 0.75
    assert _sixty_a_minute(pace, NOW + 0.75).wait_seconds == 0.25
    assert _sixty_a_minute(pace, NOW + 1.0).wait_seconds == 0
    assert _sixty_a_minute(pace, NOW + 1.0).wait_seconds == 1.0


def test_who_was_refused_has_lost_nothing_by_asking(pace: Pace) -> None:
    for _ in range(10):
        _sixty_a_minute(pace, NOW)
    for _ in range(1000):
        assert _sixty_a_minute(pace, NOW).wait_seconds == 1.0

    assert _sixty_a_minute(pace, NOW + 1.0).wait_seconds == 0


def test_after_a_rest_all_may_come_at_once_again_and_not_more(pace: Pace) -> None:
    for later in (0.0, 10.0, 86_400.0):
        told = [_sixty_a_minute(pace, NOW + later).wait_seconds for _ in range(12)]
        assert [each > 0 for each in told] == [False] * 10 + [True] * 2


def test_places_know_nothing_of_each_other_but_those_a_page_apart(pace: Pace) -> None:
    for _ in range(10):
        _sixty_a_minute(pace, NOW, place=7)

    assert _sixty_a_minute(pace, NOW, place=8).left == 9
    assert _sixty_a_minute(pace, NOW, place=65_535).left == 9
    assert _sixty_a_minute(pace, NOW, place=7 + 65_536).wait_seconds == 1.0


@settings(max_examples=60, deadline=None)
@given(
    requests=st.integers(1, 1000),
    seconds=st.sampled_from((1, 60, 3600, 86_400)),
    burst=st.integers(1, 30),
    gaps=st.lists(st.integers(0, 4) | st.floats(0, 3), min_size=1, max_size=150),
)
def test_it_is_a_bucket_that_leaks_one_request_at_a_time(
    tmp_path_factory: pytest.TempPathFactory, requests: int, seconds: int, burst: int, gaps: list[float]
) -> None:
    """Gaps are in what one request takes to leak, so that every edge is met; all in whole microseconds."""
    path = tmp_path_factory.getbasetemp() / "bucket"
    path.unlink(missing_ok=True)
    one = math.ceil(Fraction(seconds * 1_000_000, requests))
    moment, level = int(NOW) * 1_000_000, 0
    with closing(Pace(path)) as pace:
        for gap in gaps:
            leaked = int(gap * one)
            moment, level = moment + leaked, max(0, level - leaked)
            told = pace.take(5, moment / 1_000_000, requests=requests, seconds=seconds, burst=burst)
            if level + one <= burst * one:
                level += one
                assert told.wait_seconds == 0
            else:
                assert told.wait_seconds == (level + one - burst * one) / 1_000_000
            assert told.full_in_seconds == level / 1_000_000
            assert told.left == (burst * one - level) // one


def test_a_clock_that_was_put_back_stops_nobody(pace: Pace) -> None:
    for _ in range(10):
        _sixty_a_minute(pace, NOW + 3600)

    assert _sixty_a_minute(pace, NOW).left == 9


def test_two_on_one_page_count_together_and_what_one_closes_the_other_goes_on_with(
    pace: Pace, tmp_path: Path
) -> None:
    other = Pace(tmp_path / "pace")
    for _ in range(5):
        _sixty_a_minute(pace, NOW)
    assert _sixty_a_minute(other, NOW).left == 4
    other.close()
    other.close()

    assert _sixty_a_minute(pace, NOW).left == 3


def test_a_page_that_is_longer_or_shorter_than_it_should_be_is_used_and_never_shortened(
    tmp_path: Path,
) -> None:
    for size in (0, 1, 4096, 1_000_000):
        path = tmp_path / str(size)
        path.write_bytes(b"\0" * size)
        with closing(Pace(path)) as pace:
            assert _sixty_a_minute(pace, NOW, place=65_535).left == 9
        assert path.stat().st_size == max(size, 524_288)


def test_the_page_is_its_owners_alone_and_takes_up_hardly_any_disk(pace: Pace, tmp_path: Path) -> None:
    _sixty_a_minute(pace, NOW)

    told = (tmp_path / "pace").stat()
    assert told.st_mode & 0o777 == 0o600
    assert told.st_blocks * 512 < 524_288


def _processes(count: int, *arguments: str) -> Sequence[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", _ASKING, *arguments],
            cwd=_PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(count)
    ]  # fmt: skip


def test_of_two_processes_that_ask_at_once_exactly_as_many_go_ahead_as_may(tmp_path: Path) -> None:
    """At one moment, so that nothing grows again: 5,000 may, 20,000 ask."""
    children = _processes(2, str(tmp_path / "pace"), "5000")
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "opened\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    taken = [int(child.communicate()[0]) for child in children]

    assert sum(taken) == 5000
    with closing(Pace(tmp_path / "pace")) as pace:
        assert _sixty_a_minute(pace, NOW, place=3, burst=5000).wait_seconds == 1.0, "the page outlives them"


def test_a_process_that_was_stopped_with_a_place_in_its_hands_is_not_waited_for_for_ever(
    pace: Pace, tmp_path: Path
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _KEEPING, str(tmp_path / "pace")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "kept\n"
        os.kill(child.pid, signal.SIGSTOP)

        assert [_sixty_a_minute(pace, NOW, place=3).left for _ in range(3)] == [9, 8, 7]
        assert _sixty_a_minute(pace, NOW, place=4).left == 9
    finally:
        child.kill()
        child.communicate()


_ASKING = """
import sys
from pathlib import Path
from gateway.database.pace import Pace

pace = Pace(Path(sys.argv[1]))
print("opened", flush=True)
sys.stdin.readline()
taken = 0
for _ in range(10_000):
    taken += pace.take(3, 1_800_000_000.0, requests=60, seconds=60, burst=int(sys.argv[2])).wait_seconds == 0
print(taken)
"""

_KEEPING = """
import fcntl, os, signal, sys

descriptor = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(descriptor, fcntl.LOCK_EX, 8, 3 * 8)
print("kept", flush=True)
signal.pause()
"""


@given(
    st.integers(1, 100), st.integers(1, 3600), st.integers(1, 50), st.lists(st.floats(0, 100), max_size=30)
)
def test_looking_says_what_asking_would_come_to_and_counts_nothing(
    tmp_path_factory: pytest.TempPathFactory, requests: int, seconds: int, burst: int, pauses: list[float]
) -> None:
    rate = {"requests": requests, "seconds": seconds, "burst": burst}
    now = NOW
    with closing(Pace(tmp_path_factory.mktemp("pace") / "pace")) as pace:
        for pause in pauses:
            now += pause
            seen = pace.look(1, now, **rate)
            assert pace.look(1, now, **rate) == seen
            taken = pace.take(1, now, **rate)
            assert taken.wait_seconds == seen.wait_seconds
            assert taken.left == (seen.left - 1 if seen.left else 0)
            assert pace.look(1, now, **rate).left == taken.left
