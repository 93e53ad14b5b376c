"""What no upstream has: the bill, the faults, the accounts, and a front page that says what this is."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from aiohttp import web

from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.sandbox.bodies import json_object
from gateway.sandbox.faults import BadSetting
from gateway.sandbox.job import Job, State
from gateway.sandbox.parts import PARTS
from gateway.sandbox.refusals import Refused, utc
from gateway.sandbox.sqlite import StoredAccount

NOTICE = (
    "This is a sandbox: a local stand-in for the Segmind API, made for trying out and testing the generation gateway. "
    "No video here is real, no model is asked, and no money moves."
)


async def front_page(request: web.Request) -> web.Response:
    endpoints = sorted(
        {
            f"{route.method} {route.resource.canonical}"
            for route in request.app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    )
    return web.json_response(
        {
            "sandbox": NOTICE,
            "time_scale": request.app[PARTS].time_scale,
            "models": [model.name for model in request.app[PARTS].catalog],
            "endpoints": [*endpoints],
        }
    )


async def bill(request: web.Request) -> web.Response:
    return web.Response(
        body=await request.app[PARTS].books.bill(_bill), content_type="application/json", charset="utf-8"
    )


async def list_faults(request: web.Request) -> web.Response:
    return web.json_response(request.app[PARTS].faults.listed())


async def put_faults(request: web.Request) -> web.Response:
    faults = request.app[PARTS].faults
    try:
        faults.put(await json_object(request))
    except BadSetting as error:
        raise Refused(400, str(error)) from error
    return web.json_response(faults.listed())


async def clear_faults(request: web.Request) -> web.Response:
    faults = request.app[PARTS].faults
    faults.clear()
    return web.json_response(faults.listed())


async def put_account(request: web.Request) -> web.Response:
    """`{name, key, credits_usd, models?}`: opens the account, or sets what it has."""
    match await json_object(request):
        case {"name": str(name), "key": str(key), "credits_usd": int() | float() | str() as usd, **rest} if (
            name and key and not isinstance(usd, bool)
        ):
            pass
        case _:
            raise Refused(400, "An account is {name, key, credits_usd}, and models where it may not use all")
    models = rest.pop("models", None)
    if rest or (models is not None and not isinstance(models, list)):
        raise Refused(
            400, f"Unknown or wrong: {', '.join(rest) or 'models'}; known are name, key, credits_usd, models"
        )
    try:
        account = await request.app[PARTS].accounts.put(
            name,
            key=key,
            credits=Money.exactly(usd),
            models=None if models is None else frozenset(str(model) for model in models),
        )
    except ValueError as error:
        raise Refused(400, str(error)) from error
    return web.json_response({"name": account.name, "credits_usd": account.credits.usd_number})


def _bill(jobs: Sequence[Job], accounts: Sequence[StoredAccount]) -> bytes:
    """Runs in the reader's thread: a bill may be long."""
    by_account: dict[str, list[Job]] = {account.name: [] for account in accounts}
    for job in jobs:
        by_account[job.account].append(job)
    return orjson.dumps(
        {
            "sandbox": NOTICE,
            "jobs": [_item(job) for job in jobs],
            "accounts": {
                account.name: _totals(by_account[account.name])
                | {"credits_micros": account.credits.micros, "credits_usd": account.credits.usd_number}
                for account in accounts
            },
            "total": _totals(jobs),
        }
    )


def _item(job: Job) -> dict[str, Json]:
    return {
        "request_id": job.id,
        "account": job.account,
        "model": job.model,
        "api": job.api,
        "parameters": dict(job.body),
        "submitted_at": utc(job.submitted_at),
        "finished_at": None if job.finished_at is None else utc(job.finished_at),
        "state": job.state.value,
        "error": job.error,
        "seed": job.seed,
        "faults": [*job.faults],
        "cost_micros": job.cost.micros,
        "cost_usd": job.cost.usd_number,
    }


def _totals(jobs: Sequence[Job]) -> dict[str, Json]:
    cost = Money(sum(job.cost.micros for job in jobs))
    return {
        "jobs": len(jobs),
        "running": sum(not job.ended for job in jobs),
        "completed": sum(job.state is State.COMPLETED for job in jobs),
        "failed": sum(job.state is State.FAILED for job in jobs),
        "cost_micros": cost.micros,
        "cost_usd": cost.usd_number,
    }
