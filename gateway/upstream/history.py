"""The upstream's own history of the account: one call by its ticket, or every call within a time.

Its wrapper, the names of its time stamps and the zone of its days are not documented. What is known is read; what
cannot be read is a fault and never an absence, because an absence gives money back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar
from urllib.parse import urlencode

from gateway.domain.clock import Clock
from gateway.domain.errors import ResultUnavailable, UpstreamUnreachable, UpstreamUnusable
from gateway.domain.generation import Json
from gateway.domain.identity import Ticket
from gateway.upstream import answers
from gateway.upstream.answers import Answer, Quote, Silence
from gateway.upstream.contract import PastCall, Standing
from gateway.upstream.limits import Limits
from gateway.upstream.wire import Wire, segment

T = TypeVar("T")

Row = Mapping[str, object]
"""One thing that was made, or was to be made. A call that made several has a row for each, with all of its cost."""

_PATH = "/inference-request/request-history"
_ROWS_A_PAGE = 100
_MOST_PAGES = 1000
_LONGEST_WINDOW = timedelta(days=30)
"""From its first day to its last; 31 days are allowed, and nobody says how they are counted."""

_EARLIEST_ZONE, _LATEST_ZONE = timedelta(hours=-12), timedelta(hours=14)
"""What the clocks of the world are off from UTC: whose midnight begins the upstream's days is not documented."""

_WRAPPERS = ("data", "results", "items", "rows", "records", "requests", "history", "generations")
_TOTALS = ("total", "total_count", "total_records")
_TIMES = ("model_created", "created_at", "submitted_at", "created", "timestamp", "timestamps")
"""Names under which a row may say when its call was made; the last may hold the others."""


class RequestHistory:
    """Asks for the account's past calls. Every fault is raised: NotBought kinds or ResultUnavailable."""

    def __init__(self, *, wire: Wire, base_url: str, clock: Clock, limits: Limits) -> None:
        self._wire = wire
        self._base_url = base_url
        self._clock = clock
        self._limits = limits

    async def rows_of(self, ticket: Ticket) -> Sequence[Row]:
        """The rows of that ticket's call, however old it is; none if the history does not have it."""
        answer = await self._wire.ask("history", f"{_PATH}/{segment(ticket)}", base_url=self._base_url)
        if isinstance(answer, Answer) and answer.status == 404 and answer.error:
            return []
        rows = self._rows(answer)
        own = [row for row in rows if "model_status" in row and row.get("request_id", ticket) == ticket]
        if rows and not own:
            raise ResultUnavailable("The upstream's history was asked for one call and answered with others.")
        return own

    async def call(self, ticket: Ticket) -> PastCall | None:
        rows = await self.rows_of(ticket)
        return _past_call(ticket, rows, self._wire.quote) if rows else None

    async def calls(self, since: float, until: float) -> Sequence[PastCall]:
        rows_of: dict[Ticket, list[Row]] = {}
        for first, last in _windows(since, until):
            for row in await self._listed(first, last):
                if ticket := answers.usable_ticket(row.get("request_id")):
                    rows_of.setdefault(ticket, []).append(row)
        calls = [_past_call(ticket, rows, self._wire.quote) for ticket, rows in rows_of.items()]
        return [call for call in calls if call.submitted_at is None or since <= call.submitted_at <= until]

    async def _listed(self, first: date, last: date) -> Sequence[Row]:
        """All rows of these days, of however many pages."""
        listed: list[Row] = []
        for page in range(1, _MOST_PAGES + 1):
            # Oldest first: what is added meanwhile comes behind what has been read.
            query = urlencode(
                {
                    "page": page,
                    "per_page": _ROWS_A_PAGE,
                    "from_date": first.isoformat(),
                    "to_date": last.isoformat(),
                    "sort_by": "model_created",
                    "sort_order": "asc",
                }
            )
            answer = await self._wire.ask("history", f"{_PATH}?{query}", base_url=self._base_url)
            rows = self._rows(answer)
            if rows and rows == listed[-len(rows) :]:
                raise ResultUnavailable("The upstream's history gives the same page again and again.")
            listed += rows
            if len(rows) < _ROWS_A_PAGE:
                total = _total(answer)
                if total is None or len(listed) >= total:
                    return listed
                if not rows:
                    break
        raise ResultUnavailable("The upstream's history is longer than the pages that it gives.")

    def _rows(self, answer: Answer | Silence) -> Sequence[Row]:
        """The rows in an answer."""
        if isinstance(answer, Silence):
            raise UpstreamUnreachable(f"The upstream does not answer for its history ({answer.word}).")
        if answer.status == 429:
            raise answers.busy(answer, now=self._clock(), rate_limit_seconds=self._limits.rate_limit_seconds)
        if 300 <= answer.status < 500:
            raise UpstreamUnusable(f"The upstream does not show the gateway its history ({answer.status}).")
        rows = _rows_in(answers.parse(answer.body)) if answer.is_success else None
        if rows is None:
            raise UpstreamUnreachable(f"The upstream's history cannot be read ({answer.status}).")
        return rows


