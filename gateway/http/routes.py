"""Every URL, on one screen."""

from __future__ import annotations

from aiohttp import web

from gateway.http.account import Account
from gateway.http.blobs import Blobs
from gateway.http.front_door import FrontDoor
from gateway.http.generations import Generations
from gateway.http.heads import SERVER
from gateway.http.operations import Operations


def front(
    *, front_door: FrontDoor, generations: Generations, account: Account, blobs: Blobs
) -> web.Application:
    """What callers reach."""
    app = web.Application(middlewares=[front_door.middleware])
    app.on_response_prepare.append(_sign)
    app.router.add_routes(
        [
            web.post("/v1/{model}", generations.post_v1),
            web.post("/v2/{model}", generations.post_v2),
            web.get("/v2/requests/{request_id}/status", generations.get_status),
            web.get("/v2/requests/{request_id}", generations.get_result),
            web.get("/v1/requests/{request_id}", generations.get_result),
            web.get("/v1/get-user-credits", account.get_credits),
            web.get("/v1/usage", account.get_usage),
            web.get("/v1/models", account.get_models),
            web.get("/blobs/{name}", blobs.get),
        ]
    )
    return app


def operations(operations: Operations) -> web.Application:
    """What operators reach."""
    app = web.Application()
    app.on_response_prepare.append(_sign)
    app.router.add_routes(
        [
            web.get("/metrics", operations.get_metrics),
            web.get("/healthz", operations.get_health),
            web.get("/readyz", operations.get_readiness),
        ]
    )
    return app


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER
