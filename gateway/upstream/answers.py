"""What an answer of the upstream, or its silence, means for the money.

The upstream documents that only a 200 is billed. The table is `docs/upstream.md`; `refusal` is its code.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import cached_property

from gateway.domain.errors import (
    GatewayError,
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamRefused,
    UpstreamUnreachable,
    UpstreamUnusable,
)
from gateway.domain.identity import Ticket
from gateway.domain.money import Money

Quote = Callable[[str], str]
"""Makes a text of the upstream's fit for callers: without keys, on one line, of sane length."""


@dataclass(frozen=True)
class Answer:
    """An answer whose status has arrived."""

    status: int
    headers: Mapping[str, str]
    """Of the answer; names in any case."""

    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @cached_property
    def members(self) -> Mapping[str, object]:
        """The body's members if it is a JSON object, else nothing; numbers with a point are Decimals."""
        parsed = parse(self.body)
        return parsed if isinstance(parsed, dict) else {}

    @property
    def error(self) -> str:
        """The upstream's own explanation; empty if there is none."""
        for name in ("error_description", "error"):
            if explained := explanation(self.members.get(name)):
                return explained
        return ""


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer, or none that could be read."""

    word: str
    """`refused`, `timeout` or `disconnected`."""

    connected: bool
    """Whether a byte of ours may have left."""


def parse(text: bytes | str) -> object:
    """JSON with exact numbers; None if it is none."""
    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError):
        return None


def written(value: object) -> str:
    """Parsed JSON, written again."""
    return json.dumps(value, default=float, ensure_ascii=False)


def explanation(error: object) -> str:
    """An `error` member as text: mostly a string, sometimes an object with its own `message`."""
    match error:
        case None | "" | False:
            return ""
        case str():
            return error
        case {"message": str(message)}:
            return message
        case _:
            return written(error)


def ticket(answer: Answer) -> Ticket | None:
    """The id in an answer to a v2 submit; None unless it can be one. What it looks like is the upstream's affair."""
    return usable_ticket(answer.members.get("request_id"))


def usable_ticket(given: object) -> Ticket | None:
    """`given` as a ticket: one to 200 visible ASCII characters, other than the two that mean a folder in a URL."""
    if isinstance(given, str) and re.fullmatch(r"[!-~]{1,200}", given) and given not in {".", ".."}:
        return Ticket(given)
    return None


def silence_at_submit(silence: Silence) -> GatewayError:
    if not silence.connected:
        return UpstreamUnreachable(
            "The upstream cannot be reached; nothing was sent or bought. Try again later."
        )
    return OutcomeUnknown(
        "The upstream fell silent after the request was sent: it may have been bought. "
        "It is not bought again; asking again later picks up what becomes of it."
    )


def refusal(  # noqa: PLR0912 -- a table: one row a status
    answer: Answer, *, model: str, quote: Quote, now: float, rate_limit_seconds: float
) -> GatewayError:
    """Why an answer to a submit brought no ticket, named by what became of the money."""
    said = quote(answer.error) or "it gives no reason"
    match answer.status:
        case 401:
            return _unusable("does not accept the gateway's own key", answer.status)
        case 402:
            return _unusable("has too few credits left for the gateway's account", answer.status)
        case 403:
            return _unusable(f"does not let the gateway's account use {model}", answer.status)
        case 404:
            return _unusable(f"does not know a model {model}", answer.status)
        case 405 | 415:
            return _unusable("does not take requests the way the gateway sends them", answer.status)
        case 406 if re.search(r"content.type", answer.error, re.IGNORECASE):
            return _unusable("does not take requests the way the gateway sends them", answer.status)
        case 406 if re.search(r"credit|spend", answer.error, re.IGNORECASE):
            return _unusable(
                "has too few credits left for the gateway's account, or its limit is reached", answer.status
            )
        case 410:
            return _unusable(f"has retired {model}", answer.status)
        case 400 | 406 | 413 | 422:
            return UpstreamRefused(
                f"The upstream refuses this request: {said} ({answer.status}). Nothing was bought."
            )
        case 429:
            return busy(answer, now=now, rate_limit_seconds=rate_limit_seconds)
        case 500 | 503:
            return UpstreamUnreachable(
                f"The upstream is out of order ({answer.status}) and took nothing; nothing was bought. Try again later."
            )
        case status if 300 <= status < 400:
            return _unusable("sends the gateway elsewhere, where it does not carry its key", status)
        case status if 400 <= status < 500 and answer.error:
            return UpstreamRefused(
                f"The upstream refuses this request: {said} ({status}). Nothing was bought."
            )
        case status if 200 <= status < 300:
            return OutcomeUnknown(
                "The upstream took the request and gave no id for it: it may have been bought. "
                "It is not bought again; asking again later picks up what becomes of it."
            )
        case status:
            # 502 and 504 above all: a hop may have lost the answer after the request was queued.
            return OutcomeUnknown(
                f"The upstream's answer ({status}) does not say whether it took the request: it may have been "
                "bought. It is not bought again; asking again later picks up what becomes of it."
            )


