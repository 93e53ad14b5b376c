"""The sandbox's parts, as its handlers find them."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.catalog.contract import Catalog
from gateway.domain.clock import Clock
from gateway.sandbox.accounts import Accounts
from gateway.sandbox.faults import Faults
from gateway.sandbox.jobs import Jobs
from gateway.sandbox.sqlite import Books
from gateway.sandbox.studio import Studio
from gateway.sandbox.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Parts:
    catalog: Catalog
    books: Books
    accounts: Accounts
    faults: Faults
    jobs: Jobs
    studio: Studio
    uploads: Uploads
    clock: Clock
    time_scale: float
    public_url: str | None

    def url(self, request: web.Request, path: str) -> str:
        """`path` as an absolute URL: on the public URL, or wherever the caller has found us."""
        return f"{self.public_url or f'{request.scheme}://{request.host}'}{path}"


PARTS = web.AppKey("parts", Parts)
