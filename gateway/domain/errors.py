"""Everything that can go wrong, named by what it means for the money.

    GatewayError
    ├── RequestRefused            nothing was bought: the request, the caller or the budget says no
    │   ├── MalformedRequest      not a JSON object
    │   ├── InvalidParameters     a JSON object, but not one that this model takes
    │   ├── Unauthenticated       no key, an unknown key, a revoked key
    │   ├── KeyEnded              a key that was revoked, or ran out, between the asking and the buying
    │   ├── ModelForbidden        not for this tenant
    │   ├── PriceUnknown          nobody can say what it would cost, so it is not sold
    │   ├── ModelUnknown, RequestUnknown, BlobUnknown, RouteUnknown
    │   ├── MethodNotAllowed, MediaTypeUnsupported, BodyTooLarge, BodyTimeout
    │   ├── LinkInvalid           a link to media that is forged, or has run out
    │   └── BudgetExceeded        it does not fit; waiting for a retry will not change that
    ├── NotBought                 the upstream was asked, and proved not to have sold anything
    │   ├── UpstreamRefused       it found fault with the request
    │   ├── UpstreamBusy          too many requests; later may work
    │   ├── UpstreamUnreachable   no connection, or a refusal that is documented as unbilled
    │   ├── UpstreamUnusable      our key, our credit or our catalogue is wrong: the operator's to mend
    │   └── GenerationFailed      it tried, failed, and does not bill failures
    ├── OutcomeUnknown            silence after the request left: it may have been bought
    ├── StillRunning              bought and being made; only the waiting has ended
    ├── ResultUnavailable         bought and made, but not (yet) in our hands
    │   ├── ResultBroken          what came is not what was asked for
    │   └── ResultGone            the upstream has forgotten it
    └── Unavailable               we cannot take the request now
        ├── ShuttingDown
        ├── Overloaded
        └── StorageUnavailable    ledger or disk: nothing was half bought

An error's text is shown to callers: it says what is wrong and what to do, and holds no path, no key and
nothing of another tenant. Statuses are given in `gateway/http/errors.py`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.domain.window import Window


class CannotStart(Exception):
    """The gateway cannot be started as it is configured; the text says what to change."""


class GatewayError(Exception):
    """The root; `code` is for machines, the text for people, `details` for both."""

    code: ClassVar[str] = "internal_error"
    retry_after_seconds: float | None = None
    """When the same request is worth another try, where that is known."""

    @property
    def details(self) -> Mapping[str, Json]:
        """More members for the answer's envelope."""
        return {}


class RequestRefused(GatewayError):
    """Nothing was bought: the request, the caller or the budget says no."""


class MalformedRequest(RequestRefused):
    code = "malformed_request"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one parameter."""

    field: str
    """The parameter's name, with a path into it where it is nested: `image_urls/0`; empty for the whole."""

    problem: str
    """What is wrong and what would be right, as a sentence without its full stop."""

    given: Json = None
    """The value that was sent; cut short when it is long."""

    allowed: str | None = None
    """What is allowed, in a few words: `integer, 256 to 1280`."""

    nearest: str | None = None
    """The nearest known name or value, when this looks like a slip of the pen."""


class InvalidParameters(RequestRefused):
    code = "invalid_parameters"

    def __init__(self, model: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        listed = "; ".join(f"{p.field}: {p.problem}" if p.field else p.problem for p in self.problems)
        super().__init__(f"{model} cannot take this request: {listed}.")

    @property
    def details(self) -> Mapping[str, Json]:
        return {
            "problems": [
                {
                    name: value
                    for name, value in {
                        "field": p.field,
                        "problem": p.problem,
                        "given": p.given,
                        "allowed": p.allowed,
                        "nearest": p.nearest,
                    }.items()
                    if value is not None or name == "given"
                }
                for p in self.problems
            ]
        }


class Unauthenticated(RequestRefused):
    code = "invalid_api_key"


class KeyEnded(RequestRefused):
    """The key was good when the request came, and is not any more now that it would buy."""

    code = "key_ended"

    def __init__(self, message: str, *, key_id: str) -> None:
        self.key_id = key_id
        super().__init__(message)


class ModelForbidden(RequestRefused):
    code = "model_forbidden"


class PriceUnknown(RequestRefused):
    code = "price_unknown"


class ModelUnknown(RequestRefused):
    code = "model_not_found"


class RequestUnknown(RequestRefused):
    code = "request_not_found"


class BlobUnknown(RequestRefused):
    code = "blob_not_found"


class RouteUnknown(RequestRefused):
    code = "route_not_found"


class MethodNotAllowed(RequestRefused):
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: Sequence[str]) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class MediaTypeUnsupported(RequestRefused):
    code = "unsupported_media_type"


class BodyTooLarge(RequestRefused):
    code = "body_too_large"


class BodyTimeout(RequestRefused):
    code = "body_timeout"


class LinkInvalid(RequestRefused):
    code = "link_invalid"


class BudgetExceeded(RequestRefused):
    """The price does not fit into one of the tenant's budgets."""

    code = "budget_exceeded"

    def __init__(
        self,
        *,
        tenant: str,
        window: Window,
        limit: Money,
        spent: Money,
        reserved: Money,
        price: Money,
        resets_at: datetime | None,
    ) -> None:
        self.tenant = tenant
        self.window = window
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.price = price
        self.resets_at = resets_at
        resets = f"resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}" if resets_at else "never resets"
        super().__init__(
            f"Insufficient credits: this request is held at {price}, and the {window.label} budget of "
            f"{tenant} ({limit}) has {spent} spent and {reserved} reserved. It {resets}; a retry before then "
            "will not help. Ask for less, or have the limit raised."
        )

    @property
    def details(self) -> Mapping[str, Json]:
        return {
            "window": self.window.label,
            "limit_usd": self.limit.usd_number,
            "spent_usd": self.spent.usd_number,
            "reserved_usd": self.reserved.usd_number,
            "price_usd": self.price.usd_number,
            "resets_at": self.resets_at.strftime("%Y-%m-%dT%H:%M:%SZ") if self.resets_at else None,
            "retry": False,
        }


class NotBought(GatewayError):
    """The upstream was asked, and proved not to have sold anything: the money goes back."""


class UpstreamRefused(NotBought):
    code = "upstream_refused"


class UpstreamBusy(NotBought):
    code = "upstream_rate_limited"

    def __init__(self, message: str, *, retry_after_seconds: float = 10.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UpstreamUnreachable(NotBought):
    code = "upstream_unreachable"
    retry_after_seconds = 5.0


class UpstreamUnusable(NotBought):
    code = "upstream_unusable"


class GenerationFailed(NotBought):
    code = "generation_failed"


class OutcomeUnknown(GatewayError):
    code = "outcome_unknown"


class StillRunning(GatewayError):
    code = "still_running"


class ResultUnavailable(GatewayError):
    """Bought and made, but not (yet) in our hands; the purchase stays open."""

    code = "result_unavailable"


class ResultBroken(ResultUnavailable):
    code = "result_broken"


class ResultGone(ResultUnavailable):
    code = "result_gone"


class Unavailable(GatewayError):
    """We cannot take the request now; nothing was bought."""

    code = "unavailable"
    retry_after_seconds = 5.0


class ShuttingDown(Unavailable):
    code = "shutting_down"


class Overloaded(Unavailable):
    code = "overloaded"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"
