"""The other modules of bench/speed, each a program of its own: what they say of their bars."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.paid_once.ours import PROJECT
from bench.paid_once.programs import DidNotStart
from bench.speed.findings import Row
from bench.speed.machine import Cores, pinned

PARTS: Mapping[str, Sequence[str]] = {
    "misses": ("--seconds", "2", "--repetitions", "3"),
    "in_flight": ("--watch-seconds", "8"),
    "downloads": (),
    "ledger": ("--repetitions", "5"),
    "entries": ("--repetitions", "3"),
    "starts": (),
}
"""With what they are told in a whole run: by themselves, some take longer than the page can wait."""

_BOUND_SECONDS = 600.0
_ENDS_WITHIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    rows: Sequence[Row]
    notes: Sequence[str]


async def run(name: str, cores: Cores, *, quick: bool) -> Part:
    """What `python -m bench.speed.NAME` says in its last line; its progress goes where this program's errors go.

    Raises DidNotStart for one that fails, takes too long or says something else.
    """
    command = [sys.executable, "-m", f"bench.speed.{name}", *(["--quick"] if quick else PARTS.get(name, ()))]
    # This program has left the servers' core; a part parts the cores itself.
    part = await asyncio.create_subprocess_exec(
        *map(str, pinned(command, cores.all)), cwd=PROJECT, stdin=DEVNULL, stdout=PIPE
    )
    try:
        async with asyncio.timeout(_BOUND_SECONDS):
            said, _ = await part.communicate()
    except TimeoutError as error:
        raise DidNotStart(f"took longer than {_BOUND_SECONDS:g} s") from error
    finally:
        if part.returncode is None:
            part.terminate()
            async with asyncio.timeout(_ENDS_WITHIN_SECONDS):
                await part.wait()
    if part.returncode != 0:
        raise DidNotStart(f"ended with status {part.returncode}")
    try:
        told = json.loads(said.decode().splitlines()[-1])
        return Part(name, [Row.of(row) for row in told["rows"]], told["notes"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DidNotStart(f"said no rows: {said[-200:]!r}") from error
