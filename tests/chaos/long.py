"""The long form: storm after storm until the time is up, each out of a seed of its own (`make chaos`; docs/chaos.md).

CHAOS_MINUTES says for how long (5), CHAOS_SEED where to begin (1): the storms are CHAOS_SEED, CHAOS_SEED + 1, ...
"""

# ruff: noqa: T201 -- a program, and its figures are what it is for

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.chaos.callers import seeded
from tests.chaos.storm import Report, Weather, blown_over


def _weather(seed: str) -> Weather:
    """What this seed has in store; each is harder than the short form."""
    chance = seeded(seed, "weather")
    calm = Weather(seed)
    return replace(
        calm,
        callers=chance.choice((10, 30, 50)),
        rounds=chance.choice((6, 10)),
        seconds=chance.choice((15.0, 30.0)),
        workers=chance.choice((1, 2, 3)),
        time_scale=chance.choice((0.0, 0.5, 2.0)),
        hang_up=chance.choice((0.05, 0.3)),
        longest_lull_seconds=chance.choice((0.5, 4.0)),
        settings={
            "upstream.slots": chance.choice((0, 0, 3)),
            "shutdown.grace_seconds": chance.choice((0, 1, 5)),
        },
    )


async def _blow(first: int, minutes: float) -> list[Report]:
    loop = asyncio.get_running_loop()
    end = loop.time() + minutes * 60
    reports: list[Report] = []
    seed = first
    while loop.time() < end:
        started = loop.time()
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="gateway-chaos-"))
        try:
            report = await blown_over(directory, _weather(str(seed)))
        except BaseException:
            print(f"failed; what there is to see is in {directory}", flush=True)
            raise
        await asyncio.to_thread(shutil.rmtree, directory)
        reports.append(report)
        figures = report.figures
        print(
            f"  {loop.time() - started:.0f} s: {sum(report.signals.values())} signals, {sum(report.faults.values())} "
            f"faults, {report.received.counts['requests']} requests, {report.received.counts['deliveries']} deliveries, "
            f"{figures.purchases} purchases, {figures.payments} payments, {figures.lost} lost, "
            f"drift {figures.drift_micros}",
            flush=True,
        )
        seed += 1
    return reports


def _tell(reports: list[Report]) -> None:
    def total(title: str, counters: list[Counter[str]]) -> None:
        summed: Counter[str] = Counter()
        for counter in counters:
            summed.update(counter)
        print(f"{title}:")
        for name, count in summed.most_common():
            print(f"  {count:7d}  {name}")

    figures = [report.figures for report in reports]
    print(f"\n{len(reports)} storms")
    total("signals", [report.signals for report in reports])
    total("faults switched on", [report.faults for report in reports])
    total("callers", [report.received.counts for report in reports])
    total("refusals that passed", [report.received.refusals for report in reports])
    print(f"distinct requests  {sum(len(report.received.digests) for report in reports)}")
    print(f"purchases          {sum(f.purchases for f in figures)}")
    print(f"payments           {sum(f.payments for f in figures)}")
    print(f"paid and lost      {sum(f.lost for f in figures)}")
    print(f"billed             {sum(f.billed_micros for f in figures)} micro-dollars")
    print(f"drift              {sum(f.drift_micros for f in figures)} micro-dollars")


def main() -> None:
    """Blow, tell, and fail with the first promise that is broken."""
    first, minutes = int(os.environ.get("CHAOS_SEED", "1")), float(os.environ.get("CHAOS_MINUTES", "5"))
    _tell(asyncio.run(_blow(first, minutes)))


if __name__ == "__main__":
    main()
