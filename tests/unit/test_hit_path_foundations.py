"""What of aiohttp, beyond its public interface, the hit path rests on: an upgrade that changes it is told so here."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import http_writer, web, web_protocol
from aiohttp.base_protocol import BaseProtocol

from gateway.http.hit_path import connection
from gateway.http.hit_path.connection import HitConnection

RESTS_ON = {
    "_close": "no request is taken any more",
    "_force_close": "the connection ends, now",
    "_current_request": "what a handler is at work on, or None",
    "_handler_waiter": "whoever shuts down waits for it, if anything is in progress",
    "_keepalive_handle": "the timer that looks whether the connection is idle",
    "_keepalive_timeout": "how long it may be, in seconds",
    "_loop": "the loop",
    "_next_keepalive_close_time": "when an idle connection is closed, by the loop's time",
    "_process_keepalive": "the look itself",
    "_request_count": "how many requests the parser has found",
    "_request_in_progress": "whether a shutdown waits",
    "connection_lost": "the end",
    "data_received": "feeds the parser; counts before it returns",
    "finish_response": "is awaited once for each request that was found, and ends when its answer is written",
    "transport": "None once the connection is gone",
}
"""The attributes of RequestHandler, and what each is taken to mean."""

LOOKED_AT = {
    web_protocol.RequestHandler.data_received: "1ee57ebe052e6c80",
    web_protocol.RequestHandler.start: "2e565fd40c8e04fb",
    web_protocol.RequestHandler._handle_request: "a88a34ee65a2714c",
    web_protocol.RequestHandler.finish_response: "b7eb53db8f4b30ca",
    web_protocol.RequestHandler.shutdown: "5eb4bd473db61e84",
    web_protocol.RequestHandler._process_keepalive: "b472e0fb8445ce42",
    web_protocol.RequestHandler.connection_made: "44d50b5763b2c7e4",
    web_protocol.RequestHandler.connection_lost: "df2fe6e95fd04c7c",
    web_protocol.RequestHandler.close: "84518f965e198ee3",
    web_protocol.RequestHandler.force_close: "38d0e1e798e4d3b7",
    web_protocol.RequestHandler._resume_reading_if_drained: "27f2a6fbbb3a790e",
    BaseProtocol.resume_reading: "21dee847a31af724",
    http_writer.StreamWriter.write_eof: "c7e545df80b9eb68",
    web.AppRunner._make_server: "2d5358865abd00e3",
    web.Server.__call__: "c5700549e688b164",
}
"""What was read before the hit path was written, as it was. When one has changed: see whether HitConnection still has it
right, above all that no request is answered twice, out of its turn or from another place in the stream, then note it."""


def _attributes_of_self() -> set[str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(HitConnection))).body
    named = {
        node.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    of_super = {
        node.func.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Call)
        and isinstance(node.func.value.func, ast.Name)
        and node.func.value.func.id == "super"
    }
    return (named | of_super) - {"__init__"}


def test_the_list_is_whole() -> None:
    own = {*vars(HitConnection), *HitConnection.__slots__} - {"data_received", "finish_response"}
    own -= {"connection_lost", "_process_keepalive"}
    assert _attributes_of_self() - own == set(RESTS_ON)


async def test_what_it_rests_on_is_there() -> None:
    server = web.Server(lambda _: asyncio.sleep(0, web.Response()))
    protocol = server()
    assert [name for name in RESTS_ON if not hasattr(protocol, name)] == []
    assert (protocol._request_count, protocol._current_request, protocol._handler_waiter) == (0, None, None)
    assert (protocol._close, protocol._force_close, protocol._request_in_progress) == (False, False, False)
    assert server._kwargs == {}
    assert http_writer.StreamWriter(protocol, asyncio.get_running_loop())._eof is False
    assert inspect.isdatadescriptor(inspect.getattr_static(web_protocol.RequestHandler, "_request_count"))


async def test_the_parser_counts_each_request_before_it_returns() -> None:
    protocol = web.Server(lambda _: asyncio.sleep(0, web.Response()))()
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    for count, data in ((1, request), (1, request[:9]), (2, request[9:]), (4, request * 2), (5, b"\0")):
        protocol.data_received(data)
        assert protocol._request_count == count


@pytest.mark.parametrize("looked_at", LOOKED_AT, ids=lambda each: str(each.__qualname__))
def test_it_is_as_it_was_when_it_was_looked_at(looked_at: Callable[..., Any]) -> None:
    said = LOOKED_AT[looked_at]
    now = hashlib.sha256(inspect.getsource(looked_at).encode()).hexdigest()[:16]
    assert now == said, (
        f"{looked_at.__qualname__} of aiohttp has changed ({now}): look at {connection.__name__} again"
    )
