"""bench/speed/ledger.py: that it says its rows of a ledger that is in order. How fast it is, is no test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.project import PROJECT


@pytest.mark.skipif(sys.platform != "linux", reason="what is measured is read from /proc")
def test_the_ledger_is_filled_found_in_order_and_measured(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench.speed.ledger", "--purchases", "300", "--repetitions", "1", "--directory", tmp_path],
        cwd=PROJECT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["name"] == "ledger"
    assert [row["bar"] for row in told["rows"] if row["bar"]] == ["<= 0.2 ms", "<= 1.5 x"]
    assert all(row["value"] > 0 and row["low"] <= row["value"] <= row["high"] for row in told["rows"])
    assert any("300 settled purchases" in note for note in told["notes"])
    assert list(tmp_path.iterdir()) == []
