"""Marks: what one process says has changed, every process sees; and what nobody changed stays trusted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.database.marks import Marks

_PROJECT = Path(__file__).parents[2]


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Marks]:
    with closing(Marks(tmp_path / "marks")) as marks:
        yield marks


def test_a_mark_stays_until_its_name_is_changed_and_is_another_one_then(marks: Marks) -> None:
    place = Marks.place("entry:abc")
    before = marks.read(place)
    assert [marks.read(place) for _ in range(3)] == [before] * 3

    seen = {before}
    for _ in range(1000):
        marks.change("entry:abc")
        seen.add(marks.read(place))

    assert len(seen) == 1001


def test_a_change_of_one_name_leaves_other_places_alone(marks: Marks) -> None:
    others = [place for place in range(4096) if place != Marks.place("keys")]
    before = [marks.read(place) for place in others]

    marks.change("keys")

    assert [marks.read(place) for place in others] == before


def test_every_name_has_a_place_which_is_the_same_each_time(marks: Marks) -> None:
    names = [
        *("", "keys", "tenant:a", "tenant:ü", "tenant:\udcff", "x" * 100_000),
        *(f"blob:{number}" for number in range(5000)),
    ]

    places = [Marks.place(name) for name in names]

    assert places == [Marks.place(name) for name in names]
    for name, place in zip(names, places, strict=True):
        before = marks.read(place)
        marks.change(name)
        assert marks.read(place) != before
    assert len(set(places)) > 2000, "names are spread over the places"


def test_two_on_one_file_see_each_others_changes(marks: Marks, tmp_path: Path) -> None:
    with closing(Marks(tmp_path / "marks")) as other:
        place = Marks.place("tenant:demo")
        assert marks.read(place) == other.read(place)

        before = other.read(place)
        marks.change("tenant:demo")
        assert marks.read(place) == other.read(place) != before

        before = marks.read(place)
        other.change("tenant:demo")
        assert marks.read(place) == other.read(place) != before


def test_whoever_opens_the_page_changes_every_mark_since_a_dead_process_may_have_left_one_unchanged(
    marks: Marks, tmp_path: Path
) -> None:
    before = [marks.read(place) for place in range(4096)]

    Marks(tmp_path / "marks").close()

    assert all(marks.read(place) != mark for place, mark in enumerate(before))


def test_what_one_closes_the_others_go_on_with(marks: Marks, tmp_path: Path) -> None:
    other = Marks(tmp_path / "marks")
    other.close()
    other.close()

    marks.change("keys")
    assert marks.read(Marks.place("keys")) >= 0


def test_a_page_that_is_longer_or_shorter_than_it_should_be_is_used_and_never_shortened(
    tmp_path: Path,
) -> None:
    for size in (0, 1, 4096, 100_000):
        path = tmp_path / str(size)
        path.write_bytes(b"\0" * size)
        with closing(Marks(path)) as marks:
            marks.change("keys")
            assert marks.read(Marks.place("keys")) != 0
        assert path.stat().st_size == max(size, 32_768)


def test_the_page_is_its_owners_alone(marks: Marks, tmp_path: Path) -> None:
    marks.change("keys")

    assert (tmp_path / "marks").stat().st_mode & 0o777 == 0o600


def test_what_a_process_changes_is_seen_by_others_before_it_says_so(marks: Marks, tmp_path: Path) -> None:
    place = Marks.place("entry:abc")
    child = subprocess.Popen(
        [sys.executable, "-c", _CHANGING, str(tmp_path / "marks"), "entry:abc"],
        cwd=_PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "opened\n"
    for _ in range(200):
        before = marks.read(place)
        child.stdin.write("change\n")
        child.stdin.flush()
        assert int(child.stdout.readline()) == marks.read(place) != before
    child.kill()
    child.communicate()

    before = marks.read(place)
    assert marks.read(place) == before, "a page outlives whoever used it"
    marks.change("entry:abc")
    assert marks.read(place) != before


def test_processes_that_change_the_same_mark_at_once_lose_no_change(tmp_path: Path) -> None:
    """Each reads its own mark back or another one's newer: never the one from before."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHANGING_OFTEN, str(tmp_path / "marks")],
            cwd=_PROJECT,
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]

    assert [child.communicate()[0] for child in children] == [b"0\n"] * 3


_CHANGING = """
import sys
from pathlib import Path
from gateway.database.marks import Marks

marks = Marks(Path(sys.argv[1]))
print("opened", flush=True)
for _ in sys.stdin:
    marks.change(sys.argv[2])
    print(marks.read(Marks.place(sys.argv[2])), flush=True)
"""

_CHANGING_OFTEN = """
import sys
from pathlib import Path
from gateway.database.marks import Marks

marks = Marks(Path(sys.argv[1]))
place = Marks.place("tenant:demo")
stale = 0
for _ in range(20_000):
    before = marks.read(place)
    marks.change("tenant:demo")
    stale += marks.read(place) == before
print(stale)
"""
