"""Who has used how much, for administrators."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from gateway.accounting import focus, formats
from gateway.accounting.asking import PARAMETERS, asked
from gateway.accounting.usage import Report, Usage
from gateway.domain.clock import Clock
from gateway.domain.errors import Problem, QueryInvalid
from gateway.http import members
from gateway.http.errors import json_response
from gateway.http.front_door import FrontDoor
from gateway.http.queries import query

_CSV = "text/csv"
_FORMATS = ("json", "csv", "focus")


@dataclass(frozen=True, slots=True)
class UsageReports:
    """GET /admin/usage."""

    front_door: FrontDoor
    usage: Usage
    upstream: str
    """Whose invoice it is that is divided."""

    clock: Clock

    async def get(self, request: web.Request) -> web.Response:
        """A report, as JSON, CSV or in the columns of FOCUS."""
        self.front_door.admin(request)
        given = dict(query(request, *PARAMETERS, "as"))
        form = given.pop("as", "csv" if _CSV in request.headers.get("Accept", "") else "json")
        if form not in _FORMATS:
            raise QueryInvalid(
                [Problem("as", f"{form[:100]} is no form of a report (known: {', '.join(_FORMATS)})")]
            )
        about = asked(given, self.clock())
        report = await self.usage.report(focus.focused(about) if form == "focus" else about)
        if form == "json":
            return json_response(await asyncio.to_thread(members.report, report))
        text = await asyncio.to_thread(self._written, report, form)
        return web.Response(text=text, content_type=_CSV, charset="utf-8")

    def _written(self, report: Report, form: str) -> str:
        return focus.to_focus(report, upstream=self.upstream) if form == "focus" else formats.to_csv(report)
