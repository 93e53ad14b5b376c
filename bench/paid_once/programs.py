"""Programs that the benchmark starts; it stops these and no others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from pathlib import Path

_START_SECONDS = 60.0
_STOP_SECONDS = 45.0
_OUTPUT_SECONDS = 180.0


class DidNotStart(Exception):
    """With what the program said."""


class Program:
    """One command, which can be started again after it was killed."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        unprivileged: bool = False,
    ) -> None:
        self._command = [str(word) for word in command]
        self._log = log
        self._environment = environment
        self._directory = directory
        self._unprivileged = unprivileged and os.geteuid() == 0
        self._process: Process | None = None

    async def start(self, *, until: str | None = None, listening_on: int | None = None) -> str:
        """Start it. Returns what it has printed up to a line that begins with `until`, or when its port answers."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=DEVNULL,
                stdout=PIPE if until else log,
                stderr=log if until else STDOUT,
                env=self._environment,
                cwd=self._directory,
                user="nobody" if self._unprivileged else None,
                group=_nobodys_group() if self._unprivileged else None,
                extra_groups=() if self._unprivileged else None,
            )
        try:
            async with asyncio.timeout(_START_SECONDS):
                if until is not None:
                    return await self._said(self._process, until)
                if listening_on is not None:
                    await self._listens(self._process, listening_on)
                return ""
        except TimeoutError as error:
            raise self._failure() from error

    async def _said(self, process: Process, until: str) -> str:
        assert process.stdout is not None  # noqa: S101 -- it was asked for, above
        said = ""
        while True:
            line = (await process.stdout.readline()).decode()
            if not line:
                raise self._failure()
            said += line
            if line.startswith(until):
                return said

    async def _listens(self, process: Process, port: int) -> None:
        while process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise self._failure()

    async def kill(self) -> None:
        """SIGKILL, at once, to it and to every process that it has started."""
        if self._process is None or self._process.returncode is not None:
            return
        for pid in [self._process.pid, *descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def _failure(self) -> DidNotStart:
        said = self._log.read_text(errors="replace")[-2000:]
        return DidNotStart(f"{' '.join(self._command)} did not start: {said}")


def descendants(pid: int) -> list[int]:
    """Of Linux: elsewhere none are known, and only the program itself is killed."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def _nobodys_group() -> int:
    return pwd.getpwnam("nobody").pw_gid


def directory_for(root: Path, name: str, *, unprivileged: bool = False) -> Path:
    """A new directory, which belongs to whom the program will run as."""
    directory = root / name
    directory.mkdir(parents=True)
    if unprivileged and os.geteuid() == 0:
        os.chown(directory, pwd.getpwnam("nobody").pw_uid, _nobodys_group())
    return directory


def found(program: str) -> str | None:
    """Where it is installed: what a server's administrator has on the PATH, a user may not have."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def output(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """What a short command says, on either stream."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=environment
    )
    async with asyncio.timeout(_OUTPUT_SECONDS):
        said, _ = await process.communicate()
    return said.decode(errors="replace")
