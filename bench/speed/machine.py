"""What the machine is and does: cores, processor time, memory, and how fast it runs Python. Of Linux."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.paid_once.programs import Program, descendants, found

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_CALIBRATION_SECONDS = 1.0
_ROUNDS_A_LOOK = 200


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the server and the load generator may use; empty where there are no two to part."""

    server: tuple[int, ...]
    load: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return self.server + self.load

    def __str__(self) -> str:
        if not self.all:
            return "not pinned: there are no two cores, or no taskset"
        return f"one-process servers on core {self.server[0]}, the load generator on core {self.load[0]}"


def cores() -> Cores:
    free = sorted(os.sched_getaffinity(0))
    return Cores((free[0],), (free[1],)) if len(free) > 1 and found("taskset") else Cores((), ())


def pinned(command: Sequence[str | Path], to: Sequence[int]) -> list[str | Path]:
    return ["taskset", "-c", ",".join(map(str, to)), *command] if to else list(command)


class Measured(Program):
    """A program whose processes can be looked at while they run."""

    @property
    def pids(self) -> list[int]:
        if self._process is None or self._process.returncode is not None:
            return []
        return [self._process.pid, *descendants(self._process.pid)]

    def cpu_seconds(self) -> float:
        """What all its processes have used so far."""
        return sum(self.cpu_seconds_by_process().values())

    def cpu_seconds_by_process(self) -> dict[int, float]:
        ticks = {}
        for pid in self.pids:
            with contextlib.suppress(OSError):
                # The command, in parentheses, may have spaces in it; what is counted comes behind.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
        return ticks

    def resident_bytes(self) -> int:
        """The sum over its processes; what they share is counted for each."""
        pages = 0
        for pid in self.pids:
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


def busy_seconds() -> float:
    """Processor time that all processes of the machine have used since it started."""
    user, nice, system, _idle, _waiting, *interrupts = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:8]
    )
    return (user + nice + system + sum(interrupts)) / _TICKS_A_SECOND


def children_seconds() -> float:
    """Processor time of the children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def calibration() -> float:
    """Rounds of a fixed piece of pure Python in one second of processor time."""
    rounds, began = 0, time.process_time()
    while (used := time.process_time() - began) < _CALIBRATION_SECONDS:
        for _ in range(_ROUNDS_A_LOOK):
            _round()
        rounds += _ROUNDS_A_LOOK
    return rounds / used


def _round() -> str:
    counted: dict[str, int] = {}
    for number in range(50):
        word = f"word {number % 17}"
        counted[word] = counted.get(word, 0) + number
    return hashlib.sha256(repr(sorted(counted.items())).encode()).hexdigest()


def load_average() -> float:
    """Of the last minute."""
    return os.getloadavg()[0]


def congestion_control() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return "unknown"


def stop_when_told() -> None:
    """Have the task that calls this cancelled by SIGTERM: it stops what it has started first."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- whoever calls this is a coroutine
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
