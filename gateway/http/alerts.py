"""What was told of budgets, as whoever administers the gateway sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from aiohttp import web

from gateway.alerts.contract import Alerts, Progress
from gateway.domain import json_forms
from gateway.domain.generation import Json
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
        return json_response({"alerts": [progress_to_json(each) for each in listed]})


def progress_to_json(progress: Progress) -> dict[str, Json]:
    """An alert, the message that says it, and every try to send that."""
    alert = progress.alert
    message: Json = json.loads(alert.message)
    return {
        "id": alert.id,
        "raised_at": json_forms.utc(alert.raised_at),
        "tenant": alert.tenant,
        "key_id": alert.key_id or None,
        "budget": alert.budget,
        "threshold": alert.threshold,
        "state": progress.state.value,
        "due_at": json_forms.utc(progress.due_at),
        "message": message,
        "deliveries": [
            {
                "at": json_forms.utc(delivery.at),
                "seconds": round(delivery.seconds, 6),
                "status": delivery.status,
                "error": delivery.error or None,
            }
            for delivery in progress.deliveries
        ],
    }
