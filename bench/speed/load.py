"""wrk, which asks as fast as it is answered, over connections that stay open."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.paid_once.programs import DidNotStart, found, output
from bench.paid_once.scenes import Request
from bench.speed.machine import Cores, Measured, busy_seconds, children_seconds, pinned

_AT_MOST = "10m"
_STOPS_WITHIN_SECONDS = 20.0
QUIET_CORES = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of wrk saw, and what it cost the server."""

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
    def cpu_seconds_per_thousand(self) -> float:
        return 1000 * self.server_cpu_seconds / max(1, self.good)

    @property
    def server_cores(self) -> float:
        return self.server_cpu_seconds / self.seconds

    @property
    def quiet(self) -> bool:
        return self.other_cores <= QUIET_CORES


async def load(
    server: Measured,
    requests: Sequence[Request],
    *,
    connections: int,
    seconds: float,
    cores: Cores,
    script: Path,
) -> Sample:
    """Ask for `requests` in turn. `script` is where what wrk is told may be written."""
    await asyncio.to_thread(script.write_text, _script(requests), encoding="utf-8")
    command = pinned(
        [found("wrk") or "wrk", "-t", "1", "-c", str(connections), "-d", _AT_MOST, "--timeout", "30s",
         "-s", script, requests[0].url], cores.load,
    )  # fmt: skip
    cpu, busy, ended = server.cpu_seconds(), busy_seconds(), children_seconds()
    wrk = await asyncio.create_subprocess_exec(*map(str, command), stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        # Told to stop, it tells what it saw: so it can be had for less than its shortest, a second.
        await asyncio.sleep(seconds)
        wrk.send_signal(signal.SIGINT)
        async with asyncio.timeout(_STOPS_WITHIN_SECONDS):
            said, complained = await wrk.communicate()
    finally:
        if wrk.returncode is None:
            wrk.kill()
            await wrk.wait()
    cpu, busy = server.cpu_seconds() - cpu, busy_seconds() - busy
    own = children_seconds() - ended
    told = re.search(r"^told (\{.*\})$", said.decode(), flags=re.MULTILINE)
    if told is None:
        raise DidNotStart(f"wrk: {(said + complained).decode(errors='replace')[-500:]}")
    seen = json.loads(told[1])
    elapsed = seen["microseconds"] / 1e6
    return Sample(
        seen["answers"], seen["refused"], seen["broken"], seen["bytes"], elapsed,
        seen["p50"] / 1000, seen["p99"] / 1000, cpu, max(0.0, (busy - cpu - own) / elapsed),
    )  # fmt: skip


def _script(requests: Sequence[Request]) -> str:
    lines = ["local requests, turn = {}, 0", "function init(args)"]
    for request in requests:
        headers = ", ".join(
            f"[{json.dumps(name)}] = {json.dumps(value)}" for name, value in request.headers.items()
        )
        path = "/" + request.url.split("/", 3)[3]
        body = "nil" if request.body is None else f"[==[{request.body.decode()}]==]"
        lines.append(
            f'  requests[#requests + 1] = wrk.format("{request.method}", "{path}", {{{headers}}}, {body})'
        )
    return "\n".join([*lines, "end", _REST])


_REST = """\
function request()
  turn = turn % #requests + 1
  return requests[turn]
end

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
