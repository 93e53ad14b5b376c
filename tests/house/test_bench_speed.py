"""bench/speed: that each scene comes out, with counts in it. How fast anything is, is no test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.paid_once.programs import found
from tests.house.project import PROJECT, table_rows, text_of

CALLERS = 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is measured is read from /proc")


def _bench(results: Path, *arguments: str, path: str | None = None) -> str:
    ran = subprocess.run(
        [
            sys.executable, "-m", "bench.speed", "--seconds", "0.2", "--repetitions", "1", "--video-seconds", "2",
            *("--callers", str(CALLERS), "--hold-seconds", "3", "--results", str(results), *arguments),
        ],
        cwd=PROJECT, env={**os.environ, "PATH": path or os.environ["PATH"]},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    written = results.read_text(encoding="utf-8")
    assert written in ran.stdout
    return written


def _number(cell: str) -> float:
    return float(cell.split(" ", maxsplit=1)[0].replace(",", ""))


@pytest.mark.skipif(found("wrk") is None, reason="wrk is not installed")
@pytest.mark.skipif(found("nginx") is None, reason="nginx is not installed")
def test_every_scene_is_measured_for_the_gateway_and_for_nginx(tmp_path: Path) -> None:
    told = _bench(tmp_path / "told.md")

    hits = table_rows(told, after="## Hits\n")
    scenes = ["small hit, 1 connection", "small hit, 16 connections", "small hit, 64 connections"]
    scenes += ["video hit, 16 connections", "Range of 64 KiB, 16 connections"]
    assert [row[:2] for row in hits] == [[scene, name] for scene in scenes for name in ("gateway", "nginx")]
    assert all(_number(row[2]) > 0 and row[9] == "0" for row in hits), hits
    assert all(_number(row[6]) > 0 for row in hits if row[1] == "gateway"), hits
    assert "asked of the upstream while hits were measured: gateway 0, nginx 0." in told
    starts = table_rows(told, after="## Start and memory\n")
    assert [row[0] for row in starts] == ["gateway", "nginx"]
    assert all(_number(row[1]) > 0 and _number(row[2]) > 0 for row in starts), starts
    bars = table_rows(told, after="## Beside the bars of issue 4\n")
    assert [row[0] for row in bars if row[3] == "not measured"] == [
        "small hit, 64 connections, two workers of one's"
    ]
    verdicts = {row[3].partition(":")[0] for row in bars}
    assert verdicts <= {"met", "**not met yet**", "undecided", "not measured"}


@pytest.mark.skipif(
    not Path("/usr/sbin/nginx").exists(), reason="nginx is not installed, or not from a package"
)
def test_callers_who_wait_are_all_answered_and_one_request_is_asked_for_once(tmp_path: Path) -> None:
    told = _bench(tmp_path / "told.md", path=str(tmp_path))

    waited = re.findall(rf"^\| {CALLERS}; (.+?) \| (\w+) \| (.+?) \| (.+?) \|", told, flags=re.MULTILINE)
    assert waited == [
        (scene, name, str(CALLERS), str(asked))
        for scene, asked in (("all ask the same", 1), ("each asks something else", CALLERS))
        for name in ("gateway", "nginx")
    ]
    # On a PATH with nothing on it, nginx alone is found.
    assert "; not pinned: there are no two cores, or no taskset." in told
    assert "wrk **not installed**" in told
    assert "- Not measured: hits and Ranges: wrk is not installed." in told
    assert table_rows(told, after="## Hits\n") == []


def test_what_was_seen_here_is_written_down_with_the_bars_that_are_not_met() -> None:
    told = text_of("bench/speed/RESULTS.md")

    rows = table_rows(told, after="## Beside the bars of issue 4\n")
    verdicts = {row[3].partition(":")[0] for row in rows}
    assert "**not met yet**" in verdicts <= {"met", "**not met yet**", "undecided"}
    assert "[bench/speed/RESULTS.md](../bench/speed/RESULTS.md)" in text_of("docs/benchmarks.md")
