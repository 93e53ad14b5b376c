"""How long after the start of its process a gateway answers: `python -m bench.speed.starts [--quick]`.

A request for what it has had before, and one for what has to be bought, of an upstream that answers at once. Each time it is
a process that was just started, with what little it had stored the time before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.paid_once.ours import PROJECT
from bench.paid_once.programs import DidNotStart
from bench.speed import servers
from bench.speed.machine import Cores, cores, stop_when_told
from bench.speed.servers import Asked, Server
from bench.speed.stub import stub, write_models

_NAME = "starts"
_BOUND_SECONDS = 280.0
_HIT_BAR_SECONDS, _PURCHASE_BAR_SECONDS = 0.5, 1.0


class _Bench:
    """One run."""

    def __init__(self, gateway: Server) -> None:
        self._gateway = gateway
        self._cpu_seconds: dict[str, list[float]] = {"hit": [], "purchase": []}
        self._seconds: dict[str, list[float]] = {"hit": [], "purchase": []}

    async def run(self, repetitions: int) -> list[dict[str, object]]:
        known = _question("what is known")
        await self._gateway.warm([known])
        # The first start after a change of the program compiles it, and no other does.
        await self._gateway.restart(known)
        for number in range(repetitions):
            self._note("hit", await self._gateway.restart(known))
            self._note("purchase", await self._first_purchase(_question(f"what is new, {number}")))
        return [
            self._row("hit", "start: process to the first hit", _HIT_BAR_SECONDS),
            self._row("purchase", "start: process to the first purchase", _PURCHASE_BAR_SECONDS),
            {
                **_figures([size / 1e6 for size in self._gateway.idle_bytes[1:]], "MB"),
                "what": "memory of a gateway after its start and a hit",
                "bar": "",
                "met": None,
                "note": "resident, one process",
            },
        ]

    async def _first_purchase(self, question: Asked) -> float:
        await self._gateway.program.stop()
        request = question.of(self._gateway)
        began = time.monotonic()
        await self._gateway.start()
        answer = await self._gateway.answer(request)
        seconds = time.monotonic() - began
        if answer.status != 200 or answer.hit:
            raise DidNotStart(f"not bought: {answer!r:.300}")
        return seconds

    def _note(self, what: str, seconds: float) -> None:
        cpu_seconds = self._gateway.program.cpu_seconds()
        self._seconds[what].append(seconds)
        self._cpu_seconds[what].append(cpu_seconds)
        _say(f"first {what} {seconds:.3f} s after the start; {cpu_seconds:.2f} CPU s")

    def _row(self, kind: str, what: str, bar: float) -> dict[str, object]:
        seconds = self._seconds[kind]
        return {
            **_figures(seconds, "s"),
            "what": what,
            "bar": f"<= {bar:g} s",
            "met": statistics.median(seconds) <= bar,
            "note": f"{statistics.median(self._cpu_seconds[kind]):.2f} CPU s",
        }


def _question(text: str) -> Asked:
    return Asked("bench-text-v1", json.dumps({"prompt": text}).encode())


def _figures(values: Sequence[float], unit: str) -> dict[str, object]:
    return {
        "value": round(statistics.median(values), 3),
        "unit": unit,
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


async def _run(options: argparse.Namespace) -> dict[str, object]:
    stop_when_told()
    where = cores()
    if where.load:
        os.sched_setaffinity(0, where.load)
    with tempfile.TemporaryDirectory(prefix="starts-", dir=options.directory) as name:
        async with asyncio.timeout(_BOUND_SECONDS):
            return {"name": _NAME, "rows": await _measured(Path(name), where, options), "notes": [str(where)]}


async def _measured(root: Path, where: Cores, options: argparse.Namespace) -> list[dict[str, object]]:
    # The catalogue as it is, and what the stub makes besides: reading the models is part of a start.
    models = root / "models"
    await asyncio.to_thread(write_models, models)
    await asyncio.to_thread(_copy_catalogue, models)
    async with (
        stub(root, where) as upstream,
        servers.gateway(root, upstream, where, settings=[f"models={models}", *options.set]) as gateway,
    ):
        return await _Bench(gateway).run(options.repetitions)


def _copy_catalogue(models: Path) -> None:
    for path in (PROJECT / "config" / "models").glob("*.yaml"):
        (models / path.name).write_bytes(path.read_bytes())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- progress


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.starts", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three starts of each kind")
    parser.add_argument("--repetitions", type=int, help="starts of each kind (default: 9; quick: 3)")
    parser.add_argument("--set", action="append", default=[], help="a setting of the gateway, as it takes it")
    parser.add_argument("--directory", type=Path, help="on whose disk the gateway stores")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (3 if options.quick else 9)
    return options


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(_options()))))  # noqa: T201 -- a command prints
