"""How fast is a hit? The gateway beside nginx, in one run on one machine: `python -m bench.speed --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from bench.paid_once.programs import DidNotStart
from bench.paid_once.scenes import Request
from bench.paid_once.servers import nginx_version
from bench.speed import report, servers
from bench.speed.load import load, wrk_version
from bench.speed.machine import (
    Cores,
    calibration,
    congestion_control,
    cores,
    load_average,
)
from bench.speed.report import About, Findings, page
from bench.speed.servers import Asked, Sandbox, Server, body
from bench.speed.waiting import wait_together
from gateway import __version__

_HERE = Path(__file__).parent
_BOUND_SECONDS = 1500.0
_DISTINCT = 20
_BODY_BYTES = 1000
_SECONDS_OF_VIDEO = 50
_RANGE_BYTES = 65_536
_SMALL = {report.SMALL_1: 1, report.SMALL_16: 16, report.SMALL_64: 64}


def _small(number: int) -> Asked:
    """A question of about a kilobyte; its answer is the smallest that the catalogue has."""
    question = f"Question {number}: what does a lighthouse keeper do all day? ".ljust(_BODY_BYTES - 60, ".")
    return Asked("deepseek-chat", body({"messages": [{"role": "user", "content": question}]}))


def _video(seconds: int) -> Asked:
    # This model takes any parameter, and the sandbox makes them true.
    shape = {"width": 1280, "height": 1280, "num_frames": 24 * seconds + 1, "fps": 24}
    return Asked("ltx-2.5-pro", body({"prompt": "A lighthouse in a storm", **shape}))


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace, root: Path, where: Cores) -> None:
        self._options = options
        self._root = root
        self._cores = where
        self.found = Findings()

    async def run(self, *, has_wrk: bool, has_nginx: bool) -> None:
        self.found.calibrations.append(calibration())
        async with servers.sandbox(self._root, self._cores) as sandbox:
            async with AsyncExitStack() as stack:
                await self._hits(await self._candidates(stack, sandbox, has_nginx=has_nginx), has_wrk=has_wrk)
            await self._waiting(sandbox, has_nginx=has_nginx)
        self.found.calibrations.append(calibration())

    async def _candidates(
        self, stack: AsyncExitStack, sandbox: Sandbox, *, has_nginx: bool
    ) -> Sequence[Server]:
        started = [
            await stack.enter_async_context(
                servers.gateway(self._root, sandbox, self._cores, workers=workers, settings=self._options.set)
            )
            for workers in sorted({1, *self._options.workers})
        ]
        ours = started[0]
        if has_nginx:
            passed_on = partial(servers.generations, ours.operations_url)
            started.append(
                await stack.enter_async_context(
                    servers.nginx(self._root, ours.url, ours.key, self._cores, passed_on)
                )
            )
        return started

    async def _hits(self, candidates: Sequence[Server], *, has_wrk: bool) -> None:
        small = [_small(number) for number in range(_DISTINCT)]
        video = _video(self._options.video_seconds)
        answers = [await candidate.warm([*small, video]) for candidate in candidates]
        if any(others != answers[0] for others in answers[1:]):
            raise DidNotStart("the candidates do not give the same answers")
        self.found.answer_bytes = {"small": len(answers[0][0]), "video": len(answers[0][-1])}
        size = self.found.answer_bytes["video"]
        links = {each.name: await _link(candidates[0], each, video, size) for each in candidates}
        if has_wrk:
            for scene, connections in _SMALL.items():
                await self._load(
                    candidates, scene, connections, {c.name: [one.of(c) for one in small] for c in candidates}
                )
            await self._load(candidates, report.VIDEO, 16, {c.name: [video.of(c)] for c in candidates})
            await self._load(candidates, report.RANGE, 16, {name: [link] for name, link in links.items()})
        else:
            self.found.missing.append("hits and Ranges: wrk is not installed.")
        if len(candidates) == 1 or candidates[-1].name != report.NGINX:
            self.found.missing.append("nginx, which is not installed.")
        for _ in range(self._options.repetitions):
            # The gateway first: nginx asks nobody.
            for candidate in candidates:
                seconds = await candidate.restart(small[0])
                self.found.start_seconds.setdefault(candidate.name, []).append(seconds)
        for candidate in candidates:
            self.found.idle_bytes[candidate.name] = candidate.idle_bytes
            _say(f"process to first hit: {candidate.name}: {self.found.start_seconds[candidate.name]}")

    async def _load(
        self,
        candidates: Sequence[Server],
        scene: str,
        connections: int,
        requests: dict[str, list[Request]],
    ) -> None:
        for _ in range(self._options.repetitions):
            for candidate in candidates:
                passed_on = await candidate.passed_on()
                sample = await load(
                    candidate.program,
                    requests[candidate.name],
                    connections=connections,
                    seconds=self._options.seconds,
                    cores=self._cores,
                    script=self._root / "wrk.lua",
                )
                more = await candidate.passed_on() - passed_on
                self.found.passed_on[candidate.name] = self.found.passed_on.get(candidate.name, 0) + more
                self.found.samples.setdefault((scene, candidate.name), []).append(sample)
                _say(
                    f"{scene}: {candidate.name}: {sample.rate:,.0f}/s, "
                    f"{sample.cpu_seconds_per_thousand:.4f} CPU s per 1,000, others {sample.other_cores:.2f} cores"
                )

    async def _waiting(self, sandbox: Sandbox, *, has_nginx: bool) -> None:
        """Each with a process of its own that has done nothing else, so that what grows is what waits."""
        callers, hold = self._options.callers, self._options.hold_seconds
        for scene, distinct in ((report.ONE_REQUEST, False), (report.MANY_REQUESTS, True)):
            if distinct and not self._options.distinct:
                continue
            for name in (report.GATEWAY, report.NGINX) if has_nginx else (report.GATEWAY,):
                root = self._root / f"waiting-{name}-{distinct}"
                root.mkdir()
                root.chmod(0o755)
                async with (
                    servers.gateway(root, sandbox, self._cores, settings=self._options.set)
                    if name == report.GATEWAY
                    else servers.nginx(root, sandbox.url, sandbox.key, self._cores, sandbox.jobs)
                ) as server:
                    await server.warm([_small(0)])
                    await sandbox.hold(hold)
                    try:
                        # Others than any before: nothing of them is in a cache.
                        asked = [_small(1000 + (number if distinct else 0)) for number in range(callers)]
                        waited = await wait_together(
                            server, [one.of(server) for one in asked], hold_seconds=hold
                        )
                    except TimeoutError:
                        self.found.missing.append(
                            f"{callers:,} callers of {name}, {scene}: not all were answered."
                        )
                        continue
                    finally:
                        await sandbox.hold(None)
                    self.found.waited[scene, name] = waited
                    _say(f"waiting, {scene}: {name}: {waited}")


async def _link(ours: Server, candidate: Server, video: Asked, size_bytes: int) -> Request:
    """A request for a part of the video through its link; nginx takes the one of the gateway behind it."""
    source = ours if candidate.name == report.NGINX else candidate
    request = video.of(source)
    answer = await source.answer(replace(request, headers={**request.headers, "Accept": "application/json"}))
    where = urlsplit(servers.output_link(answer.body))
    first = size_bytes // 3
    link = Request(
        "GET",
        f"{candidate.url}{where.path}?{where.query}",
        {"Range": f"bytes={first}-{first + _RANGE_BYTES - 1}"},
    )
    for _ in range(2):
        part = await candidate.answer(link)
        if (part.status, len(part.body)) != (206, _RANGE_BYTES):
            raise DidNotStart(
                f"{candidate.name}: a range of the video is {part.status}, {len(part.body)} bytes"
            )
    return link


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        root = Path(name)
        # nginx does not run as root, and has to get to what is its own.
        root.chmod(0o755)
        yield root


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- this is a coroutine
    # Told to stop, it stops what it has started first.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    versions = {
        "gateway": __version__,
        "Python": platform.python_version(),
        "nginx": await nginx_version(),
        "wrk": await wrk_version(),
    }
    where = cores()
    loads = [load_average()]
    if where.load:
        # What is not a server runs beside the load generator: this program, the sandbox.
        os.sched_setaffinity(0, where.load)
    with _scratch() as root:
        bench = Bench(options, root, where)
        async with asyncio.timeout(_BOUND_SECONDS):
            await bench.run(has_wrk=versions["wrk"] is not None, has_nginx=versions["nginx"] is not None)
    loads.append(load_average())
    about = About(
        command=_command(sys.argv[1:]),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
        pinning=str(where),
        congestion=congestion_control(),
        load_averages=loads,
        versions=versions,
        settings=[*servers.SETTINGS, *options.set],
        nginx=servers.NGINX_SHOWN,
        seconds=options.seconds,
        repetitions=options.repetitions,
    )
    text = page(bench.found, about)
    options.results.write_text(text, encoding="utf-8")
    _say(f"\n{text}\nWritten to {options.results}")


def _command(arguments: Sequence[str]) -> str:
    """As it was called; but where the table went is of no interest to who reads it."""
    words = list(arguments)
    if "--results" in words:
        at = words.index("--results")
        del words[at : at + 2]
    return " ".join(["python -m bench.speed", *words])


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- a command prints


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: under two minutes")
    parser.add_argument("--seconds", type=float, help="of each repetition (default: 2; quick: 1)")
    parser.add_argument("--repetitions", type=int, help="of each scene (default: 5; quick: 3)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1], help="also a gateway of so many workers"
    )
    parser.add_argument("--callers", type=int, default=1000, help="who wait at once (default: %(default)s)")
    parser.add_argument("--hold-seconds", type=float, help="how long they wait (default: 24; quick: 12)")
    parser.add_argument(
        "--video-seconds",
        type=int,
        default=_SECONDS_OF_VIDEO,
        help="length of the video (default: %(default)s)",
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of the gateway, as it takes it")
    parser.add_argument("--results", type=Path, help="where the table goes; beside this program if left out")
    options = parser.parse_args()
    quick = options.quick
    options.seconds = options.seconds or (1.0 if quick else 2.0)
    options.repetitions = options.repetitions or (3 if quick else 5)
    options.hold_seconds = options.hold_seconds or (12.0 if quick else 24.0)
    options.distinct = not quick
    options.results = options.results or _HERE / ("RESULTS-quick.md" if quick else "RESULTS.md")
    return options


if __name__ == "__main__":
    # A thousand callers have as many connections; the servers inherit it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_run(_options()))
