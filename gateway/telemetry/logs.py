"""Structured logs: one JSON object a line on standard error, and no prompt, no key and no local variable in it."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from gateway.domain.scrubbing import scrub

Log = FilteringBoundLogger


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Send our own events and the standard library's to `stream` (standard error by default) as JSON."""
    target = cast("TextIO", _Unfailing(stream or sys.stderr))
    shared = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    render = (
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ),
        _without_secrets,
    )
    structlog.configure(
        processors=[*shared, *render, structlog.processors.JSONRenderer(serializer=_to_text)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Each line with its end in one write: several workers share the stream.
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *render,
                structlog.processors.JSONRenderer(serializer=_to_text),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _Unfailing:
    """A stream that loses what cannot be written: a full disk under the log must not fail a request."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def log_for(room: str) -> Log:
    """The log of one room."""
    log: Log = structlog.get_logger(room=room)
    return log


def _to_text(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()


def _without_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: scrub(value) if isinstance(value, str) else value for name, value in event.items()}
