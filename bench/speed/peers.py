"""nginx, Varnish and LiteLLM, as good as we know how to make them: each answers from its own cache."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from bench.paid_once.programs import DidNotStart, directory_for, found, free_port
from bench.paid_once.scenes import Request
from bench.speed.machine import Cores, Measured, pinned
from bench.speed.servers import Server

TENANTS = 1000
"""How many keys every candidate knows."""

_VARNISH_STARTS_WITHIN_SECONDS = 60.0
_LITELLM_STARTS_WITHIN_SECONDS = 120.0
_LITELLM_KEY = "sk-bench"
_LOOKS_EVERY_SECONDS = 0.2


def _keys() -> Sequence[str]:
    return [f"gwk_{hashlib.sha256(b'%d' % number).hexdigest()[:39]}" for number in range(TENANTS)]


@asynccontextmanager
async def nginx(
    root: Path, upstream: Server, cores: Cores, passed_on: Callable[[], Awaitable[int]]
) -> AsyncIterator[Server]:
    """Its tenants' keys are its own; what it does not have it asks `upstream` for, with a key of that one."""
    directory = directory_for(root, "nginx", unprivileged=True)
    port = free_port()
    keys = _keys()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            directory=directory,
            port=port,
            keys="\n".join(f'        "{key}" shared;' for key in keys),
            upstream=upstream.url,
            upstream_key=upstream.key,
        )
    )
    program = Measured(
        pinned(
            [found("nginx") or "nginx", "-e", directory / "error.log", "-p", directory, "-c", configuration],
            cores.server,
        ),
        log=root / "nginx.log", unprivileged=True,
    )  # fmt: skip
    server = Server("nginx", program, f"http://127.0.0.1:{port}", keys, passed_on)
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
    # Whose answers a tenant may have. All of these share theirs, as the gateway's tenants do by default.
    map $http_x_api_key $scope {{
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
            if ($scope = "") {{ return 401; }}
            proxy_pass {upstream};
            proxy_set_header x-api-key {upstream_key};
            proxy_cache_methods POST;
            proxy_cache_key "$scope $request_uri $request_body";
        }}
        location /blobs/ {{
            proxy_pass {upstream};
            proxy_cache_key "$request_uri";
        }}
    }}
}}
"""

NGINX_SHOWN = NGINX.format(
    directory="DIRECTORY", port="PORT", upstream="UPSTREAM", upstream_key="KEY",
    keys=f'        "KEY" shared;  # and so on: {TENANTS:,} of them',
)  # fmt: skip


@asynccontextmanager
async def varnish(
    root: Path, upstream: Server, cores: Cores, passed_on: Callable[[], Awaitable[int]]
) -> AsyncIterator[Server]:
    """Raises DidNotStart where varnish-modules is not there: without it, no body can be in the key of the cache."""
    directory = directory_for(root, "varnish", unprivileged=True)
    port = free_port()
    host, _, upstream_port = upstream.url.removeprefix("http://").partition(":")
    configuration = root / "varnish.vcl"
    configuration.write_text(VARNISH.format(host=host, port=upstream_port, upstream_key=upstream.key))
    program = Measured(
        pinned(
            [found("varnishd") or "varnishd", "-F", "-j", "none", "-n", directory, "-a", f"127.0.0.1:{port}",
             "-f", configuration, *VARNISH_OPTIONS], cores.server,
        ),
        log=root / "varnish.log", unprivileged=True,
    )  # fmt: skip
    server = Server("Varnish", program, f"http://127.0.0.1:{port}", _keys(), passed_on)
    try:
        # Its VCL is compiled first.
        await program.start(listening_on=port)
        yield server
    finally:
        await program.stop()


VARNISH_OPTIONS = ("-s", "malloc,1g", "-p", "default_grace=0", "-p", "listen_depth=4096")

VARNISH = """\
vcl 4.1;
import std;
import bodyaccess;

backend gateway {{ .host = "{host}"; .port = "{port}"; .first_byte_timeout = 300s; }}