def _windows(since: float, until: float) -> Iterator[tuple[date, date]]:
    """Days, from first to last, that hold the whole time in whatever zone they are counted."""
    first = (datetime.fromtimestamp(since, UTC) + _EARLIEST_ZONE).date()
    end = (datetime.fromtimestamp(until, UTC) + _LATEST_ZONE).date()
    while first <= end:
        last = min(first + _LONGEST_WINDOW, end)
        yield first, last
        first = last + timedelta(days=1)


def _rows_in(body: object) -> Sequence[Row] | None:
    """The rows in a body; None if it is nothing that could hold rows."""
    if isinstance(body, list):
        rows = [row for row in body if isinstance(row, dict)]
        return rows if rows or not body else None
    if not isinstance(body, dict):
        return None
    if "request_id" in body or "model_status" in body:
        return [body]
    for name in _WRAPPERS:
        if name in body:
            inner = body[name]
            return [] if inner is None else _rows_in(inner)
    # Under another name rows are known by what they hold, and no rows at all are not known.
    for inner in body.values():
        if isinstance(inner, list) and any(isinstance(row, dict) and "request_id" in row for row in inner):
            return _rows_in(inner)
    return None


def _total(answer: Answer | Silence) -> int | None:
    """How many rows there are on all pages together, where the answer says so."""
    members = answer.members if isinstance(answer, Answer) else {}
    holders = [members, *(members.get(name) for name in ("data", "meta", "pagination"))]
    said = [holder.get(name) for holder in holders if isinstance(holder, dict) for name in _TOTALS]
    return next((total for total in said if isinstance(total, int) and not isinstance(total, bool)), None)


def _past_call(ticket: Ticket, rows: Sequence[Row], quote: Quote) -> PastCall:
    standing = _standing(rows)
    errors = [answers.explanation(row.get("error")) for row in rows]
    return PastCall(
        ticket=ticket,
        model=next((model for row in rows if isinstance(model := row.get("model_name"), str)), ""),
        standing=standing,
        cost=_first(answers.cost(row.get("credits_deduction")) for row in rows),
        inputs=_first(inputs_of(row) for row in rows),
        submitted_at=_first(_submitted_at(row) for row in rows),
        error=quote(next(filter(None, errors), "it gives no reason"))
        if standing is Standing.FAILED
        else None,
    )


def _standing(rows: Sequence[Row]) -> Standing:
    """What was made once was made; a status that we do not know is a kind of still pending."""
    said = {str(row.get("model_status")).upper() for row in rows}
    if "COMPLETED" in said:
        return Standing.COMPLETED
    return Standing.FAILED if said == {"FAILED"} else Standing.PENDING


def inputs_of(row: Row) -> Mapping[str, Json] | None:
    """The parameters as they were sent, with numbers as JSON has them; None when the row does not say."""
    sent = row.get("request_body")
    sent = answers.parse(sent) if isinstance(sent, str) else sent
    if not isinstance(sent, dict):
        return None
    inputs: dict[str, Json] = json.loads(answers.written(sent))
    return inputs


def _submitted_at(row: Row) -> float | None:
    for name in _TIMES:
        said = row.get(name)
        found = _submitted_at(said) if isinstance(said, dict) else answers.moment(said)
        if found is not None:
            return found
    return None


def _first(found: Iterator[T | None]) -> T | None:
    return next((value for value in found if value is not None), None)
