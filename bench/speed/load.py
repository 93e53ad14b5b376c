"""Load generators: wrk for small answers, and one of our own for large ones and for rates. Both run on their own core."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import struct
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.paid_once.programs import DidNotStart, found, output
from bench.paid_once.scenes import Request
from bench.speed.machine import Cores, Measured, busy_seconds, children_seconds, pinned

_AT_MOST = "10m"
_STOPS_WITHIN_SECONDS = 20.0
_NATIVE = Path(__file__).with_name("native")
QUIET_CORES = 0.25

UNSEEN_LETTERS = 36
"""How many spaces and tabs make a body that nobody has sent before: one letter a bit."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of a load generator saw, and what it cost the server."""

    answers: int
    refused: int
    """Answers of 400 and above."""

    broken: int
    """Connections that could not be made, broke, or fell silent."""

    received_bytes: int
    seconds: float
    p50_ms: float
    p99_ms: float
    server_cpu_seconds: float
    busiest_cpu_seconds: float
    """Of the one process of the server that used most."""

    load_cores: float
    """How busy the load generator was: at 1, it was the limit."""

    other_cores: float
    """How many cores everything else on the machine kept busy meanwhile."""

    @property
    def good(self) -> int:
        return self.answers - self.refused

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds

    @property
    def megabytes_a_second(self) -> float:
        return self.received_bytes / self.seconds / 1e6

    @property
    def cpu_microseconds(self) -> float:
        """Of the server, for one good answer."""
        return 1e6 * self.server_cpu_seconds / max(1, self.good)

    @property
    def server_cores(self) -> float:
        return self.server_cpu_seconds / self.seconds

    @property
    def rate_of_full_cores(self) -> float:
        """Good answers a second if each process had a core of its own, and the busiest one all of it."""
        return self.good / self.busiest_cpu_seconds if self.busiest_cpu_seconds else 0.0

    @property
    def quiet(self) -> bool:
        return self.other_cores <= QUIET_CORES


class Wrk:
    """wrk, which asks as fast as it is answered. Reads 8 KB at a time: it is for small answers."""

    def __init__(self, cores: Cores, scratch: Path) -> None:
        self._cores = cores
        self._script = scratch / "wrk.lua"
        self._runs = itertools.count()

    async def load(
        self,
        server: Measured,
        requests: Sequence[Request],
        *,
        connections: int,
        seconds: float,
        unseen: bool = False,
    ) -> Sample:
        """Ask for `requests` in turn. With `unseen`, each goes out with white space in it that no request had before."""
        script = _script(requests, next(self._runs) if unseen else None)
        await asyncio.to_thread(self._script.write_text, script, encoding="utf-8")
        command: list[str | Path] = [found("wrk") or "wrk", "-t", "1", "-c", str(connections), "-d", _AT_MOST, "--timeout", "30s",
                   "-s", self._script, requests[0].url]  # fmt: skip
        # Told to stop, it tells what it saw: so it can be had for less than its shortest, a second.
        return await _observed(server, pinned(command, self._cores.load), stopped_after_seconds=seconds)


class Native:
    """native/load.c, which reads 256 KB at a time, and can keep to a rate."""

    def __init__(self, directory: Path, cores: Cores) -> None:
        self._directory = directory
        self._cores = cores

    @classmethod
    async def compiled(cls, directory: Path, cores: Cores) -> Native | None:
        """None where there is no C compiler. Raises DidNotStart if the compiler does not like what it sees."""
        compiler = found("cc")
        if compiler is None:
            return None
        for name in ("load", "sendfile"):
            said = await output(compiler, "-O2", "-o", directory / name, _NATIVE / f"{name}.c")
            if not (directory / name).exists():
                raise DidNotStart(said[-1000:])
        return cls(directory, cores)

    @property
    def sendfile(self) -> Path:
        """The server that does nothing else."""
        return self._directory / "sendfile"

    async def load(
        self,
        server: Measured,
        requests: Sequence[Request],
        *,
        connections: int,
        seconds: float,
        rate: float = 0.0,
        discards: bool = False,
    ) -> Sample:
        """Ask for `requests` in turn, as fast as they are answered, or so many a second whoever is ready.

        A load generator that discards what comes, in the kernel, leaves more of its core to the asking.
        """
        wire = b"".join(struct.pack("<I", len(text)) + text for text in map(on_the_wire, requests))
        file = self._directory / "requests"
        await asyncio.to_thread(file.write_bytes, wire)
        port = urlsplit(requests[0].url).port
        words: list[str | Path] = [
            self._directory / "load",
            str(port),
            str(connections),
            f"{seconds:g}",
            f"{rate:.3f}",
            file,
            *(["discard"] if discards else []),
        ]
        return await _observed(server, pinned(words, self._cores.load))