sub vcl_recv {{
    # VCL has no map: this is a look at the form of a key, and lets any of it in.
    if (req.url ~ "^/v1/" && req.http.x-api-key !~ "^gwk_[0-9a-f]{{39}}$") {{ return (synth(401)); }}
    if (req.method == "POST") {{
        if (!std.cache_req_body(64KB)) {{ return (synth(413)); }}
        set req.http.x-method = "POST";
    }}
    return (hash);
}}
sub vcl_hash {{
    hash_data(req.url);
    if (req.http.x-method) {{ bodyaccess.hash_req_body(); }}
    return (lookup);
}}
sub vcl_backend_fetch {{
    if (bereq.http.x-method) {{ set bereq.method = "POST"; }}
    set bereq.http.x-api-key = "{upstream_key}";
    return (fetch);
}}
sub vcl_backend_response {{
    unset beresp.http.Vary;
    set beresp.ttl = 1h;
    return (deliver);
}}
sub vcl_deliver {{
    if (obj.hits > 0) {{ set resp.http.X-Cache = "HIT"; }} else {{ set resp.http.X-Cache = "MISS"; }}
}}
"""

VARNISH_SHOWN = VARNISH.format(host="HOST", port="PORT", upstream_key="KEY")


@asynccontextmanager
async def litellm(python: Path, root: Path, cores: Cores) -> AsyncIterator[Server]:
    """Its proxy of one worker, with a stand-in of its own behind it: it speaks another protocol than the gateway's upstream."""
    directory = directory_for(root, "litellm")
    port = free_port()
    async with _completions() as completions:
        configuration = directory / "litellm.yaml"
        configuration.write_text(LITELLM.format(upstream=completions.url, key=_LITELLM_KEY))
        program = Measured(
            pinned(
                [python.with_name("litellm"), "--config", configuration, "--host", "127.0.0.1", "--port", str(port),
                 "--num_workers", "1"], cores.server,
            ),
            log=root / "litellm.log", environment=_litellm_environment(), directory=directory,
        )  # fmt: skip
        server = Server("LiteLLM", program, f"http://127.0.0.1:{port}", [_LITELLM_KEY], completions.count)
        try:
            await program.start()
            await _answers(server)
            yield server
        finally:
            await program.stop()


LITELLM = """\
model_list:
  - model_name: any
    litellm_params: {{model: openai/any, api_base: "{upstream}", api_key: none}}
litellm_settings:
  cache: true
  cache_params: {{type: local}}
  telemetry: false
general_settings: {{master_key: {key}}}
"""

LITELLM_SHOWN = LITELLM.format(upstream="UPSTREAM", key="KEY")


def completion(server: Server, number: int) -> Request:
    """A question of about a kilobyte; the answer is one, too."""
    question = f"Question {number}: what does a lighthouse keeper do all day? ".ljust(850, ".")
    body = f'{{"model": "any", "messages": [{{"role": "user", "content": "{question}"}}]}}'
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    return Request("POST", f"{server.url}/v1/chat/completions", headers, body.encode())


async def warm_completions(server: Server, requests: Sequence[Request]) -> None:
    for request in requests:
        for _ in range(2):
            answer = await server.answer(request)
            if answer.status != 200:
                raise DidNotStart(f"{server.name}: {answer!r:.300}")
        # The entry is written by a task that the caller does not wait for.
        await asyncio.sleep(0)


def _litellm_environment() -> Mapping[str, str]:
    """Its prices are in its package; without these it asks the network for newer ones, and tells of itself."""
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
    return {**os.environ, **quiet}


async def _answers(server: Server) -> None:
    async with asyncio.timeout(_LITELLM_STARTS_WITHIN_SECONDS):
        while server.program.pids:
            try:
                if (await server.answer(Request("GET", f"{server.url}/health/liveliness"))).status == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(_LOOKS_EVERY_SECONDS)
    raise DidNotStart(f"{server.name} ended at its start")


class _Completions:
    """What speaks the chat completions API, and counts."""

    def __init__(self) -> None:
        self.url = ""
        self._asked = 0

    async def complete(self, request: web.Request) -> web.Response:
        await request.read()
        self._asked += 1
        message = {"role": "assistant", "content": f"Answer {self._asked}: he waits. ".ljust(600, ".")}
        return web.json_response(
            {
                "id": f"chat-{self._asked}",
                "object": "chat.completion",
                "created": 1,
                "model": "any",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    async def count(self) -> int:
        return self._asked


@asynccontextmanager
async def _completions() -> AsyncIterator[_Completions]:
    completions = _Completions()
    application = web.Application()
    application.router.add_post("/chat/completions", completions.complete)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        completions.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield completions
    finally:
        await runner.cleanup()


SHOWN: Mapping[str, tuple[str, str]] = {
    "nginx": ("nginx", NGINX_SHOWN),
    "varnish": ("vcl", f"# varnishd {' '.join(VARNISH_OPTIONS)}\n{VARNISH_SHOWN}"),
    "litellm": ("yaml", f"# litellm --num_workers 1\n{LITELLM_SHOWN}"),
}
"""The configurations: what kind of text each is, and the text."""
