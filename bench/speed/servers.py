"""The gateway with the sandbox behind it, and nginx with the gateway behind it, each with the same answers in its cache."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.paid_once.ours import PROJECT
from bench.paid_once.programs import DidNotStart, directory_for, found, free_port, output
from bench.paid_once.scenes import Request
from bench.speed.machine import Cores, Measured, pinned

TENANTS = 1000
"""How many keys nginx has in its map."""

_GATEWAY = (sys.executable, "-m", "gateway")
_SANDBOX_KEY = "SG_0123456789abcdef"
_TIME_SCALE = 0.001
_START_SECONDS = 30.0
_ANSWER_SECONDS = 120.0
_LOOKS_EVERY_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a generation, whoever is asked."""

    model: str
    body: bytes

    def of(self, server: Server) -> Request:
        return Request(
            "POST",
            f"{server.url}/v1/{self.model}",
            {"Content-Type": "application/json", "x-api-key": server.key},
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
    key: str
    passed_on: Callable[[], Awaitable[int]]
    """How many generations it has asked its upstream for so far."""

    operations_url: str = ""
    idle_bytes: list[int] = field(default_factory=list)
    """Its memory after each start and first hit."""

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


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The stand-in for the upstream, which keeps the bill."""

    url: str
    key: str = _SANDBOX_KEY

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
async def sandbox(root: Path, cores: Cores) -> AsyncIterator[Sandbox]:
    directory = directory_for(root, "sandbox")
    port = free_port()
    (directory / "gateway.yaml").write_text(_configuration(f"http://127.0.0.1:{port}"))
    program = Measured(
        pinned(
            [*_GATEWAY, "sandbox", "--config", directory / "gateway.yaml",
             *("--set", f"sandbox.port={port}", "--set", f"sandbox.time_scale={_TIME_SCALE}")], cores.load,
        ),
        log=root / "sandbox.log", environment=_environment(), directory=PROJECT,
    )  # fmt: skip
    try:
        await program.start(until="Sandbox")
        yield Sandbox(f"http://127.0.0.1:{port}")
    finally:
        await program.stop()


@asynccontextmanager
async def gateway(
    root: Path, behind: Sandbox, cores: Cores, *, workers: int = 1, settings: Sequence[str] = ()
) -> AsyncIterator[Server]:
    """`settings` are some more of its own, as `--set` takes them."""
    name = "gateway" if workers == 1 else f"gateway, {workers} workers"
    directory = directory_for(root, f"gateway-{workers}")
    configured = ["--config", str(directory / "gateway.yaml")]
    (directory / "tenants.yaml").write_text(
        "tenants:\n  bench:\n    budgets:\n      - {limit_usd: 100000, per: total}\n"
    )
    (directory / "gateway.yaml").write_text(_configuration(behind.url))
    key = (
        await output(*_GATEWAY, "keys", "create", "bench", *configured, environment=_environment())
    ).strip()
    if not key.startswith("gwk_"):
        raise DidNotStart(key)
    ports = {"listen": free_port(), "operations": free_port()}
    told = [*SETTINGS, *(f"{room}.port={port}" for room, port in ports.items()), *settings]
    program = Measured(
        pinned(
            [*_GATEWAY, "serve", *configured, "--workers", str(workers),
             *(word for setting in told for word in ("--set", setting))],
            cores.server if workers == 1 else cores.all,
        ),
        log=root / f"gateway-{workers}.log", environment=_environment(), directory=PROJECT,
    )  # fmt: skip
    url, operations_url = (f"http://127.0.0.1:{port}" for port in ports.values())
    server = Server(name, program, url, key, behind.jobs, operations_url)
    try:
        await server.start()
        yield server
    finally:
        await program.stop()


SETTINGS = ("log.level=warning", "shutdown.grace_seconds=2")
"""No line a request, as nginx writes none here; and a short end. All else are its defaults."""


def _configuration(upstream: str) -> str:
    return _GATEWAY_YAML.format(models=PROJECT / "config" / "models", upstream=upstream)


_GATEWAY_YAML = """\
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


def _environment() -> dict[str, str]:
    """This process's, without what would be a setting of the gateway."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "BENCH_UPSTREAM_KEY": _SANDBOX_KEY}


@asynccontextmanager
async def nginx(
    root: Path, upstream_url: str, upstream_key: str, cores: Cores, passed_on: Callable[[], Awaitable[int]]
) -> AsyncIterator[Server]:
    """Its tenants' keys are its own; what it does not have it asks for with `upstream_key`."""
    directory = directory_for(root, "nginx", unprivileged=True)
    port = free_port()
    keys = [f"gwk_{hashlib.sha256(b'%d' % number).hexdigest()[:43]}" for number in range(TENANTS)]
    configuration = directory / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            directory=directory,
            port=port,
            keys="\n".join(f'        "{key}" tenant{number};' for number, key in enumerate(keys)),
            upstream=upstream_url,
            upstream_key=upstream_key,
        )
    )
    program = Measured(
        pinned(
            [found("nginx") or "nginx", "-e", directory / "error.log", "-p", directory, "-c", configuration],
            cores.server,
        ),
        log=root / "nginx.log", unprivileged=True,
    )  # fmt: skip
    server = Server("nginx", program, f"http://127.0.0.1:{port}", keys[TENANTS // 2], passed_on)
    try:
        await server.start()
        yield server
    finally:
        await program.stop()


NGINX = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush off;
    keepalive_requests 1000000000;
    open_file_cache max=10000 inactive=10m;
    open_file_cache_valid 10m;
    client_body_buffer_size 64k;
    client_body_in_single_buffer on;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/proxied;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache levels=1:2 keys_zone=answers:16m inactive=60m use_temp_path=off;
    map_hash_bucket_size 128;
    map_hash_max_size 8192;
    map $http_x_api_key $tenant {{
        default "";
{keys}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        proxy_http_version 1.1;
        proxy_read_timeout 300s;
        proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;
        proxy_cache answers;
        proxy_cache_valid 200 60m;
        proxy_cache_lock on;
        proxy_cache_lock_timeout 300s;
        proxy_cache_lock_age 300s;
        add_header X-Cache $upstream_cache_status;
        location /v1/ {{
            if ($tenant = "") {{ return 401; }}
            proxy_pass {upstream};
            proxy_set_header x-api-key {upstream_key};
            proxy_cache_methods POST;
            proxy_cache_key "$tenant $request_uri $request_body";
        }}
        location /blobs/ {{
            proxy_pass {upstream};
            proxy_cache_key "$request_uri";
        }}
    }}
}}
"""


async def generations(operations_url: str) -> int:
    """How many requests for a generation a gateway has had, by its own metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{operations_url}/metrics") as metrics:
        text = await metrics.text()
    return int(
        sum(float(count) for count in re.findall(r"^gateway_requests_total\{.*\} (\S+)$", text, re.MULTILINE))
    )


def body(content: dict[str, object]) -> bytes:
    return json.dumps(content).encode()


def output_link(record: bytes) -> str:
    """The link to the media in a record, as v1 answers to whoever prefers JSON."""
    link: str = json.loads(record)["output"]
    return link


NGINX_SHOWN = NGINX.format(
    directory="DIRECTORY", port="PORT", upstream="UPSTREAM", upstream_key="KEY",
    keys=f'        "KEY" TENANT;  # and so on: {TENANTS:,} of them',
)  # fmt: skip
