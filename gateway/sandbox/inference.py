"""POST /v1/{slug} and POST /v2/{slug}: a job is accepted or refused, in the upstream's order."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import uuid
from collections.abc import Mapping

import orjson
from aiohttp import web

from gateway.catalog.contract import Model
from gateway.domain.errors import ModelUnknown, PriceUnknown
from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.sandbox.accounts import Account
from gateway.sandbox.bodies import json_object
from gateway.sandbox.callers import authenticate, limit
from gateway.sandbox.faults import Occurrence
from gateway.sandbox.job import Job, State
from gateway.sandbox.jobs import MODERATED
from gateway.sandbox.parameters import Objection, Reading, read
from gateway.sandbox.parts import PARTS, Parts
from gateway.sandbox.refusals import Refused, broken, utc
from gateway.sandbox.studio import Order

_QUEUE_SECONDS = 0.25
"""How long a job waits for a worker, before the time scale."""

_DOOMED_SECONDS = 0.003
"""How soon a job fails whose parameters make no sense."""

_GREATEST_SEED = 2**31


async def submit_v2(request: web.Request) -> web.StreamResponse:
    parts = request.app[PARTS]
    job = await _accept(request, parts, "v2")
    if dropped := await _mishap(request, parts, job):
        return dropped
    record = parts.url(request, f"/v2/requests/{job.id}")
    return web.json_response(
        {
            "request_id": job.id,
            "status": State.QUEUED.value,
            "poll_url": parts.url(request, f"/v1/requests/{job.id}"),
            "status_url": f"{record}/status",
            "response_url": record,
        }
    )


async def generate_v1(request: web.Request) -> web.StreamResponse:
    parts = request.app[PARTS]
    job = await _accept(request, parts, "v1")
    if dropped := await _mishap(request, parts, job):
        return dropped
    await job.done.wait()
    if job.state is State.FAILED:
        raise Refused(500, job.error or "Internal server error", headers={"x-request-id": job.id})
    if job.file is None or job.finished_at is None:
        # The sandbox closes; the job goes on when it is back.
        broken(502)
    headers = {
        "x-request-id": job.id,
        "x-generation-time": f"{job.finished_at - job.starts_at:.3f}",
        "x-rate-limit-reset-at-utc": utc(parts.accounts.window_ends_at()),
        "x-output-metadata": json.dumps(job.output),
    }
    if "cost_missing" not in job.faults:
        headers["x-cost"] = str(job.cost.usd)
    if job.credits_left is not None:
        headers["x-remaining-credits"] = str(job.credits_left.usd)
    if job.seed is not None:
        headers["x-seed-value"] = str(job.seed)
    if "json_instead_of_media" in job.faults:
        return web.json_response({"status": "success", "message": "Your output is ready."}, headers=headers)
    body = await asyncio.to_thread(parts.studio.path(job.file).read_bytes)
    if job.parameters.get("base64") is True:
        return web.json_response({"image": base64.b64encode(body).decode()}, headers=headers)
    return web.Response(body=body, content_type=job.media_type, headers=headers)


async def _accept(request: web.Request, parts: Parts, api: str) -> Job:
    """The job, which is on disk and running. The order of the checks is the upstream's."""
    if request.content_type not in {"application/json", "multipart/form-data"}:
        raise Refused(406, "Invalid content type")
    account = authenticate(request)
    model = _model(parts, account, request.match_info["slug"])
    limit(parts, account, model.name, poll=False)
    if refused := parts.faults.draw("submit_refused", model.name):
        broken(refused.status())
    body = await _body(request, model)
    reading = read(model, body, lambda: secrets.randbelow(_GREATEST_SEED))
    # From here to the reservation nothing waits, so that nobody else can spend what we have seen.
    price = _price(model, reading)
    _check_credits(parts, account, model, price, api)
    doomed: str | None = None
    match reading.objection:
        case Objection.NOT_IN_SET:
            raise Refused(406, reading.error)
        case Objection.NOT_A_FIELD if api == "v1":
            raise Refused(400, reading.error)
        case None:
            pass
        case _:
            doomed = reading.error
    job = _job(parts, account, model, api, body, reading, price, doomed)
    await parts.jobs.accept(job)
    return job


