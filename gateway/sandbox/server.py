"""The sandbox as a web application: a local stand-in for the Segmind API (see docs/sandbox.md)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from gateway.catalog.contract import Catalog
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.sandbox import assets, control, downloads, history, inference, records
from gateway.sandbox.accounts import Accounts
from gateway.sandbox.faults import Faults
from gateway.sandbox.jobs import Jobs
from gateway.sandbox.parts import PARTS, Parts
from gateway.sandbox.refusals import refusing, sign
from gateway.sandbox.sqlite import Books
from gateway.sandbox.studio import Studio
from gateway.sandbox.uploads import Uploads

_LARGEST_BODY_BYTES = 256 * 2**20
"""Uploads are base64 in JSON."""


def create_sandbox(
    *,
    catalog: Catalog,
    directory: Path,
    public_url: str | None,
    time_scale: float,
    clock: Clock,
    encoders: int = 2,
) -> web.Application:
    """The sandbox; what it remembers lives in `directory`, and goes on there at the next start.

    `public_url` is where its own URLs point, None for wherever the caller has found it. A job takes `time_scale`
    times as long as the real one. At most `encoders` media are made at once.
    """

    async def open_parts(app: web.Application) -> AsyncIterator[None]:
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        database = await asyncio.to_thread(SqliteDatabase, directory / "sandbox.sqlite3")
        studio = await asyncio.to_thread(Studio, directory / "files", encoders=encoders)
        try:
            books = await asyncio.to_thread(Books, database)
            accounts = Accounts(books, clock)
            jobs = Jobs(books=books, accounts=accounts, studio=studio, clock=clock)
            app[PARTS] = Parts(
                catalog=catalog,
                books=books,
                accounts=accounts,
                faults=Faults(random.SystemRandom().random),
                jobs=jobs,
                studio=studio,
                uploads=await asyncio.to_thread(Uploads, directory / "assets"),
                clock=clock,
                time_scale=time_scale,
                public_url=public_url.rstrip("/") if public_url else None,
            )
            await accounts.open()
            await jobs.open()
            yield
            await jobs.close()
        finally:
            await asyncio.to_thread(studio.close)
            await asyncio.to_thread(database.close)

    async def let_go(app: web.Application) -> None:
        # Callers who wait on v1 would keep the server from closing.
        await app[PARTS].jobs.close()

    app = web.Application(middlewares=[refusing], client_max_size=_LARGEST_BODY_BYTES)
    app.cleanup_ctx.append(open_parts)
    app.on_shutdown.append(let_go)
    app.on_response_prepare.append(sign)
    app.add_routes(
        [
            # Before the models, whose names would match as well.
            web.get("/v1/get-user-credits", history.credits),
            web.post("/v1/{slug}", inference.generate_v1),
            web.post("/v2/{slug}", inference.submit_v2),
            web.get("/v2/requests/{id}/status", records.status),
            web.get("/v2/requests/{id}", records.result),
            web.get("/v1/requests/{id}", records.result),
            web.get("/inference-request/request-history", history.history),
            web.get("/inference-request/request-history/{id}", history.past_request),
            web.post("/upload-asset", assets.upload),
            web.get("/assets/{file}", assets.asset),
            web.get("/generations/{file}", downloads.download),
            web.get("/sandbox/bill", control.bill),
            web.get("/sandbox/faults", control.list_faults),
            web.put("/sandbox/faults", control.put_faults),
            web.delete("/sandbox/faults", control.clear_faults),
            web.post("/sandbox/accounts", control.put_account),
            web.get("/", control.front_page),
        ]
    )
    return app
