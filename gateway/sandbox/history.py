"""GET /inference-request/request-history and /v1/get-user-credits: what was asked, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from aiohttp import web

from gateway.domain.generation import Json
from gateway.sandbox.callers import authenticate
from gateway.sandbox.job import Job, State
from gateway.sandbox.parts import PARTS, Parts
from gateway.sandbox.records import file_url
from gateway.sandbox.refusals import Refused, utc

_STATES = {
    "COMPLETED": (State.COMPLETED.value,),
    "FAILED": (State.FAILED.value,),
    "PENDING": (State.QUEUED.value, State.PROCESSING.value),
}
_COLUMNS = {"model_created": "submitted_at", "model_name": "model", "credits_deduction": "cost_micros"}
_LONGEST_WINDOW = timedelta(days=31)
_USUAL_WINDOW = timedelta(days=7)


async def credits(request: web.Request) -> web.Response:  # noqa: A001 -- the upstream's word
    account = authenticate(request)
    return web.json_response({"credits": account.credits.usd_number, "free-credits": 0.0})


async def history(request: web.Request) -> web.Response:
    parts = request.app[PARTS]
    account = authenticate(request)
    query = request.query
    page, per_page = _whole(query, "page", 1, most=10**6), _whole(query, "per_page", 20, most=100)
    now = parts.clock()
    first, last = _window(query, now)
    order = "ASC" if _one_of(query, "sort_order", ("desc", "asc")) == "asc" else "DESC"
    states = (
        _STATES[_one_of(query, "status", tuple(_STATES))]
        if query.get("status")
        else tuple(state.value for state in State)
    )
    found = await parts.books.history(
        account=account.name,
        shown_before=now,
        submitted_from=first.timestamp(),
        submitted_before=(last + timedelta(days=1)).timestamp(),
        model_part=query.get("model_name", ""),
        states=states,
        order=f"{_COLUMNS[_one_of(query, 'sort_by', tuple(_COLUMNS))]} {order}",
        limit=per_page,
        offset=(page - 1) * per_page,
    )
    rows: list[Json] = [_row(request, parts, job) for job in found.jobs]
    return web.json_response({"data": rows, "page": page, "per_page": per_page, "total": found.total})


async def past_request(request: web.Request) -> web.Response:
    parts = request.app[PARTS]
    account = authenticate(request)
    request_id = request.match_info["id"]
    job = await parts.jobs.find(request_id)
    if job is None or job.account != account.name or parts.clock() < job.shown_at:
        raise Refused(404, f"Request {request_id} not found")
    return web.json_response(_row(request, parts, job))


def _row(request: web.Request, parts: Parts, job: Job) -> dict[str, Json]:
    seconds = None if job.finished_at is None else job.finished_at - job.submitted_at
    return {
        "request_id": job.id,
        "model_name": job.model,
        "model_status": job.state.value if job.ended else "PENDING",
        "credits_deduction": job.cost.usd_number,
        "request_body": dict(job.body),
        "generation_url": file_url(request, parts, job) if job.state is State.COMPLETED else None,
        "latency_ms": None if seconds is None else round(seconds * 1000),
        "model_created": utc(job.submitted_at),
        "model_completed": None if job.finished_at is None else utc(job.finished_at),
        "error": job.error,
    }


def _window(query: Mapping[str, str], now: float) -> tuple[datetime, datetime]:
    """The first and the last day that are wanted, as their midnights."""
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    last = _day(query, "to_date") or today
    first = _day(query, "from_date") or last - _USUAL_WINDOW
    if first > last:
        raise Refused(400, "from_date has to be before to_date")
    if last - first > _LONGEST_WINDOW:
        raise Refused(400, "The window may span at most 31 days")
    return first, last


def _day(query: Mapping[str, str], name: str) -> datetime | None:
    if not query.get(name):
        return None
    try:
        return datetime.strptime(query[name], "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise Refused(400, f"{name} has to be a day like 2026-11-23") from error


def _whole(query: Mapping[str, str], name: str, default: int, *, most: int) -> int:
    text = query.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise Refused(400, f"{name} has to be a number from 1 to {most}")
    return int(text)


def _one_of(query: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    """The first of `known` when nothing is said."""
    value = query.get(name) or known[0]
    if value not in known:
        raise Refused(400, f"{name} has to be one of {', '.join(known)}")
    return value
