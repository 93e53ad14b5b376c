"""Equal requests, equal names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson
import rfc8785

from gateway.domain.generation import Parameters
from gateway.domain.identity import Fingerprint

_EXACT = 2**53
_LEAST_WITHOUT_EXPONENT, _MOST_WITHOUT_EXPONENT = 1e-3, 1e15

SCHEMA_VERSION = 1
"""Goes up whenever the same request would have to be told from an older one of the same words."""


def fingerprint_of(model: str, parameters: Parameters, *, scope: str | None = None) -> Fingerprint:
    """The sha256 over the canonical JSON (RFC 8785) of all that decides what comes back.

    `parameters` are complete: checked, with defaults filled in and the seed that will be sent. `scope` names the
    tenant for whom the request is private; without it the same request of two tenants is the same request.
    """
    named: Any = {"schema": SCHEMA_VERSION, "model": model, "parameters": dict(parameters)}
    if scope is not None:
        named["scope"] = scope
    return Fingerprint(hashlib.sha256(_canonical(named)).hexdigest())


def _canonical(named: Mapping[str, Any]) -> bytes:
    """The canonical JSON of a request (RFC 8785): where orjson is known to write the same, by orjson, which is fast."""
    if _are_plain(named["parameters"]):
        try:
            return orjson.dumps(named, option=orjson.OPT_SORT_KEYS)
        except TypeError:
            pass  # half of a surrogate pair, for one: whoever writes the canonical form says what is wrong with it
    return rfc8785.dumps(named)


def _are_plain(parameters: Parameters) -> bool:
    """Whether orjson writes them as RFC 8785 does: names that sort alike as UTF-8 and as UTF-16, no exponents."""
    if not "".join(parameters).isascii():
        return False
    for value in parameters.values():
        if isinstance(value, str) or value is None:
            continue
        if isinstance(value, int):
            if not -_EXACT < value < _EXACT:
                return False
        elif (
            not isinstance(value, float)
            or not _LEAST_WITHOUT_EXPONENT <= abs(value) < _MOST_WITHOUT_EXPONENT
            or value.is_integer()
        ):
            return False
    return True
