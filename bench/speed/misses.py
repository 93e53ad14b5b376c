"""What a miss adds to calling the upstream directly: `python -m bench.speed.misses [--quick]`.

Distinct bodies at a fixed rate, to the stub and to the gateway in front of it, in turns. The bar is judged on v1 and small
answers, where calling directly is one POST; v2, media of 3 MB and a film that is decoded are told beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import orjson

from bench.paid_once.programs import DidNotStart
from bench.paid_once.scenes import Request
from bench.speed import servers
from bench.speed.machine import Cores, cores, stop_when_told
from bench.speed.openloop import OpenLoop, Trip, percentile
from bench.speed.servers import Server
from bench.speed.stub import MILLISECONDS, SIZE, Stub, stub, write_models
from gateway.sandbox.media import Recipe, make
from gateway.sandbox.shape import Shape

_BOUND_SECONDS = 900.0
_SMALL, _LARGE = 1024, 3 << 20
_P50_BAR_MS, _P99_BAR_MS = 1.5, 8.0
_NAME = "misses"


@dataclass(frozen=True, slots=True)
class _Scene:
    name: str
    model: str
    size_bytes: int
    milliseconds: int
    rate: float
    judged: bool = False


def _scenes(*, quick: bool) -> Sequence[_Scene]:
    scenes = [
        _Scene("v1, 1 KB, upstream 0 ms", "bench-text-v1", _SMALL, 0, 200, judged=True),
        _Scene("v1, 1 KB, upstream 100 ms", "bench-text-v1", _SMALL, 100, 200, judged=True),
        _Scene("v1, 3 MB, upstream 0 ms, 10/s", "bench-data-v1", _LARGE, 0, 10),
    ]
    if quick:
        return scenes
    return [
        *scenes,
        _Scene("v1, 3 MB, upstream 100 ms, 10/s", "bench-data-v1", _LARGE, 100, 10),
        _Scene("v1, 3 MB of film, upstream 100 ms, 5/s", "bench-video-v1", _LARGE, 100, 5),
        _Scene("v2, 1 KB, upstream 0 ms", "bench-text-v2", _SMALL, 0, 100),
        _Scene("v2, 1 KB, upstream 2,000 ms, 100/s", "bench-text-v2", _SMALL, 2000, 100),
    ]


@dataclass(slots=True)
class _Measured:
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    failed: int = 0


class _Bench:
    def __init__(self, upstream: Stub, gateway: Server, *, seconds: float, repetitions: int) -> None:
        self._upstream = upstream
        self._gateway = gateway
        self._seconds = seconds
        self._repetitions = repetitions
        self._loop = OpenLoop()
        self._numbers = itertools.count()
        self._run = secrets.token_hex(4)

    async def scene(self, scene: _Scene) -> _Measured:
        found = _Measured()
        for _ in range(self._repetitions):
            direct = await self._trips(scene, self._upstream.url, self._upstream.key, found)
            sold, cpu = await self._upstream.jobs(), self._gateway.program.cpu_seconds()
            through = await self._trips(scene, self._gateway.url, self._gateway.key, found)
            cpu = self._gateway.program.cpu_seconds() - cpu
            if (bought := await self._upstream.jobs() - sold) != len(through):
                raise DidNotStart(f"{len(through)} distinct requests were bought {bought} times")
            for into, share in ((found.p50_ms, 0.5), (found.p99_ms, 0.99)):
                added = percentile([t.seconds for t in through], share)
                if scene.model.endswith("v1"):
                    added -= percentile([t.seconds for t in direct], share)
                else:
                    added -= scene.milliseconds / 1000
                into.append(added * 1000)
            found.cpu_ms.append(cpu * 1000 / len(through))
            _say(
                f"{scene.name}: adds p50 {found.p50_ms[-1]:.2f} ms, p99 {found.p99_ms[-1]:.2f} ms; "
                f"{found.cpu_ms[-1]:.2f} CPU ms each"
            )
        return found

    async def _trips(self, scene: _Scene, url: str, key: str, found: _Measured) -> Sequence[Trip]:
        # v2 is bought by the gateway, whose callers wait: a single POST straight to the upstream is v1 in any case.
        requests = [
            Request(
                "POST", f"{url}/v1/{scene.model}",
                {"Content-Type": "application/json", "x-api-key": key},
                orjson.dumps(self._body(scene)),
            )
            for _ in range(int(scene.rate * self._seconds))
        ]  # fmt: skip
        trips = await self._loop.run(requests, rate=scene.rate)
        # A text that comes by v2 is what the upstream says in place of an address, and short.
        least_bytes = scene.size_bytes / 2 if scene.model.endswith("v1") else 1
        found.failed += sum(trip.status != 200 or trip.size_bytes < least_bytes for trip in trips)
        return trips

    def _body(self, scene: _Scene) -> dict[str, object]:
        prompt = f"{self._run}-{next(self._numbers)} a lighthouse in a storm".ljust(900, ".")
        return {"prompt": prompt, MILLISECONDS: scene.milliseconds, SIZE: scene.size_bytes}

    def close(self) -> None:
        self._loop.close()


def _rows(scene: _Scene, found: _Measured) -> list[dict[str, object]]:
    note = f"{statistics.median(found.cpu_ms):.2f} CPU ms each; {found.failed} not answered"
    rows: list[dict[str, object]] = []
    for share, values, bar in (("p50", found.p50_ms, _P50_BAR_MS), ("p99", found.p99_ms, _P99_BAR_MS)):
        value = statistics.median(values)
        rows.append(
            {
                "what": f"miss, {scene.name}: added latency, {share}",
                "bar": f"<= {bar} ms" if scene.judged else "",
                "value": round(value, 3),
                "unit": "ms",
                "low": round(min(values), 3),
                "high": round(max(values), 3),
                "met": value <= bar and not found.failed if scene.judged else None,
                "note": note,
            }
        )
    return rows


def _film(path: Path) -> None:
    """A real film of about three megabytes."""
    shape = Shape(width=1280, height=1280, frames=24 * 50 + 1, fps=Fraction(24), audio=True, seconds=50.0)
    make(Recipe("bench", "video/mp4", shape, ("A lighthouse",), "bench", {}), path)


async def _run(options: argparse.Namespace) -> dict[str, object]:
    stop_when_told()
    where = cores()
    if where.load:
        os.sched_setaffinity(0, where.load)
    with tempfile.TemporaryDirectory(prefix="misses-", dir=options.directory) as name:
        root = Path(name)
        async with asyncio.timeout(_BOUND_SECONDS):
            return {"name": _NAME, "rows": await _measured(options, root, where), "notes": [str(where)]}


async def _measured(options: argparse.Namespace, root: Path, where: Cores) -> list[dict[str, object]]:
    film = root / "film.mp4"
    scenes = [s for s in _scenes(quick=options.quick) if options.only in s.name]
    if any("film" in scene.name for scene in scenes):
        await asyncio.to_thread(_film, film)
    await asyncio.to_thread(write_models, root / "models")
    rows: list[dict[str, object]] = []
    async with (
        stub(root, where, video=film if film.exists() else None) as upstream,
        servers.gateway(
            root, upstream, where, settings=[f"models={root / 'models'}", *options.set]
        ) as gateway,
    ):
        bench = _Bench(upstream, gateway, seconds=options.seconds, repetitions=options.repetitions)
        try:
            # The first of everything pays for what is loaded with it.
            await bench.scene(_Scene("warm-up", "bench-text-v1", _SMALL, 0, 50))
            for scene in scenes:
                rows += _rows(scene, await bench.scene(scene))
        finally:
            bench.close()
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- a command prints


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.misses", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: about half a minute")
    parser.add_argument("--seconds", type=float, help="of each repetition (default: 5; quick: 2)")
    parser.add_argument("--repetitions", type=int, help="of each scene (default: 5; quick: 3)")
    parser.add_argument("--only", default="", help="only scenes whose names have this in them")
    parser.add_argument("--set", action="append", default=[], help="a setting of the gateway, as it takes it")
    parser.add_argument("--directory", type=Path, help="on whose disk the gateway stores")
    options = parser.parse_args()
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    return options


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(_options()))))  # noqa: T201 -- a command prints
