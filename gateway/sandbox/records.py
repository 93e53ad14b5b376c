"""What becomes of a request: its status, and its result; for an hour."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from aiohttp import web

from gateway.domain.generation import Json
from gateway.sandbox.callers import authenticate, limit
from gateway.sandbox.job import Job, State
from gateway.sandbox.parts import PARTS, Parts
from gateway.sandbox.refusals import Refused, broken


async def status(request: web.Request) -> web.Response:
    parts = request.app[PARTS]
    job = await _find(request, parts)
    _poll_error(parts, job)
    return _answer(job, _progress(request, parts, job))


async def result(request: web.Request) -> web.Response:
    parts = request.app[PARTS]
    job = await _find(request, parts)
    if job.state is not State.COMPLETED:
        _poll_error(parts, job)
        return _answer(job, _progress(request, parts, job))
    if error := parts.faults.draw("result_error", job.model):
        broken(error.status())
    _missing(parts, job)
    return web.json_response(await _record(request, parts, job))


async def _find(request: web.Request, parts: Parts) -> Job:
    """The caller's own job, if it is still remembered."""
    account = authenticate(request)
    request_id = request.match_info["id"]
    job = await parts.jobs.find(request_id)
    if job is None or job.account != account.name or parts.clock() >= job.expires_at:
        legacy = request.path.startswith("/v1/")
        raise Refused(
            404,
            f"Output for this request ID {request_id} Not Found"
            if legacy
            else f"Request {request_id} not found",
        )
    limit(parts, account, job.model, poll=True)
    return job


def _poll_error(parts: Parts, job: Job) -> None:
    if error := parts.faults.draw("poll_error", job.model):
        broken(error.status())


def _missing(parts: Parts, job: Job) -> None:
    now = parts.clock()
    if job.missing_until is None and (missing := parts.faults.draw("result_missing", job.model)):
        job.missing_until = now + missing.number("seconds")
    if job.missing_until is not None and now < job.missing_until:
        raise Refused(404, f"Request {job.id} not found")


def _progress(request: web.Request, parts: Parts, job: Job) -> dict[str, Json]:
    record = parts.url(request, f"/v2/requests/{job.id}")
    body: dict[str, Json] = {"status": job.state.value, "request_id": job.id}
    if job.state is State.FAILED:
        return body | {"error": job.error, "metrics": _metrics(job)}
    if not job.ended and (strange := parts.faults.draw("unknown_status", job.model)):
        body["status"] = strange.text("value")
    return body | {"status_url": f"{record}/status", "response_url": record, "metrics": _metrics(job)}


def _answer(job: Job, body: dict[str, Json]) -> web.Response:
    code = 200
    if job.state is State.FAILED:
        fault = job.faults.get("failed") or job.faults.get("moderation")
        code = fault.status() if fault else 422
    return web.json_response(body, status=code)


def _metrics(job: Job) -> dict[str, Json]:
    """Empty until the end; money only where some was charged."""
    if job.finished_at is None or not job.ended:
        return {}
    metrics: dict[str, Json] = {
        "inference_time": round(job.finished_at - job.starts_at, 6),
        "queue_time": round(job.starts_at - job.submitted_at, 6),
        "total_time": round(job.finished_at - job.submitted_at, 6),
    }
    if job.state is State.COMPLETED and "cost_missing" not in job.faults:
        metrics["cost"] = job.cost.usd_number
        metrics["remaining_credits"] = None if job.credits_left is None else job.credits_left.usd_number
    return metrics


async def _record(request: web.Request, parts: Parts, job: Job) -> dict[str, Json]:
    record: dict[str, Json] = {"status": job.state.value, "error": None, "metrics": _metrics(job)}
    if job.file is not None and job.media_type == "application/json":
        # The provider's own JSON, as a text within ours.
        record["output"] = await asyncio.to_thread(parts.studio.path(job.file).read_text)
    else:
        url = file_url(request, parts, job)
        media: dict[str, Json] = {
            "url": url,
            "content_type": job.media_type,
            "file_name": url.rpartition("/")[2],
            "file_size": str(job.output.get("size_bytes", "")),
        }
        match job.media_type.partition("/")[0]:
            case "video":
                record["video"] = media
            case "image":
                record["images"] = [media]
            case "audio":
                record["audio"] = media
        record["output"] = url
        if "output_as_list" in job.faults:
            record["output"] = [url]
        if "output_as_object" in job.faults:
            record["output"] = {"url": url}
    record |= {"prompt": job.parameters.get("prompt"), "timings": {}}
    if job.seed is not None:
        record["seed"] = str(job.seed)
    return record


def file_url(request: web.Request, parts: Parts, job: Job) -> str:
    """Where the job's media can be fetched."""
    extension = (job.file or "").rpartition(".")[2]
    url = parts.url(request, f"/generations/{job.id}.{extension}")
    if foreign := job.faults.get("foreign_result_host"):
        own = urlsplit(url)
        host = foreign.text("host")
        url = own._replace(netloc=f"{host}:{own.port}" if own.port else host).geturl()
    return url
