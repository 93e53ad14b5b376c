"""What a tenant may know of its own account: credits and usage."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.domain import json_forms
from gateway.domain.balance import Balance, remaining
from gateway.domain.clock import Clock
from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.http import members
from gateway.http.errors import json_response
from gateway.http.front_door import FrontDoor
from gateway.ledger.contract import Statements
from gateway.requests.contract import Tallies, Tally


@dataclass(frozen=True, slots=True)
class Account:
    """GET /v1/get-user-credits and /v1/usage."""

    front_door: FrontDoor
    statements: Statements
    tallies: Tallies
    clock: Clock

    async def get_credits(self, request: web.Request) -> web.Response:
        """What the tightest budget above the caller leaves, in the upstream's shape; null where there is no limit."""
        caller = self.front_door.caller(request)
        left = remaining(caller.holders, await self.statements.balances_of(caller.holders))
        return json_response({"credits": None if left is None else left.usd_number, "free-credits": 0.0})

    async def get_usage(self, request: web.Request) -> web.Response:
        """Spent, reserved and saved, in all and by model, and every budget above the caller as it stands."""
        caller = self.front_door.caller(request)
        tenant = caller.tenant
        spent = await self.statements.spent(tenant.name)
        reserved = await self.statements.reserved(tenant.name)
        tallies = await self.tallies.totals(tenant.name)
        balances = await self.statements.balances_of(caller.holders, with_pace=True)
        places = sorted({*spent, *reserved, *tallies})
        everything = sum(tallies.values(), start=Tally())
        return json_response(
            {
                "tenant": tenant.name,
                "as_of": json_forms.utc(self.clock()),
                **_line(
                    sum(spent.values(), start=Money.ZERO),
                    sum(reserved.values(), start=Money.ZERO),
                    everything,
                ),
                "budgets": [self._budget(balance, tenant.name) for balance in balances],
                "models": {
                    place[1]: _line(
                        spent.get(place, Money.ZERO),
                        reserved.get(place, Money.ZERO),
                        tallies.get(place, Tally()),
                    )
                    for place in places
                },
            }
        )

    def _budget(self, balance: Balance, tenant: str) -> dict[str, Json]:
        """What another tenant has above this one is its own business; what it leaves is this one's, too."""
        return members.budget(balance, self.clock(), in_full=balance.holder.tenant == tenant)


def _line(spent: Money, reserved: Money, tally: Tally) -> dict[str, Json]:
    return {
        **json_forms.money("spent", spent),
        **json_forms.money("reserved", reserved),
        **json_forms.money("saved", tally.saved_by_hits + tally.saved_by_joining),
        **json_forms.money("saved_by_hits", tally.saved_by_hits),
        **json_forms.money("saved_by_joining", tally.saved_by_joining),
        "hits": tally.hits,
        "misses": tally.misses,
        "collapsed": tally.collapsed,
        "bypasses": tally.bypasses,
    }
