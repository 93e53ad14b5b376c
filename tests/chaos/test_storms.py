"""Storms, in a short form: every fault and every signal, a few seconds each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.storm import Weather, blown_over

SEEDS = [os.environ["CHAOS_SEED"]] if "CHAOS_SEED" in os.environ else ["1", "2"]

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("seed", SEEDS)
async def test_after_a_storm_everybody_has_the_same_bytes_and_each_request_was_paid_for_once(
    tmp_path: Path, seed: str
) -> None:
    report = await blown_over(tmp_path, Weather(seed))

    assert report.received.counts["deliveries"] > 0
    assert report.received.counts["refused for the budget"] == 0
    assert report.figures.drift_micros == 0


async def test_a_budget_for_five_of_ten_requests_buys_five_whatever_strikes(tmp_path: Path) -> None:
    report = await blown_over(tmp_path, Weather("budget", rounds=3, seconds=6, budget_usd="0.02"))

    assert report.received.counts["refused for the budget"] >= 5
    assert report.figures.payments == 5
    assert report.figures.billed_micros == 20_000
