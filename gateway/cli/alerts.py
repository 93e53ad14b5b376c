"""`gateway alerts`"""

from __future__ import annotations

import asyncio
import json as json_
import os
import secrets
import sys
from collections.abc import Sequence

from cyclopts import App

from gateway.alerts.contract import Delivery, Progress
from gateway.app.alerting import opened_alerts, opened_messenger
from gateway.app.opening import SYSTEM_CLOCK, opened_directory
from gateway.cli.options import FILE_AND_ENVIRONMENT, Count, Flag, Options
from gateway.cli.tables import aligned, minute
from gateway.domain.json_forms import utc
from gateway.http import members

alerts = App(name="alerts", help="List what was told of budgets, or try whether somebody listens.")

_HEADER = ("RAISED", "OF", "BUDGET", "THRESHOLD", "STATE", "TRIES", "LAST ERROR")


@alerts.command(name="list")
def list_(
    *,
    tenant: str | None = None,
    limit: Count = 50,
    json: Flag = False,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """List the alerts that were raised, newest first, and how their sending goes.

    Parameters
    ----------
    tenant
        Only those of this tenant and its keys.
    limit
        At most so many.
    json
        Print them as JSON, as GET /admin/alerts has them: with what is sent, and every try.
    """

    async def look() -> Sequence[Progress]:
        settings = options.settings()
        async with opened_alerts(settings) as log:
            found = await log.listed(tenant=tenant, limit=limit)
        if tenant is not None and not found:
            async with opened_directory(settings, applying=False) as directory:
                directory.find(tenant)
        return found

    listed = asyncio.run(look())
    if json:
        print(json_.dumps([members.alert(each) for each in listed], indent=2, ensure_ascii=False))
        return
    for line in aligned(_HEADER, map(_cells, listed)):
        print(line)


@alerts.command
def test(*, options: Options = FILE_AND_ENVIRONMENT) -> None:  # noqa: PT028 -- a command, and no test
    """Send a message of the type `test` to alerts.webhook_url, once. Ends with 1 if it is not taken."""
    message_id = f"msg_test{secrets.token_hex(10)}"
    message = json_.dumps({"type": "test", "timestamp": utc(SYSTEM_CLOCK()), "data": {}})

    async def send() -> Delivery:
        async with opened_messenger(options.settings().alerts, os.environ) as messenger:
            return await messenger.send(message_id, message)

    delivery = asyncio.run(send())
    if delivery.error:
        sys.exit(f"gateway: {message_id} was not taken: {delivery.error}.")
    print(f"{message_id} was taken: {delivery.status} after {delivery.seconds:.3f} s.")


def _cells(progress: Progress) -> Sequence[object]:
    alert, deliveries = progress.alert, progress.deliveries
    return (
        minute(alert.raised_at),
        f"{alert.tenant}#{alert.key_id}" if alert.key_id else alert.tenant,
        alert.budget,
        f"{alert.threshold} %" if alert.threshold.isdecimal() else alert.threshold,
        progress.state.value,
        len(deliveries),
        deliveries[-1].error if deliveries else "",
    )
