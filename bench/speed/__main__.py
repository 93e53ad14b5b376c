"""How fast is the gateway, beside what one would put there instead, in one run on one machine: `python -m bench.speed --help`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench.paid_once.ours import PROJECT
from bench.paid_once.peer_library import version as litellm_version
from bench.paid_once.programs import DidNotStart, found, output
from bench.paid_once.servers import nginx_version, varnish_version
from bench.speed import namespace, parts, peers, reference, servers
from bench.speed.findings import (
    GATEWAY,
    LITELLM,
    NGINX,
    TAIL_64_KIB,
    TWO_WORKERS,
    VARNISH,
    VIDEO,
    Findings,
)
from bench.speed.hits import Hits, Length
from bench.speed.load import Native, Wrk, wrk_version
from bench.speed.machine import Cores, calibration, congestion_control, cores, load_average, stop_when_told
from bench.speed.parts import PARTS, Part
from bench.speed.plots import plots
from bench.speed.questions import write_models
from bench.speed.report import About, page
from bench.speed.servers import Sandbox, Server
from gateway import __version__

_BENCH = Path(__file__).parents[1]
_QUICK_RESULTS = PROJECT / "var" / "bench" / "RESULTS-quick.md"
_HITS_BOUND_SECONDS = 1200.0
_PEERS = {"nginx": NGINX, "varnish": VARNISH, "litellm": LITELLM}


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace, root: Path, where: Cores) -> None:
        self._options = options
        self._root = root
        self._cores = where
        self.found = Findings()
        self.parts: list[Part] = []

    async def run(self, versions: Mapping[str, str | None]) -> None:
        self.found.calibrations.append(calibration())
        if self._options.hits:
            async with asyncio.timeout(_HITS_BOUND_SECONDS):
                await self._hits(versions)
        for name in self._options.parts:
            _say(f"{name} ...")
            try:
                self.parts.append(await parts.run(name, self._cores, quick=self._options.quick))
            except DidNotStart as error:
                self.found.missing.append(f"{name}: {error}.")
        self.found.calibrations.append(calibration())

    async def _hits(self, versions: Mapping[str, str | None]) -> None:
        options = self._options
        models = await asyncio.to_thread(write_models, self._root / "models")
        length = Length(options.repetitions, options.seconds, options.video_seconds)
        if options.quick:
            length = Length(
                options.repetitions, options.seconds, options.video_seconds, (64,), (VIDEO, TAIL_64_KIB)
            )
        async with (
            servers.sandbox(self._root, self._cores, models=models) as sandbox,
            AsyncExitStack() as stack,
        ):
            hits = Hits(
                self.found,
                await self._candidates(stack, sandbox, models, versions),
                length,
                self._cores,
                self._root,
                Wrk(self._cores, self._root) if versions["wrk"] else None,
                await Native.compiled(self._root, self._cores),
                _say,
            )
            await hits.measure()

    async def _candidates(
        self, stack: AsyncExitStack, sandbox: Sandbox, models: Path, versions: Mapping[str, str | None]
    ) -> Mapping[str, Server]:
        """All that can be had. Whoever is not there is named in what was found."""
        options, root, where = self._options, self._root, self._cores
        gateway = partial(
            servers.gateway,
            root,
            sandbox,
            where,
            tenants=peers.TENANTS,
            settings=[f"models={models}", *options.set],
        )
        ours = await stack.enter_async_context(gateway())
        running = {GATEWAY: ours}
        if not options.quick:
            running[TWO_WORKERS] = await stack.enter_async_context(gateway(workers=2))
        passed_on = partial(servers.generations, ours.operations_url)
        starting: Mapping[str, Callable[[], AbstractAsyncContextManager[Server]]] = {
            NGINX: lambda: peers.nginx(root, ours, where, passed_on),
            VARNISH: lambda: peers.varnish(root, ours, where, passed_on),
            LITELLM: lambda: peers.litellm(options.litellm_python, root, where),
        }
        for name in map(_PEERS.__getitem__, options.peers):
            if versions[name] is None:
                self.found.missing.append(f"{name}, which is not installed.")
                continue
            try:
                running[name] = await stack.enter_async_context(starting[name]())
            except (DidNotStart, TimeoutError) as error:
                self.found.missing.append(
                    f"{name}, which did not start: {' '.join(str(error).split())[-300:]}"
                )
        return running


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        root = Path(name)
        # nginx does not run as root, and has to get to what is its own.
        root.chmod(0o755)
        yield root


async def _run(options: argparse.Namespace, network: str) -> None:
    stop_when_told()
    versions = {
        "gateway": __version__,
        "Python": platform.python_version(),
        NGINX: await nginx_version(),
        VARNISH: await varnish_version(),
        LITELLM: await litellm_version(options.litellm_python),
        "wrk": await wrk_version(),
        "cc": await _compiler_version(),
    }
    where, loads, began = cores(), [load_average()], time.monotonic()
    if where.load:
        # What is not a server runs beside the load generator: this program, the sandbox.
        os.sched_setaffinity(0, where.load)
    with _scratch() as root:
        bench = Bench(options, root, where)
        await bench.run(versions)
    loads.append(load_average())
    about = About(
        command=_command(sys.argv[1:]),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores ({_processor()})",
        pinning=str(where),
        network=network,
        minutes=(time.monotonic() - began) / 60,
        load_averages=loads,
        versions=versions,
        settings=[*servers.SETTINGS, *options.set],
        configurations={name: peers.SHOWN[name] for name in options.peers if versions[_PEERS[name]]},
        whole=not options.quick,
        seconds=options.seconds,
        repetitions=options.repetitions,
    )
    _write(bench, about, options)


def _write(bench: Bench, about: About, options: argparse.Namespace) -> None:
    results: Path = options.results
    results.parent.mkdir(parents=True, exist_ok=True)
    drawn = {} if options.quick else plots(bench.found)
    for name, text in drawn.items():
        file = results.parent / "plots" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    text = page(bench.found, bench.parts, about, plots=[f"plots/{name}" for name in drawn])
    results.write_text(text, encoding="utf-8")
    if options.remember:
        reference.remember(bench.found)
    _say(f"\n{text}\nWritten to {results}")


def _command(arguments: Sequence[str]) -> str:
    """As it was called; but where the table went is of no interest to who reads it."""
    words = list(arguments)
    if "--results" in words:
        at = words.index("--results")
        del words[at : at + 2]
    return " ".join(["python -m bench.speed", *words])


async def _compiler_version() -> str | None:
    compiler = found("cc")
    if compiler is None:
        return None
    number = re.search(r"\d+\.\d+\.\d+", (await output(compiler, "--version")).partition("\n")[0])
    return number[0] if number else "of an unknown version"


def _processor() -> str:
    name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    return name[1] if name else "unknown"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 -- a command prints


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: under two minutes")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each repetition (default: %(default)g)"
    )
    parser.add_argument("--repetitions", type=int, help="of each scene (default: 5; quick: 3)")
    parser.add_argument(
        "--video-seconds",
        type=int,
        default=50,
        help="length of the video (default: %(default)s, which are 3 MB)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=_PEERS,
        metavar="PEER",
        help=f"beside whom: {', '.join(_PEERS)} (default: all; quick: nginx)",
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        metavar="PART",
        help=f"what is run besides hits: {', '.join(PARTS)} (default: all; quick: none)",
    )
    parser.add_argument("--no-hits", dest="hits", action="store_false", help="the parts alone")
    parser.add_argument("--set", action="append", default=[], help="a setting of the gateway, as it takes it")
    parser.add_argument(
        "--remember", action="store_true", help="write down what hits cost, for later runs to compare"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="where the page goes, with plots beside it (default: bench/RESULTS.md; quick: var/bench/RESULTS-quick.md)",
    )
    parser.add_argument(
        "--litellm-python",
        type=Path,
        default=PROJECT / "var" / "bench" / "litellm" / "bin" / "python",
        help="the interpreter of LiteLLM's environment (default: where install-peers puts it)",
    )
    options = parser.parse_args()
    quick = options.quick
    options.repetitions = options.repetitions or (3 if quick else 5)
    options.peers = (["nginx"] if quick else list(_PEERS)) if options.peers is None else options.peers
    options.parts = ([] if quick else list(PARTS)) if options.parts is None else options.parts
    options.results = options.results or (_QUICK_RESULTS if quick else _BENCH / "RESULTS.md")
    return options


def _network() -> str:
    """Where all of it happens from now on, in words."""
    refused = namespace.enter()
    where = (
        "loopback of a network namespace of its own"
        if refused is None
        else f"**loopback of the machine** (no namespace of its own: {refused})"
    )
    return f"{where}, TCP {congestion_control()}"


if __name__ == "__main__":
    # A thousand callers have as many connections; the servers inherit it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_run(_options(), _network()))
