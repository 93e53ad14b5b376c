"""Servers that can be measured: the gateway, and the sandbox behind it. The peers are in peers.py."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.paid_once.ours import COMMAND, PROJECT, SANDBOX_KEY, configuration, environment, overrides
from bench.paid_once.programs import DidNotStart, directory_for, free_port
from bench.paid_once.scenes import Request
from bench.speed.machine import Cores, Measured, pinned
from gateway.app.opening import opened_directory
from gateway.settings import load_settings

_TIME_SCALE = 0.001
_START_SECONDS = 30.0
_ANSWER_SECONDS = 120.0
_LOOKS_EVERY_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a generation, whoever is asked."""

    model: str
    body: bytes

    def of(self, server: Server, key: str | None = None) -> Request:
        """As a tenant of `server` asks it; its first, if none is named by its key."""
        return Request(
            "POST",
            f"{server.url}/v1/{self.model}",
            {"Content-Type": "application/json", "x-api-key": key or server.key},
            self.body,
        )


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    hit: bool
    body: bytes


@dataclass(slots=True)
class Server:
    """A candidate that is up."""

    name: str
    program: Measured
    url: str
    keys: Sequence[str]
    """One a tenant."""

    passed_on: Callable[[], Awaitable[int]]
    """How many generations it has asked its upstream for so far."""

    operations_url: str = ""
    idle_bytes: list[int] = field(default_factory=list)
    """Its memory after each start and first hit."""

    @property
    def key(self) -> str:
        return self.keys[0]

    async def answer(self, request: Request) -> Answered:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS)) as session,
            session.request(
                request.method, request.url, headers=request.headers, data=request.body
            ) as answer,
        ):
            hit = answer.headers.get("X-Cache") or answer.headers.get("Cache-Status", "").partition("; ")[2]
            return Answered(answer.status, hit.lower().startswith("hit"), await answer.read())

    async def warm(self, asked: Sequence[Asked]) -> Sequence[bytes]:
        """The answers, which from now on come out of its cache."""
        await asyncio.gather(*(self.answer(one.of(self)) for one in asked))
        answers = [await self.answer(one.of(self)) for one in asked]
        if missed := [answer for answer in answers if answer.status != 200 or not answer.hit]:
            raise DidNotStart(f"{self.name}: {len(missed)} not from the cache: {missed[0]!r:.300}")
        return [answer.body for answer in answers]

    async def restart(self, asked: Asked) -> float:
        """Seconds from the start of its process to a first hit, of what it has had before."""
        await self.program.stop()
        request = asked.of(self)
        began = time.monotonic()
        await self.program.start()
        seconds = await self._first_hit(request) - began
        self.idle_bytes.append(self.program.resident_bytes())
        return seconds

    async def start(self) -> None:
        await self.program.start()
        async with asyncio.timeout(_START_SECONDS):
            await _port_answers(self.program, self.url)

    async def _first_hit(self, request: Request) -> float:
        async with asyncio.timeout(_START_SECONDS):
            await _port_answers(self.program, self.url)
            answer = await self.answer(request)
        if not answer.hit or answer.status != 200:
            raise DidNotStart(f"{self.name}: not from the cache after a restart: {answer!r:.300}")
        return time.monotonic()


async def _port_answers(program: Measured, url: str) -> None:
    port = int(url.rpartition(":")[2])
    while program.pids:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(_LOOKS_EVERY_SECONDS)
        else:
            writer.close()
            return
    raise DidNotStart(f"what should answer at {url} has ended")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The stand-in for the upstream, which keeps the bill."""

    url: str
    key: str = SANDBOX_KEY

    async def jobs(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/sandbox/bill") as books:
            jobs: int = (await books.json())["total"]["jobs"]
            return jobs

    async def hold(self, seconds: float | None) -> None:
        """Let each job wait so long before it begins; None for not at all."""
        faults = {"cold_start": {} if seconds is None else {"seconds": seconds}}
        async with aiohttp.ClientSession() as session:
            if seconds is None:
                await session.delete(f"{self.url}/sandbox/faults")
            else:
                (await session.put(f"{self.url}/sandbox/faults", json=faults)).raise_for_status()


@asynccontextmanager
async def sandbox(root: Path, cores: Cores, *, models: Path | None = None) -> AsyncIterator[Sandbox]:
    """With the catalogue, or with what else is in `models`."""
    directory = directory_for(root, "sandbox")
    port = free_port()
    (directory / "gateway.yaml").write_text(configuration(f"http://127.0.0.1:{port}"))
    told = [f"sandbox.port={port}", f"sandbox.time_scale={_TIME_SCALE}"]
    told += [f"models={models}"] if models else []
    program = Measured(
        pinned(
            [*COMMAND, "sandbox", "--config", directory / "gateway.yaml", *overrides(*told)], cores.load
        ),
        log=root / "sandbox.log", environment=environment(), directory=PROJECT,
    )  # fmt: skip
    try:
        await program.start(until="Sandbox")
        yield Sandbox(f"http://127.0.0.1:{port}")
    finally:
        await program.stop()


@asynccontextmanager
async def gateway(
    root: Path,
    behind: Sandbox,
    cores: Cores,
    *,
    workers: int = 1,
    tenants: int = 1,
    settings: Sequence[str] = (),
) -> AsyncIterator[Server]:
    """With so many tenants, who have a key each. `settings` are some more of its own, as `--set` takes them."""
    name = "gateway" if workers == 1 else f"gateway, {workers} workers"
    directory = directory_for(root, f"gateway-{workers}")
    file = directory / "gateway.yaml"
    file.write_text(configuration(behind.url))
    (directory / "tenants.yaml").write_text(
        "tenants:\n" + "".join(_TENANT.format(number=number) for number in range(tenants))
    )
    keys = await _keys(file, settings)
    ports = {"listen": free_port(), "operations": free_port()}
    told = [*SETTINGS, *(f"{room}.port={port}" for room, port in ports.items()), *settings]
    program = Measured(
        pinned(
            [*COMMAND, "serve", "--config", file, "--workers", str(workers), *overrides(*told)],
            cores.server if workers == 1 else cores.all,
        ),
        log=root / f"gateway-{workers}.log", environment=environment(), directory=PROJECT,
    )  # fmt: skip
    url, operations_url = (f"http://127.0.0.1:{port}" for port in ports.values())
    server = Server(name, program, url, keys, behind.jobs, operations_url)
    try:
        await server.start()
        yield server
    finally:
        await program.stop()


SETTINGS = ("log.level=warning", "shutdown.grace_seconds=2")
"""No line a request, as nginx writes none here; and a short end. All else are its defaults."""

_TENANT = """\
  tenant-{number}:
    budgets: [{{limit_usd: 100000, per: total}}]
"""


async def _keys(file: Path, settings: Sequence[str]) -> Sequence[str]:
    """One for each tenant, made where `gateway keys create` makes them: a thousand commands would take minutes."""
    configured = load_settings(file, overrides=settings, environment={})
    async with opened_directory(configured) as directory:
        return await asyncio.gather(*(directory.create(tenant.name, "bench") for tenant in directory))


async def generations(operations_url: str) -> int:
    """How many requests for a generation a gateway has had, by its own metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{operations_url}/metrics") as metrics:
        text = await metrics.text()
    return int(
        sum(float(count) for count in re.findall(r"^gateway_requests_total\{.*\} (\S+)$", text, re.MULTILINE))
    )