def busy(answer: Answer, *, now: float, rate_limit_seconds: float) -> UpstreamBusy:
    asked_seconds = retry_after_seconds(answer.headers, now)
    return UpstreamBusy(
        "The upstream takes no more requests at the moment (429). Nothing was bought; try again later.",
        retry_after_seconds=rate_limit_seconds if asked_seconds is None else asked_seconds,
    )


def _unusable(what: str, status: int) -> UpstreamUnusable:
    # Without the upstream's own words: they name balances, caps and consoles, which are the operator's, not a tenant's.
    return UpstreamUnusable(
        f"The upstream {what} ({status}). Nothing was bought. A retry will not help; the operator has to mend it."
    )


class Standing(enum.Enum):
    """What an answer to a question about a ticket says of it."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    MISSING = "missing"
    """The upstream says that it knows no such ticket."""

    UNSAID = "unsaid"
    """Nothing: silence, a hop's own error, a key that is not accepted, a body that cannot be read."""


def standing(answer: Answer | Silence) -> Standing:
    """Only the upstream's own structured word ends a wait; whatever else comes, the purchase goes on."""
    if isinstance(answer, Silence):
        return Standing.UNSAID
    said = answer.members.get("status")
    if said == "FAILED" and (answer.is_success or answer.status == 422):
        return Standing.FAILED
    if answer.is_success and isinstance(said, str):
        # A status that we do not know is a kind of still running.
        known = {"COMPLETED": Standing.COMPLETED, "QUEUED": Standing.QUEUED}
        return known.get(said, Standing.PROCESSING)
    if answer.status == 404 and answer.error:
        return Standing.MISSING
    return Standing.UNSAID


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """How long to wait by the answer's own word; None if it has none that can be read.

    The upstream names a moment and documents no format for it: ISO 8601, an HTTP date and epoch seconds or
    milliseconds are understood. `Retry-After` is not documented, but a hop before it may send one.
    """
    given = headers.get("x-rate-limit-reset-at-utc", "").strip()
    if (reset := moment(given)) is not None:
        return min(max(0.0, reset - now), 3600.0)
    after = headers.get("retry-after", "").strip()
    return float(after) if re.fullmatch(r"\d{1,6}", after) else None


def moment(reported: object) -> float | None:
    """A point in time in seconds since the epoch; None if it is not there or cannot be read.

    ISO 8601 (without a zone it is taken for UTC), an HTTP date, epoch seconds or milliseconds, as a number or as
    text. A day alone is no point in time.
    """
    if isinstance(reported, bool) or not isinstance(reported, int | float | str | Decimal):
        return None
    given = str(reported).strip()
    if re.fullmatch(r"\d{9,11}(\.\d+)?", given):
        return float(given)
    if re.fullmatch(r"\d{12,14}(\.\d+)?", given):
        return float(given) / 1000
    if ":" not in given:
        return None
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            read_moment = read(re.sub(r"\s*UTC$", "+00:00", given))
            return (read_moment if read_moment.tzinfo else read_moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    return None


def money(reported: object) -> Money | None:
    """A reported amount of dollars; None if it is not there or is no amount: that is unknown, not nothing."""
    if isinstance(reported, bool) or not isinstance(reported, int | float | str | Decimal):
        return None
    try:
        return Money.reported(reported)
    except (ValueError, ArithmeticError):
        return None


def cost(reported: object) -> Money | None:
    """As `money`; what is below nothing is no cost."""
    amount = money(reported)
    return amount if amount is not None and amount >= Money.ZERO else None


def seed(reported: object) -> int | None:
    """A seed, which the upstream writes as a number or as text."""
    if isinstance(reported, bool) or not isinstance(reported, int | str):
        return None
    return int(reported) if re.fullmatch(r"\s*-?\d{1,30}\s*", str(reported)) else None


def seconds(reported: object) -> float | None:
    """A duration, as a number or as text; some workers send a list of one."""
    if isinstance(reported, str):
        reported = parse(reported)
    if isinstance(reported, list) and reported:
        reported = reported[0]
    if isinstance(reported, bool) or not isinstance(reported, int | float | Decimal):
        return None
    return float(reported) if 0 <= reported < 10**9 else None
