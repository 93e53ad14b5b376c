"""Every URL, on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.http.account import Account
from gateway.http.admin import Admin
from gateway.http.alerts import AlertLog
from gateway.http.blobs import Blobs
from gateway.http.front_door import FrontDoor
from gateway.http.generations import Generations
from gateway.http.heads import SERVER
from gateway.http.models import Models
from gateway.http.operations import Operations
from gateway.http.quotes import Quotes
from gateway.http.usage import UsageReports

ADMIN = "/admin/"
"""What all addresses for administrators begin with."""


def front(
    *,
    front_door: FrontDoor,
    generations: Generations,
    quotes: Quotes,
    models: Models,
    account: Account,
    blobs: Blobs,
    administration: Iterable[web.RouteDef] = (),
) -> web.Application:
    """What callers reach, and administrators, if they are to be served here."""
    app = web.Application(middlewares=[front_door.middleware])
    app.on_response_prepare.append(_sign)
    app.on_response_prepare.append(front_door.complete_head)
    app.router.add_routes(
        [
            web.post("/v1/{model}", generations.post_v1),
            web.post("/v2/{model}", generations.post_v2),
            web.post("/v1/{model}/quote", quotes.post_quote),
            web.get("/v2/requests/{request_id}/status", generations.get_status),
            web.get("/v2/requests/{request_id}", generations.get_result),
            web.get("/v1/requests/{request_id}", generations.get_result),
            web.get("/v1/get-user-credits", account.get_credits),
            web.get("/v1/usage", account.get_usage),
            web.get("/v1/models", models.get_models),
            web.get("/v1/models/{model}", models.get_model),
            web.get("/blobs/{name}", blobs.get),
        ]
    )
    app.router.add_routes(administration)
    return app


def administration(*, admin: Admin, alerts: AlertLog, usage: UsageReports) -> Sequence[web.RouteDef]:
    """What administrators reach, on one of the listeners."""
    return [
        web.get("/admin/tenants", admin.get_tenants),
        web.get("/admin/tenants/{name}", admin.get_tenant),
        web.put("/admin/tenants/{name}", admin.put_tenant),
        web.delete("/admin/tenants/{name}", admin.delete_tenant),
        web.post("/admin/tenants/{name}/top-ups", admin.post_top_up),
        web.post("/admin/apply", admin.post_apply),
        web.get("/admin/keys", admin.get_keys),
        web.post("/admin/keys", admin.post_key),
        web.patch("/admin/keys/{id}", admin.patch_key),
        web.delete("/admin/keys/{id}", admin.delete_key),
        web.post("/admin/keys/{id}/rotate", admin.post_rotation),
        web.get("/admin/audit", admin.get_audit),
        web.get("/admin/usage", usage.get),
        web.get("/admin/alerts", alerts.get_alerts),
    ]


def operations(
    operations: Operations, *, front_door: FrontDoor, administration: Sequence[web.RouteDef] = ()
) -> web.Application:
    """What operators reach, and administrators, if they are to be served here."""
    app = web.Application(middlewares=[_for_administrators(front_door.middleware)] if administration else [])
    app.on_response_prepare.append(_sign)
    app.on_response_prepare.append(front_door.complete_head)
    app.router.add_routes(administration)
    app.router.add_routes(
        [
            web.get("/metrics", operations.get_metrics),
            web.get("/healthz", operations.get_health),
            web.get("/readyz", operations.get_readiness),
        ]
    )
    return app


def _for_administrators(middleware: Middleware) -> Middleware:
    """Names, envelopes and log lines for what administrators ask; metrics and health are asked every few seconds."""

    @web.middleware
    async def only(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await (middleware(request, handler) if request.path.startswith(ADMIN) else handler(request))

    return only


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = SERVER
