"""The gateway, started as anybody starts it, in front of the sandbox, which speaks the upstream's protocol and keeps the bill."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.paid_once.programs import DidNotStart, Program, directory_for, output
from bench.paid_once.scenes import USD_EACH, Bill, Request

PROJECT = Path(__file__).parents[2]
MODEL = "ltx-2-19b-t2v"
SECONDS_AT_FULL_TIME_SCALE = 102.69
"""What the catalogue expects of SHAPE, and the sandbox multiplies by its time scale."""

COMMAND = (sys.executable, "-m", "gateway")
SANDBOX_KEY = "SG_0123456789abcdef"
"""What the sandbox takes for an account's key."""

_SHAPE = {"width": 720, "height": 1280, "num_frames": 121}
_POLL_FIRST_SECONDS = 1.0
_POLL_LONGEST_SECONDS = 5.0
_ANSWER_SECONDS = 60.0


class RunningGateway:
    """A gateway that is up, with nothing in its cache."""

    def __init__(self, program: Program, url: str, key: str, sandbox_url: str) -> None:
        self._program = program
        self._url = url
        self._key = key
        self._sandbox_url = sandbox_url

    def request(self, number: int = 0) -> Request:
        body = {"prompt": "a red fox in the snow", "seed": number, **_SHAPE}
        return Request(
            "POST",
            f"{self._url}/v1/{MODEL}",
            {"Content-Type": "application/json", "x-api-key": self._key},
            json.dumps(body).encode(),
        )

    async def bill(self) -> Bill:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._sandbox_url}/sandbox/bill") as books,
        ):
            total = (await books.json())["total"]
        # What runs is billed when it is made, whoever waits for it.
        running: int = total["running"]
        return Bill(running + total["completed"], running * USD_EACH + total["cost_micros"] / 1_000_000)

    async def crash(self) -> None:
        await self._program.kill()
        self._url = _url(await self._program.start(until="Upstream"))


@dataclass(frozen=True, slots=True)
class Gateway:
    name: str
    workers: int
    limit_usd: float = 1000.0

    @staticmethod
    def settings(scale: float) -> Sequence[str]:
        """Its own lengths of time; at full scale these are its defaults."""
        return [
            f"upstream.poll_first_seconds={_POLL_FIRST_SECONDS * scale:g}",
            f"upstream.poll_longest_seconds={_POLL_LONGEST_SECONDS * scale:g}",
            f"upstream.answer_timeout_seconds={_ANSWER_SECONDS * scale:g}",
        ]

    @asynccontextmanager
    async def running(
        self, root: Path, *, delay_seconds: float, scale: float
    ) -> AsyncIterator[RunningGateway]:
        directory = directory_for(root, "gateway")
        (directory / "tenants.yaml").write_text(
            f"tenants:\n  bench:\n    budgets:\n      - {{limit_usd: {self.limit_usd:g}, per: total}}\n"
        )
        log = root / "gateway.log"
        # Where the upstream is, is said once it is known.
        (directory / "gateway.yaml").write_text(configuration("http://127.0.0.1:9"))
        configured = ["--config", str(directory / "gateway.yaml")]
        time_scale = f"sandbox.time_scale={delay_seconds / SECONDS_AT_FULL_TIME_SCALE:.6f}"
        sandbox = Program(
            [*COMMAND, "sandbox", *configured, *overrides(time_scale)],
            log=log, environment=environment(), directory=PROJECT,
        )  # fmt: skip
        program = None
        try:
            said, key = await asyncio.gather(
                sandbox.start(until="Sandbox"),
                output(*COMMAND, "keys", "create", "bench", *configured, environment=environment()),
            )
            if not key.startswith("gwk_"):
                raise DidNotStart(key)
            sandbox_url = said.split()[-1]
            program = Program(
                [*COMMAND, "serve", *configured, "--workers", str(self.workers),
                 *overrides(f"upstream.base_url={sandbox_url}", *([] if scale == 1 else self.settings(scale)))],
                log=log, environment=environment(), directory=PROJECT,
            )  # fmt: skip
            url = _url(await program.start(until="Upstream"))
            yield RunningGateway(program, url, key.strip(), sandbox_url)
        finally:
            if program is not None:
                await program.stop()
            await sandbox.stop()


def configuration(upstream_url: str, models: Path = PROJECT / "config" / "models") -> str:
    """Of a gateway before the sandbox, and of that sandbox: a file that has its tenants' beside it."""
    return _CONFIGURATION.format(models=models, upstream=upstream_url)


_CONFIGURATION = """\
listen:     {{host: 127.0.0.1, port: 0}}
operations: {{host: 127.0.0.1, port: 0}}
storage:    {{directory: var, max_bytes: 1GiB}}
sandbox:    {{host: 127.0.0.1, port: 0}}
models:     {models}
tenants:    tenants.yaml
upstream:
  kind: segmind
  base_url: {upstream}
  api_key_env: BENCH_UPSTREAM_KEY
  result_hosts: [127.0.0.1]
"""


def overrides(*settings: str) -> list[str]:
    """Some settings, as words of the command."""
    return [word for setting in settings for word in ("--set", setting)]


def environment() -> dict[str, str]:
    """This process's, without what would be a setting of the gateway, and with the upstream's key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "BENCH_UPSTREAM_KEY": SANDBOX_KEY}


def _url(greeting: str) -> str:
    return next(line.split()[1] for line in greeting.splitlines() if line.startswith("Gateway"))
