"""The `gateway` command as a process of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.journeys.running import PROJECT

SCRIPT = (str(Path(sys.executable).with_name("gateway")),)
MODULE = (sys.executable, "-m", "gateway")

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's, without what would be a setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")} | dict(more)


async def run(
    *arguments: str | Path,
    program: tuple[str, ...] = MODULE,
    directory: Path = PROJECT,
    given: str = "",
    **variables: str,
) -> Ended:
    """Run the command to its end; `given` is what stands in its standard input."""
    process = await asyncio.create_subprocess_exec(
        *program,
        *map(str, arguments),
        cwd=directory,
        env=environment(variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_PATIENCE_SECONDS):
        out, err = await process.communicate(given.encode())
    return Ended(process.returncode or 0, out.decode(), err.decode())


class Serving:
    """`gateway serve`, which has said that it is up."""

    def __init__(self, process: asyncio.subprocess.Process, greeting: str, log: Path) -> None:
        self.process = process
        self.greeting = greeting
        self.log = log

    @property
    def url(self) -> str:
        return self._word("Gateway", 1)

    @property
    def operations_url(self) -> str:
        return self._word("Operations", 1).removesuffix("/metrics")

    @property
    def key(self) -> str:
        return self._word("Tenant key", 2)

    @property
    def curl(self) -> str:
        """The command to paste."""
        return self.greeting[self.greeting.index("curl ") :]

    @property
    def children(self) -> list[int]:
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self.process.wait()

    def _word(self, label: str, index: int) -> str:
        return next(line for line in self._lines() if line.startswith(label)).split()[index]

    def _lines(self) -> list[str]:
        return self.greeting.splitlines()


@asynccontextmanager
async def serving(
    *arguments: str | Path, log: Path, program: tuple[str, ...] = MODULE, **variables: str
) -> AsyncIterator[Serving]:
    """`gateway serve` with these arguments, until the block ends."""
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *program,
            "serve",
            *map(str, arguments),
            cwd=PROJECT,
            env=environment(variables),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert process.stdout is not None
        greeting = ""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            # The line to paste is the last, where there is one.
            while not greeting.endswith("'\n") and not ("TENANT`" in greeting and greeting.endswith("\n\n")):
                line = await process.stdout.readline()
                assert line, f"it has ended; {log} says why"
                greeting += line.decode()
        yield Serving(process, greeting, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def is_running(pid: int) -> bool:
    """Whether a process is there, and not just its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def has_curl() -> bool:
    return shutil.which("curl") is not None
