"""Who has used how much, for administrators."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from gateway.accounting import focus, formats
from gateway.accounting.asking import PARAMETERS, asked
from gateway.accounting.usage import Report, Usage
from gateway.documents.spelling import nearest
from gateway.domain.clock import Clock
from gateway.domain.errors import Problem, ReportInvalid
from gateway.http import members
from gateway.http.errors import json_response
from gateway.http.front_door import FrontDoor

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
        given = _query(request)
        form = given.pop("as", "csv" if _CSV in request.headers.get("Accept", "") else "json")
        if form not in _FORMATS:
            raise ReportInvalid(
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


def _query(request: web.Request) -> dict[str, str]:
    known = (*PARAMETERS, "as")
    problems = []
    for name in request.query:
        if name not in known:
            like = nearest(name, known)
            hint = f", did you mean {like}?" if like else f" (known: {', '.join(known)})"
            problems.append(Problem(name[:100], f"is not a parameter of this address{hint}"))
        elif len(request.query.getall(name)) > 1:
            problems.append(Problem(name, "is given more than once"))
    if problems:
        raise ReportInvalid(problems)
    return dict(request.query)
