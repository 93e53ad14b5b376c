"""nginx and Varnish, as they come and as they can be tuned. Each has a counting upstream of its own behind it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.paid_once.programs import Program, directory_for, found, free_port, output
from bench.paid_once.scenes import USD_EACH, Bill, Request
from bench.paid_once.upstream import CountingUpstream, counting_upstream

_NGINX_READ_SECONDS = 60.0
_NGINX_LOCK_SECONDS = 5.0
_VARNISH_FIRST_BYTE_SECONDS = 60.0
_TUNED_SECONDS = 300.0


class Server:
    """A server that is up, with nothing in its cache."""

    def __init__(self, upstream: CountingUpstream, program: Program, port: int, *, method: str) -> None:
        self._upstream = upstream
        self._program = program
        self._port = port
        self._method = method

    def request(self, number: int = 0) -> Request:
        url = f"http://127.0.0.1:{self._port}/video"
        if self._method == "GET":
            return Request("GET", f"{url}?prompt=fox&seed={number}")
        body = b'{"prompt": "a red fox in the snow", "seed": %d}' % number
        return Request("POST", url, {"Content-Type": "application/json"}, body)

    async def bill(self) -> Bill:
        return Bill(self._upstream.paid, self._upstream.paid * USD_EACH)

    async def crash(self) -> None:
        await self._program.kill()
        await self._program.start(listening_on=self._port)


@dataclass(frozen=True, slots=True)
class Nginx:
    name: str
    lock: bool = False
    tuned: bool = False
    ignores_hang_ups: bool = False

    def settings(self, scale: float) -> Sequence[str]:
        """What is added to a cache that has the body in its key. At full scale a default is not written down."""
        lines = []
        if self.lock:
            lines.append("proxy_cache_lock on;")
        if self.tuned:
            lines += [
                f"{name} {_milliseconds(_TUNED_SECONDS * scale)};"
                for name in ("proxy_cache_lock_timeout", "proxy_cache_lock_age", "proxy_read_timeout")
            ]
        elif scale != 1:
            lines.append(f"proxy_read_timeout {_milliseconds(_NGINX_READ_SECONDS * scale)};")
            lock = _milliseconds(_NGINX_LOCK_SECONDS * scale)
            lines += (
                [f"proxy_cache_lock_timeout {lock};", f"proxy_cache_lock_age {lock};"] if self.lock else []
            )
        if self.ignores_hang_ups:
            lines.append("proxy_ignore_client_abort on;")
        return lines

    @asynccontextmanager
    async def running(self, root: Path, *, delay_seconds: float, scale: float) -> AsyncIterator[Server]:
        directory = directory_for(root, "nginx", unprivileged=True)
        port = free_port()
        async with counting_upstream(delay_seconds) as upstream:
            configuration = directory / "nginx.conf"
            configuration.write_text(
                _NGINX.format(
                    directory=directory,
                    port=port,
                    upstream=upstream.url,
                    more="\n            ".join(self.settings(scale)),
                )
            )
            log = directory / "error.log"
            program = Program(
                [found("nginx") or "nginx", "-e", log, "-p", directory, "-c", configuration],
                log=root / "nginx.log",
                unprivileged=True,
            )
            try:
                await program.start(listening_on=port)
                yield Server(upstream, program, port, method="POST")
            finally:
                await program.stop()


_NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/proxied;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    proxy_cache_path {directory}/cache keys_zone=videos:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_cache videos;
            proxy_cache_methods POST;
            proxy_cache_key "$request_method $request_uri $request_body";
            {more}
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Varnish:
    name: str
    method: str
    tuned: bool = False

    def settings(self, scale: float) -> Sequence[str]:
        """Its parameters. At full scale a default is not written down."""
        if self.tuned or scale != 1:
            seconds = (_TUNED_SECONDS if self.tuned else _VARNISH_FIRST_BYTE_SECONDS) * scale
            return [f"first_byte_timeout={seconds:g}"]
        return []

    @asynccontextmanager
    async def running(self, root: Path, *, delay_seconds: float, scale: float) -> AsyncIterator[Server]:
        directory = directory_for(root, "varnish", unprivileged=True)
        port = free_port()
        async with counting_upstream(delay_seconds) as upstream:
            host, _, upstream_port = upstream.url.removeprefix("http://").partition(":")
            backend = f'vcl 4.1;\nbackend counting {{ .host = "{host}"; .port = "{upstream_port}"; }}\n'
            (root / "counting.vcl").write_text(backend)
            program = Program(
                [
                    *(found("varnishd") or "varnishd", "-F", "-j", "none"),
                    *("-n", directory, "-a", f"127.0.0.1:{port}", "-f", root / "counting.vcl"),
                    *("-s", "malloc,64m"),
                    *(word for setting in self.settings(scale) for word in ("-p", setting)),
                ],
                log=root / "varnish.log",
                unprivileged=True,
            )
            try:
                await program.start(listening_on=port)
                yield Server(upstream, program, port, method=self.method)
            finally:
                await program.stop()


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms"


async def nginx_version() -> str | None:
    """None where it is not installed."""
    program = found("nginx")
    return program and _version(await output(program, "-v"), r"nginx/(\S+)")


async def varnish_version() -> str | None:
    """None where it is not installed."""
    program = found("varnishd")
    return program and _version(await output(program, "-V"), r"varnish-(\S+)")


def _version(said: str, pattern: str) -> str:
    number = re.search(pattern, said)
    return number[1] if number else said.strip()
