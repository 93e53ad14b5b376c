"""Who calls: the key, and the limit on how often."""

from __future__ import annotations

from aiohttp import web

from gateway.sandbox.accounts import Account
from gateway.sandbox.parts import PARTS, Parts
from gateway.sandbox.refusals import Refused, rate_limited


def authenticate(request: web.Request) -> Account:
    """The account of the key in `x-api-key`; a bearer token is no key here."""
    key = request.headers.get("x-api-key")
    if key is None and "Authorization" not in request.headers:
        raise Refused(401, "Missing Authorization or x-api-key in header")
    account = request.app[PARTS].accounts.with_key(key or "")
    if account is None:
        raise Refused(
            401,
            "Unauthorized. API key is invalid or may have expired. "
            "The sandbox's first key is SG_0123456789abcdef; POST /sandbox/accounts makes more.",
        )
    return account


def limit(parts: Parts, account: Account, model: str, *, poll: bool) -> None:
    """Raises the 429 of a burst, or of the limit, where one is switched on."""
    burst = parts.faults.draw("poll_rate_limited" if poll else "submit_rate_limited", model)
    if burst:
        rate_limited(parts.clock() + burst.number("reset_seconds"))
    rule = parts.faults.draw("rate_limit", model)
    if (
        rule
        and (not poll or rule.knobs["polls"])
        and not parts.accounts.admits(account, rule.number("per_minute"))
    ):
        rate_limited(parts.accounts.window_ends_at())
