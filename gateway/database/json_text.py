"""JSON as it is kept in a column."""

from __future__ import annotations

import json

import orjson

from gateway.domain.generation import Json


def to_text(value: Json) -> str:
    """`value` as JSON; `json.loads` reads it back."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        # It writes no integers of more than 64 bits.
        return json.dumps(value, ensure_ascii=False)
