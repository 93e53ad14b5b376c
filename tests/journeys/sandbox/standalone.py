"""A sandbox in a process of its own, to be killed: `standalone.py DIRECTORY TIME_SCALE` prints its URL."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.journeys.sandbox.running import RunningSandbox


async def main(directory: str, time_scale: str) -> None:
    async with RunningSandbox(Path(directory), time_scale=float(time_scale)) as sandbox:
        sys.stdout.write(f"{sandbox.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
