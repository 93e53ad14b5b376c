"""Equal requests, equal names."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785

from gateway.domain.generation import Parameters
from gateway.domain.identity import Fingerprint

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
    return Fingerprint(hashlib.sha256(rfc8785.dumps(named)).hexdigest())
