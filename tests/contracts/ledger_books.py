"""What the ledger's contract suite needs: requests to reserve, and a clock that stands still until it is moved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gateway.domain.generation import Blob, GenerationRequest
from gateway.domain.identity import Digest, Fingerprint
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, Tenant
from gateway.domain.window import Window

NOON = 1_795_392_000.0
"""2026-11-23 00:00 UTC, a Monday in the middle of nothing."""

DAY_SECONDS = 86_400.0


@dataclass
class MovableClock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


def caller(*limits: tuple[str, Window], tenant: str = "acme") -> Caller:
    budgets = tuple(Budget(Money.exactly(limit), window) for limit, window in limits)
    return Caller(Tenant(tenant, budgets), "key-1")


def request(name: str = "a cat", price: str = "0.416", model: str = "ltx-2-19b-t2v") -> GenerationRequest:
    return GenerationRequest(
        model=model,
        parameters={"prompt": name, "guidance_scale": 4, "tags": ["x", {"y": None}]},
        fingerprint=Fingerprint(hashlib.sha256(f"{model} {name}".encode()).hexdigest()),
        price=Money.exactly(price),
        seed=42,
    )


BLOB = Blob(Digest("ab" * 32), 1234, "video/mp4")
