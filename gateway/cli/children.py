"""Processes that the gateway starts, and that end with it, however it ends."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gateway.domain.errors import CannotStart

_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Child:
    """A `gateway` command in a process of its own that says where it is in its first line.

    It stops when its standard input ends: when it is told to, or when the process that holds the other end dies.
    """

    process: Process
    url: str

    async def stop(self, within_seconds: float) -> None:
        """Let it end by itself; after `within_seconds`, end it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(within_seconds):
                await self.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


async def start(arguments: Sequence[str], *, environment: Mapping[str, str]) -> Child:
    """`gateway ARGUMENTS`, once it is ready. Raises CannotStart; the reason is on standard error by then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        *arguments,
        stdin=PIPE,
        stdout=PIPE,
        env=dict(environment),
        # Ctrl-C in a terminal is for the gateway, which then stops these in its own order.
        process_group=0,
    )
    assert process.stdout is not None  # noqa: S101 -- it was asked for, three lines up
    try:
        async with asyncio.timeout(_START_SECONDS):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    words = line.decode().split()
    child = Child(process, words[-1] if words else "")
    if not words:
        await child.stop(0)
        raise CannotStart(f"`gateway {arguments[0]}` did not start: what it says above is the reason.")
    return child