async def _observed(
    server: Measured, command: Sequence[str | Path], *, stopped_after_seconds: float | None = None
) -> Sample:
    before, busy, ended = server.cpu_seconds_by_process(), busy_seconds(), children_seconds()
    generator = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        if stopped_after_seconds is not None:
            await asyncio.sleep(stopped_after_seconds)
            # One that has ended before tells below why.
            with contextlib.suppress(ProcessLookupError):
                generator.send_signal(signal.SIGINT)
        async with asyncio.timeout(_STOPS_WITHIN_SECONDS):
            said, complained = await generator.communicate()
    finally:
        if generator.returncode is None:
            generator.kill()
            await generator.wait()
    after = server.cpu_seconds_by_process()
    used = [seconds - before.get(pid, 0.0) for pid, seconds in after.items()]
    own = children_seconds() - ended
    told = re.search(r"^told (\{.*\})$", said.decode(), flags=re.MULTILINE)
    if told is None:
        raise DidNotStart(f"{command}: {(said + complained).decode(errors='replace')[-500:]}")
    return _sample(json.loads(told[1]), used=used, own=own, others=busy_seconds() - busy - sum(used) - own)


def _sample(seen: Mapping[str, Any], *, used: Sequence[float], own: float, others: float) -> Sample:
    seconds = seen["microseconds"] / 1e6
    return Sample(
        seen["answers"],
        seen["refused"],
        seen["broken"],
        seen["bytes"],
        seconds,
        seen["p50"] / 1000,
        seen["p99"] / 1000,
        sum(used),
        max(used, default=0.0),
        own / seconds,
        max(0.0, others / seconds),
    )


def on_the_wire(request: Request) -> bytes:
    """As a client sends it that keeps its connection open."""
    where = urlsplit(request.url)
    lines = [
        f"{request.method} {where.path or '/'}{'?' + where.query if where.query else ''} HTTP/1.1",
        f"Host: {where.netloc}",
    ]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    if request.body is not None:
        lines.append(f"Content-Length: {len(request.body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (request.body or b"")


def _script(requests: Sequence[Request], unseen_run: int | None) -> str:
    lines = ["local requests, turn = {}, 0", "function init(args)"]
    for request in requests:
        headers = ", ".join(
            f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items()
        )
        path = "/" + request.url.split("/", 3)[3]
        body = "nil"
        if request.body is not None:
            space = " " * UNSEEN_LETTERS if unseen_run is not None else ""
            # White space behind the first brace means nothing, whatever the object is.
            body = f"[==[{{{space}{request.body.decode()[1:]}]==]"
        lines.append(
            f'  requests[#requests + 1] = wrk.format("{request.method}", "{path}", {{{headers}}}, {body})'
        )
    asking = _AS_IT_IS if unseen_run is None else _UNSEEN.format(run=unseen_run, letters=UNSEEN_LETTERS)
    return "\n".join([*lines, *(() if unseen_run is None else ("  prepare()",)), "end", asking, _DONE])


_AS_IT_IS = """\
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
"""

_UNSEEN = """\
-- Spaces and tabs that count: a twelfth of a body's number each, so that a request is put together of five strings.
local twelves, before, after, number = {{}}, {{}}, {{}}, {run} * 16777216

function prepare()
  for value = 0, 4095 do
    local letters = {{}}
    for bit = 11, 0, -1 do
      letters[#letters + 1] = math.floor(value / 2 ^ bit) % 2 == 1 and "\\t" or " "
    end
    twelves[value] = table.concat(letters)
  end
  local hole = string.rep(" ", {letters})
  for i, text in ipairs(requests) do
    local first, last = text:find(hole, 1, true)
    before[i], after[i] = text:sub(1, first - 1), text:sub(last + 1)
  end
end

function request()
  turn = turn % #requests + 1
  number = number + 1
  local low, rest = number % 4096, math.floor(number / 4096)
  return before[turn] .. twelves[math.floor(rest / 4096)] .. twelves[rest % 4096] .. twelves[low] .. after[turn]
end
"""

_DONE = """\
function done(summary, latency, _)
  local errors = summary.errors
  print(string.format(
    'told {"answers": %d, "refused": %d, "broken": %d, "bytes": %d, "microseconds": %d, "p50": %d, "p99": %d}',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99)))
end
"""


async def wrk_version() -> str | None:
    """None where it is not installed."""
    program = found("wrk")
    if program is None:
        return None
    said = await output(program, "-v")
    number = re.search(r"wrk (?:debian/)?(\S+)", said)
    return number[1] if number else said.strip()[:40]