def _model(parts: Parts, account: Account, slug: str) -> Model:
    try:
        model = parts.catalog.find(slug)
    except ModelUnknown as unknown:
        raise Refused(404, str(unknown)) from unknown
    if parts.faults.draw("model_retired", slug):
        raise Refused(410, f"Model {slug} has been retired")
    if account.models is not None and slug not in account.models:
        raise Refused(403, f"Your team is not allowed to use {slug}")
    return model


async def _body(request: web.Request, model: Model) -> dict[str, Json]:
    if request.content_type == "multipart/form-data":
        return _typed(model, {name: str(value) for name, value in (await request.post()).items()})
    return await json_object(request)


def _typed(model: Model, form: Mapping[str, str]) -> dict[str, Json]:
    """A form has only texts: what the model wants otherwise is read as JSON where it can be."""
    properties = model.schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    typed: dict[str, Json] = {}
    for name, text in form.items():
        declared = known.get(name)
        typed[name] = text
        if isinstance(declared, dict) and declared.get("type") != "string":
            try:
                typed[name] = orjson.loads(text)
            except orjson.JSONDecodeError:
                continue
    return typed


def _price(model: Model, reading: Reading) -> Money:
    if reading.objection is not None:
        return Money.ZERO
    try:
        return model.price(reading.parameters)
    except PriceUnknown as unknown:
        raise Refused(500, f"The sandbox cannot bill this: {unknown}") from unknown


def _check_credits(parts: Parts, account: Account, model: Model, price: Money, api: str) -> None:
    forced = parts.faults.draw("insufficient_credits", model.name)
    if forced is None and price <= account.available and account.available.micros > 0:
        return
    if forced:
        status = forced.status()
    elif api == "v1" or parts.faults.draw("insufficient_credits_as_406", model.name):
        status = 406
    else:
        status = 402
    raise Refused(
        status,
        f"Insufficient credits. You have {account.credits.usd} credits and this request needs {price.usd}.",
    )


def _job(
    parts: Parts,
    account: Account,
    model: Model,
    api: str,
    body: Mapping[str, Json],
    reading: Reading,
    price: Money,
    doomed: str | None,
) -> Job:
    faults = parts.faults.draw_for_job(model.name, api)
    doomed = doomed or _fate(parts, model, reading, faults)
    now = parts.clock()
    starts_at = now + _QUEUE_SECONDS * parts.time_scale
    if cold := faults.get("cold_start"):
        starts_at += cold.number("seconds")
    working_seconds = (
        _DOOMED_SECONDS
        if reading.objection is not None
        else parts.time_scale * model.expected_seconds(reading.parameters)
    )
    identity = uuid.uuid4()
    return Job(
        id=identity.hex if "hex_request_id" in faults else str(identity),
        account=account.name,
        model=model.name,
        api=api,
        body=body,
        parameters=reading.parameters,
        seed=reading.seed,
        media_type=model.media_type,
        price=price,
        submitted_at=now,
        starts_at=starts_at,
        due_at=starts_at + working_seconds,
        doomed=doomed,
        faults=faults,
    )


def _fate(parts: Parts, model: Model, reading: Reading, faults: Mapping[str, Occurrence]) -> str | None:
    """The error that a fault has in store for a job that could be made."""
    if failed := faults.get("failed"):
        return failed.text("error")
    if "moderation" in faults:
        order = Order(model.name, model.media_type, reading.parameters, reading.seed)
        return None if parts.jobs.passes_moderation(order) else MODERATED
    return None


async def _mishap(request: web.Request, parts: Parts, job: Job) -> web.StreamResponse | None:
    """What goes wrong between us and the caller once the job runs; an answer that nobody will read, if so."""
    if slow := parts.faults.draw("submit_slow", job.model):
        await asyncio.sleep(slow.number("seconds"))
    if error := parts.faults.draw("submit_error", job.model):
        broken(error.status())
    if parts.faults.draw("submit_dropped", job.model):
        if request.transport is not None:
            request.transport.close()
        return web.Response()
    return None
