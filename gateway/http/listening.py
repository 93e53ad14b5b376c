"""An application on a port."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger

from gateway.domain.errors import CannotStart
from gateway.http.hit_path.connection import HitPath, HitRunner


@asynccontextmanager
async def listening(
    application: web.Application,
    host: str,
    port: int,
    keepalive_seconds: float,
    *,
    shared_port: bool = False,
    hit_path: HitPath | None = None,
) -> AsyncIterator[str]:
    """`application`, answering at the URL that is given; `hit_path` answers what it can. Raises CannotStart."""
    runner_of = web.AppRunner if hit_path is None else partial(HitRunner, path=hit_path)
    runner = runner_of(
        application,
        access_log=None,
        logger=_Discreet(server_logger),
        keepalive_timeout=keepalive_seconds,
        shutdown_timeout=5.0,
        # A caller who hangs up ends its own waiting, and no generation: those are tasks of the service.
        handler_cancellation=True,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024, reuse_port=shared_port)
        try:
            await site.start()
        except OSError as error:
            raise CannotStart(
                f"Cannot listen on {host}:{port}: {error.strerror}. Stop what is listening there, or choose another "
                "port with --set (listen.port, operations.port, sandbox.port)."
            ) from error
        yield f"http://{_bracketed(host)}:{_port(runner.addresses)}"
    finally:
        await runner.cleanup()


class _Discreet(logging.LoggerAdapter[logging.Logger]):
    """aiohttp quotes what it cannot read as HTTP, with the key and the prompt that are in it: the kind has to do."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            self.info("not HTTP: %s", type(exc_info).__name__)
        else:
            super().exception(msg, *args, exc_info=exc_info, **kwargs)


def _port(addresses: Sequence[tuple[object, ...]]) -> object:
    return addresses[0][1]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
