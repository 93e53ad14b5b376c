"""What was told of budgets, as whoever administers the gateway sees it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.alerts.contract import Alerts
from gateway.http import members
from gateway.http.errors import json_response
from gateway.http.front_door import FrontDoor
from gateway.http.queries import MOST_ENTRIES, number, query
from gateway.tenants.contract import Tenants


@dataclass(frozen=True, slots=True)
class AlertLog:
    """GET /admin/alerts."""

    front_door: FrontDoor
    alerts: Alerts
    tenants: Tenants

    async def get_alerts(self, request: web.Request) -> web.Response:
        """The newest alerts, newest first, with what is sent and every try; of one tenant, if one is named."""
        self.front_door.admin(request)
        given = query(request, "tenant", "limit")
        limit = number(given, "limit", 100, most=MOST_ENTRIES)
        tenant = given.get("tenant")
        listed = await self.alerts.listed(tenant=tenant, limit=limit)
        if tenant is not None and not listed:
            self.tenants.find(tenant)
        return json_response({"alerts": [members.alert(each) for each in listed]})
