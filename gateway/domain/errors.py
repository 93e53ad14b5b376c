"""Everything that can go wrong, named by what it means for the money.

    GatewayError
    ├── RequestRefused            nothing was bought: the request, the caller or the budget says no
    │   ├── MalformedRequest      not a JSON object
    │   ├── InvalidParameters     a JSON object, but not one that this model takes
    │   ├── Unauthenticated       no key, an unknown key, a revoked key
    │   ├── KeyEnded              a key that was revoked, or ran out, between the asking and the buying
    │   ├── KeyForbidden          the key is good, and not for this
    │   ├── RateLimited           the key has asked as often as it may for now
    │   ├── ModelForbidden        not for this key, its tenant, or whoever is above it
    │   ├── PriceUnknown          nobody can say what it would cost, so it is not sold
    │   ├── ModelUnknown, RequestUnknown, BlobUnknown, RouteUnknown
    │   ├── TenantUnknown, KeyUnknown, BudgetUnknown
    │   ├── DeclarationInvalid    what is said of a tenant or a key does not make sense
    │   ├── QueryInvalid         what stands behind the question mark of an address does not make sense
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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from gateway.domain.balance import Balance
from gateway.domain.generation import Json
from gateway.domain.json_forms import utc
from gateway.domain.money import Money
from gateway.domain.tenant import Caller


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


def _listed(problems: Iterable[Problem]) -> str:
    """All of them, as a sentence: one that ends with a question is none the better for a full stop."""
    listed = "; ".join(f"{p.field}: {p.problem}" if p.field else p.problem for p in problems)
    return listed if listed.endswith("?") else f"{listed}."


class InvalidParameters(RequestRefused):
    code = "invalid_parameters"

    def __init__(self, model: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{model} cannot take this request: {_listed(self.problems)}")

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


class KeyForbidden(RequestRefused):
    """The key is good, and not for this."""

    code = "key_forbidden"


class RateLimited(RequestRefused):
    """The key has been used as often as it may be for now."""

    code = "rate_limited"

    def __init__(self, message: str, *, wait_seconds: float) -> None:
        self.retry_after_seconds = wait_seconds
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


class TenantUnknown(RequestRefused):
    """No tenant has this name; the text names the nearest known one."""

    code = "tenant_not_found"


class KeyUnknown(RequestRefused):
    """No key has this name, or more than one has."""

    code = "key_not_found"


class BudgetUnknown(RequestRefused):
    """The tenant or key has no budget of this name; the text names those that it has."""

    code = "budget_not_found"


class DeclarationInvalid(RequestRefused):
    """What is said of tenants or keys does not make sense: nothing was changed."""

    code = "invalid_declaration"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"Nothing was changed: {_listed(self.problems)}")

    @property
    def details(self) -> Mapping[str, Json]:
        return {"problems": [{"field": p.field, "problem": p.problem} for p in self.problems]}


class QueryInvalid(RequestRefused):
    """What stands behind the question mark of an address, or is asked of a report, does not make sense."""

    code = "invalid_query"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(_listed(self.problems))

    @property
    def details(self) -> Mapping[str, Json]:
        return {"problems": [{"field": p.field, "problem": p.problem} for p in self.problems]}


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
    """The price does not fit into one of the budgets above the caller: its key's, its tenant's, or that of one above."""

    code = "budget_exceeded"

    def __init__(
        self,
        *,
        caller: Caller,
        balance: Balance,
        price: Money,
        resets_at: datetime | None,
        runs_out_at: datetime | None,
        in_force: bool = True,
    ) -> None:
        """`resets_at`: when there may be room again; None where that never comes, or nobody can say.

        Not `in_force` is a budget with dates, where none of its holder's is at this time: then nothing is bought.
        """
        self.key_id = caller.key_id
        """Whose request was refused: it is nobody else's refusal."""

        self.balance = balance
        self.price = price
        self.window = balance.budget.per
        self.resets_at = resets_at
        self.runs_out_at = runs_out_at
        self.is_in_force = in_force
        self._is_anothers = balance.holder.tenant != caller.tenant.name
        super().__init__(
            f"Insufficient credits: this request is held at {price}, and {self._too_small()}. {self._when()} "
            "Ask for less, or have the limit raised."
        )

    def _too_small(self) -> str:
        balance, of = self.balance, self.balance.holder.name
        if not self.is_in_force:
            return f"no budget of {of} is in force now"
        if balance.budget.is_per_request:
            return f"one request of {of} may cost no more than {balance.limit}"
        named = f"the {balance.budget.label} budget of {of}"
        if self._is_anothers:
            return f"{named} has {balance.remaining} left"
        return f"{named} ({balance.limit}) has {balance.spent} spent and {balance.reserved} reserved"

    def _when(self) -> str:
        if self.balance.budget.is_per_request and self.is_in_force:
            return "A retry will not help."
        if self.resets_at is None:
            return "It never resets; a retry will not help."
        word = "resets" if self.is_in_force else "begins"
        return f"It {word} at {utc(self.resets_at)}; a retry before then will not help."

    @property
    def details(self) -> Mapping[str, Json]:
        balance = self.balance
        # What another tenant has is its own; what it leaves is told with every answer.
        of_its_own: dict[str, Json] = {
            "limit_usd": balance.limit.usd_number,
            "spent_usd": balance.spent.usd_number,
            "reserved_usd": balance.reserved.usd_number,
        }
        return {
            "window": self.window.label,
            "budget": balance.budget.label,
            "of": balance.holder.name,
            **({} if self._is_anothers else of_its_own),
            "remaining_usd": balance.remaining.usd_number if self.is_in_force else 0,
            "price_usd": self.price.usd_number,
            "resets_at": utc(self.resets_at),
            "runs_out_at": utc(self.runs_out_at),
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
