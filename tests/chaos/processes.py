"""A sandbox and gateways as real processes, which are killed, stopped and started again on one storage."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gateway.app.opening import opened_directory, opened_ledger
from gateway.app.upstream import SANDBOX_KEY
from gateway.ledger.contract import Discrepancy, Purchase
from gateway.settings import Settings, load_settings
from tests.journeys.program import MODULE, environment, is_running
from tests.journeys.running import MODEL, MODELS, PROJECT

TENANT = "demo"
START_SECONDS = 90.0
END_SECONDS = 60.0

SETTINGS: Mapping[str, Any] = {
    "listen.port": 0,
    "operations.port": 0,
    "upstream.kind": "segmind",
    "upstream.result_hosts": ["127.0.0.1"],
    "upstream.poll_first_seconds": 0.05,
    "upstream.poll_longest_seconds": 0.2,
    "upstream.answer_timeout_seconds": 5,
    "ledger.lease_seconds": 1.5,
    "reconcile.interval_seconds": 0.3,
    "reconcile.history_lag_seconds": 6,
    "reconcile.wait_seconds": 2,
    "shutdown.grace_seconds": 1,
    "log.level": "info",
}
"""Everything that waits waits little; only the history may lag for longer than a stalled worker sleeps."""


@dataclass(frozen=True)
class Process:
    """A `gateway` command, the leader of a session of its own: every process that it starts is in it."""

    process: asyncio.subprocess.Process
    url: str

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that it has started, as long as it lives; itself where it serves alone."""
        return sorted(pid for pid in alive_in(self.pid) if pid != self.pid) or [self.pid]

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill_all(self) -> None:
        """All of its session at once, as if the machine had lost its power."""
        for pid in (self.pid, *alive_in(self.pid)):
            kill(pid, signal.SIGKILL)

    async def ended(self) -> int:
        """Its exit code, once nothing of its session is left."""
        async with asyncio.timeout(END_SECONDS):
            code = await self.process.wait()
            while alive_in(self.pid):
                await asyncio.sleep(0.02)
        return code


def kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def alive_in(session: int) -> list[int]:
    """Every process of a session that is not just its remains."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return [pid for pid in found if is_running(pid)]


class World:
    """One directory with a sandbox's things and a gateway's, and the processes that work on them."""

    def __init__(
        self, directory: Path, *, settings: Mapping[str, Any], budget_usd: str, time_scale: float
    ) -> None:
        self.directory = directory
        self.sandbox_url = ""
        self.key = ""
        self._settings = dict(SETTINGS) | dict(settings)
        self._time_scale = time_scale
        self._started: list[Process] = []
        self._sandbox: Process | None = None
        self.config = directory / "gateway.yaml"
        self.config.write_text(json.dumps({"storage": {"directory": "var"}, "models": "models"}))
        (directory / "models").mkdir()
        shutil.copy(MODELS / f"{MODEL}.yaml", directory / "models")
        budgets = [{"limit_usd": budget_usd, "per": "total"}]
        (directory / "tenants.yaml").write_text(json.dumps({"tenants": {TENANT: {"budgets": budgets}}}))
        self.temporary = directory / "tmp"
        self.temporary.mkdir()

    @property
    def storage(self) -> Path:
        return self.directory / "var"

    @property
    def log(self) -> Path:
        return self.directory / "gateway.log"

    def settings(self) -> Settings:
        return load_settings(self.config, overrides=self._overrides(), environment={})

    def _overrides(self) -> Sequence[str]:
        named = self._settings | {"upstream.base_url": self.sandbox_url or "http://127.0.0.1:1"}
        return [f"{name}={json.dumps(value)}" for name, value in named.items()]

    # --- Processes

    async def start_sandbox(self, port: int = 0) -> None:
        settings = {
            "sandbox.port": port,
            "sandbox.directory": str(self.directory / "sandbox"),
            "sandbox.time_scale": self._time_scale,
            "log.level": "warning",
        }
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        self._sandbox = await self._start("sandbox", words, "Sandbox", log="sandbox.log")
        self.sandbox_url = self._sandbox.url

    async def restart_sandbox(self) -> None:
        """Kill it, and start it again where it was: what it sold is on its disk."""
        assert self._sandbox is not None
        self._sandbox.kill_all()
        await self._sandbox.ended()
        await self.start_sandbox(int(self.sandbox_url.rpartition(":")[2]))

    async def start(
        self, *, workers: int = 1, crash_at: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Process:
        """A gateway on the storage, with these settings from now on; others may be at work there."""
        self._settings |= settings or {}
        words = [word for override in self._overrides() for word in ("--set", override)]
        variables = {} if crash_at is None else {"GATEWAY_CRASH_AT": crash_at}
        return await self._start(
            "serve", [*words, "--workers", str(workers)], "Gateway", log="gateway.log", **variables
        )

    async def _start(
        self, command: str, words: Sequence[str], label: str, *, log: str, **variables: str
    ) -> Process:
        with (self.directory / log).open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *MODULE,
                command,
                "--config",
                str(self.config),
                *words,
                cwd=PROJECT,
                env=environment({"SEGMIND_API_KEY": SANDBOX_KEY, "TMPDIR": str(self.temporary), **variables}),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        started = Process(process, "")
        self._started.append(started)
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while line := await process.stdout.readline():
                words_of_line = line.decode().split()
                if words_of_line[:1] == [label]:
                    named = Process(process, words_of_line[1])
                    self._started[-1] = named
                    return named
        raise AssertionError(f"`gateway {command}` has ended; {self.directory / log} says why")

    def left_over(self) -> list[int]:
        """Processes of gateways that are there, whoever should have ended them."""
        return [
            pid
            for started in self._started
            if self._sandbox is None or started.pid != self._sandbox.pid
            for pid in alive_in(started.pid)
        ]

    async def end(self) -> None:
        """Nothing of ours outlives us."""
        for started in self._started:
            started.kill_all()
        for started in self._started:
            await started.ended()

    # --- The sandbox

    async def faults(self, session: aiohttp.ClientSession, faults: Mapping[str, Any]) -> None:
        async with session.put(f"{self.sandbox_url}/sandbox/faults", json=faults) as answer:
            assert answer.status == 200, await answer.text()

    async def calm(self, session: aiohttp.ClientSession) -> None:
        """No fault strikes any more."""
        async with session.delete(f"{self.sandbox_url}/sandbox/faults") as answer:
            assert answer.status == 200, await answer.text()

    async def bill(self, session: aiohttp.ClientSession) -> Any:
        """The bill, once nothing runs that could still be added to it."""
        async with asyncio.timeout(END_SECONDS):
            while True:
                async with session.get(f"{self.sandbox_url}/sandbox/bill") as answer:
                    assert answer.status == 200, await answer.text()
                    bill = await answer.json()
                if not bill["total"]["running"]:
                    return bill
                await asyncio.sleep(0.1)

    # --- The books

    async def books(self) -> Books:
        async with opened_ledger(self.settings()) as ledger:
            return Books(
                purchases=await ledger.purchases(limit=1_000_000),
                spent_micros=sum(money.micros for money in (await ledger.spent()).values()),
                held_micros=sum(money.micros for money in (await ledger.reserved()).values()),
                unknown_micros=(await ledger.unknown()).micros,
                lost_micros=(await ledger.lost()).micros,
                discrepancies=await ledger.verify(),
            )


@dataclass(frozen=True)
class Books:
    """What the ledger says."""

    purchases: Sequence[Purchase]
    spent_micros: int
    held_micros: int
    unknown_micros: int
    lost_micros: int
    discrepancies: Sequence[Discrepancy]


@asynccontextmanager
async def world(
    directory: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    budget_usd: str = "1000",
    time_scale: float = 0.0,
) -> AsyncIterator[World]:
    """A running sandbox, a key of the one tenant, and no gateway yet. Whatever is started in it ends with it."""
    made = World(directory, settings=settings or {}, budget_usd=budget_usd, time_scale=time_scale)
    async with AsyncExitStack() as closing:
        closing.push_async_callback(made.end)
        await made.start_sandbox()
        async with opened_directory(made.settings()) as keys:
            made.key = await keys.create(TENANT, "of a test")
        yield made
