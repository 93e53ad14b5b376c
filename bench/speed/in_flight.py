"""What generations in flight cost while they wait: `python -m bench.speed.in_flight [--quick]`.

Distinct requests, each from a connection of its own, all at once, before a stub that takes its time: what each adds to the
gateway's memory, whether all are answered, and what part of a core all of them use while nothing finishes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.paid_once.programs import DidNotStart
from bench.paid_once.scenes import Request
from bench.speed import servers
from bench.speed.machine import Cores, cores, stop_when_told
from bench.speed.openloop import Trip, message, trip
from bench.speed.servers import Server
from bench.speed.stub import MILLISECONDS, SIZE, Stub, stub, write_models

_NAME = "in flight"
_BOUND_SECONDS = 1500.0
_UPSTREAM_SECONDS = 30.0
_AT_ONCE = 64
_SETTLES_SECONDS = 2.0
_LOOKS_EVERY_SECONDS = 0.25
_SPARE_FILES = 500
_KILOBYTES_BAR, _CORE_BAR = 30.0, 0.05
_SLOWEST_ARRIVALS = 80.0
"""A second, of all that are to be in flight: for so long the first have to wait for the last."""


@dataclass(frozen=True, slots=True)
class _Seen:
    callers: int
    answered: int
    bytes_each: float
    cores: float
    last_seconds: float
    """From when the upstream was done with the last one to the last answer."""


class _Crowd:
    """Callers of one gateway who wait together."""

    def __init__(self, upstream: Stub, gateway: Server, protocol: str) -> None:
        self._upstream = upstream
        self._gateway = gateway
        self._protocol = protocol
        self._run = secrets.token_hex(4)

    async def wait_together(self, callers: int, *, watch_seconds: float) -> _Seen:
        """Have so many in flight, look at them for a while, and let them all be answered."""
        warm = [self._request(f"warm {number}", 0.0) for number in range(200)]
        await asyncio.gather(*(self._ask(request, asyncio.Semaphore(4)) for request in warm))
        await asyncio.sleep(_SETTLES_SECONDS)
        before = self._gateway.program.resident_bytes()
        sold = await self._upstream.jobs()
        hold_seconds = max(_UPSTREAM_SECONDS, callers / _SLOWEST_ARRIVALS + _SETTLES_SECONDS + watch_seconds)
        arriving = asyncio.Semaphore(_AT_ONCE)
        tasks = [
            asyncio.create_task(self._ask(self._request(f"{number}", hold_seconds), arriving))
            for number in range(callers)
        ]
        try:
            while await self._upstream.jobs() - sold < callers:
                if any(task.done() for task in tasks):
                    raise DidNotStart(f"not all of {callers} were in flight when the first was answered")
                await asyncio.sleep(_LOOKS_EVERY_SECONDS)
            last_bought = time.monotonic()
            await asyncio.sleep(_SETTLES_SECONDS)
            each = (self._gateway.program.resident_bytes() - before) / callers
            began, cpu = time.monotonic(), self._gateway.program.cpu_seconds()
            await asyncio.sleep(watch_seconds)
            used = (self._gateway.program.cpu_seconds() - cpu) / (time.monotonic() - began)
            if any(task.done() for task in tasks):
                used = float("nan")
            trips = await asyncio.gather(*tasks)
            late = time.monotonic() - last_bought - hold_seconds
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        answered = sum(one is not None and one.status == 200 for one in trips)
        _say(
            f"{self._protocol}: {callers:,} in flight: {each / 1000:.1f} KB each, {used:.2%} of a core, "
            f"{answered:,} answered, the last {late:.1f} s after the upstream was done"
        )
        return _Seen(callers, answered, each, used, late)

    def _request(self, name: str, seconds: float) -> Request:
        prompt = f"{self._run} {name}: a lighthouse in a storm".ljust(900, ".")
        return Request(
            "POST",
            f"{self._gateway.url}/v1/bench-text-{self._protocol}",
            {"Content-Type": "application/json", "x-api-key": self._gateway.key},
            orjson.dumps({"prompt": prompt, MILLISECONDS: int(seconds * 1000), SIZE: 1024}),
        )

    async def _ask(self, request: Request, arriving: asyncio.Semaphore) -> Trip | None:
        """None where the connection broke."""
        try:
            return await trip(request.url, message(request), arriving)
        except OSError:
            return None


async def _run(options: argparse.Namespace) -> dict[str, object]:
    stop_when_told()
    where = cores()
    if where.load:
        os.sched_setaffinity(0, where.load)
    rows: list[dict[str, object]] = []
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with asyncio.timeout(_BOUND_SECONDS):
        for protocol in options.protocols:
            # One long call needs a second connection for each caller.
            most = (files - _SPARE_FILES) // (2 if protocol == "v1" else 1)
            many, waiting = min(options.callers, most), min(options.waiting, most)
            seen = await _crowd(where, protocol, many, options)
            rows.append(_memory(protocol, seen))
            if many != waiting:
                seen = await _crowd(where, protocol, waiting, options)
            rows.append(_cpu(protocol, seen))
    return {"name": _NAME, "rows": rows, "notes": [str(where), f"at most {files:,} open files a process"]}


async def _crowd(where: Cores, protocol: str, callers: int, options: argparse.Namespace) -> _Seen:
    """Before processes that have done nothing else, so that what grows is what waits."""
    with tempfile.TemporaryDirectory(prefix="in-flight-") as name:
        root = Path(name)
        await asyncio.to_thread(write_models, root / "models")
        settings = [f"models={root / 'models'}", *options.set]
        async with (
            stub(root, where) as upstream,
            servers.gateway(root, upstream, where, settings=settings) as gateway,
        ):
            crowd = _Crowd(upstream, gateway, protocol)
            return await crowd.wait_together(callers, watch_seconds=options.watch_seconds)


def _memory(protocol: str, seen: _Seen) -> dict[str, object]:
    kilobytes = seen.bytes_each / 1000
    all_answered = seen.answered == seen.callers
    return _row(
        f"memory per generation in flight, {seen.callers:,} at once, upstream by {protocol}",
        f"<= {_KILOBYTES_BAR:g} KB, all answered",
        kilobytes,
        "KB",
        met=kilobytes <= _KILOBYTES_BAR and all_answered,
        note=f"{seen.answered:,} answered, the last {seen.last_seconds:.1f} s after the upstream was done with it",
    )


def _cpu(protocol: str, seen: _Seen) -> dict[str, object]:
    return _row(
        f"{seen.callers:,} v1 callers held open, nothing finishing, upstream by {protocol}",
        f"< {100 * _CORE_BAR:g} % of a core",
        100 * seen.cores,
        "% of a core",
        met=seen.cores < _CORE_BAR,
        note=f"{seen.bytes_each / 1000:.1f} KB each",
    )


def _row(what: str, bar: str, value: float, unit: str, *, met: bool, note: str) -> dict[str, object]:
    shown = round(value, 2)
    return {
        "what": what, "bar": bar, "value": shown, "unit": unit, "low": shown, "high": shown, "met": met, "note": note
    }  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- a command prints


def _protocols(text: str) -> Sequence[str]:
    return text.split(",")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.in_flight", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a thousand, for half the time")
    parser.add_argument(
        "--callers", type=int, help="whose memory is looked at (default: 10,000; quick: 1,000)"
    )
    parser.add_argument("--waiting", type=int, help="whose processor time is (default: 5,000; quick: 1,000)")
    parser.add_argument("--watch-seconds", type=float, help="for how long (default: 15; quick: 8)")
    parser.add_argument(
        "--protocols", type=_protocols, default=["v2", "v1"], help="of the upstream (default: v2,v1)"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of the gateway, as it takes it")
    options = parser.parse_args()
    options.callers = options.callers or (1000 if options.quick else 10_000)
    options.waiting = options.waiting or (1000 if options.quick else 5000)
    options.watch_seconds = options.watch_seconds or (8.0 if options.quick else 15.0)
    return options


if __name__ == "__main__":
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    print(json.dumps(asyncio.run(_run(_options()))))  # noqa: T201 -- a command prints
