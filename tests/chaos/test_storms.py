"""Storms, in a short form: every fault and every signal, a few seconds each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.storm import Weather, blown_over

SEEDS = ("1", "2", "3")

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("seed", [os.environ["CHAOS_SEED"]] if "CHAOS_SEED" in os.environ else SEEDS)
async def test_after_a_storm_everybody_has_the_same_bytes_and_each_request_was_paid_for_once(
    tmp_path: Path, seed: str
) -> None:
    report = await blown_over(tmp_path, Weather(seed))

    assert report.received.counts["deliveries"] > 0
    assert report.figures.drift_micros == 0
