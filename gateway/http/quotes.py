"""POST /v1/{model}/quote: what a request would come to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aiohttp import web

from gateway.catalog.contract import Catalog
from gateway.domain import json_forms
from gateway.domain.balance import Prospect
from gateway.domain.clock import Clock
from gateway.domain.generation import GenerationRequest, Json
from gateway.domain.tenant import Caller
from gateway.generation import intake
from gateway.generation.quoting import Quote, Quoting
from gateway.http import members
from gateway.http.errors import json_response
from gateway.http.front_door import VISIT, FrontDoor


@dataclass(frozen=True, slots=True)
class Quotes:
    """Whoever may look may ask, as often as it likes: nothing is bought, held, counted or written down."""

    front_door: FrontDoor
    catalog: Catalog
    quoting: Quoting
    clock: Clock

    async def post_quote(self, request: web.Request) -> web.Response:
        """What the same body would come to at POST /v1/{model} and /v2/{model}."""
        caller = self.front_door.caller(request)
        model = self.catalog.find(request.match_info["model"])
        body = await self.front_door.body(request)
        asked = intake.name(caller, model, intake.parse(body))
        request[VISIT].fingerprint = "" if asked.fresh else asked.fingerprint
        quote = await self.quoting.quote(caller, asked)
        return json_response(self._told(caller, asked, quote))

    def _told(self, caller: Caller, asked: GenerationRequest, quote: Quote) -> dict[str, Json]:
        estimate = quote.estimate
        return {
            "model": asked.model,
            # Of something new each time, the next one has another.
            "fingerprint": None if asked.fresh else asked.fingerprint,
            "outcome": quote.prognosis.value,
            "price": {
                **json_forms.money("held", estimate.held),
                **json_forms.money("expected", estimate.expected),
                **json_forms.money("rule", estimate.rule),
            },
            "evidence": {
                "purchases": estimate.purchases,
                "since": json_forms.day(estimate.since),
                "until": json_forms.day(estimate.until),
            },
            "seconds": {"p50": round(estimate.seconds_p50, 3), "p95": round(estimate.seconds_p95, 3)},
            "queue": {"place": quote.place, "waiting": quote.waiting},
            "fits": quote.fits,
            "budgets": [self._budget(prospect, caller) for prospect in quote.budgets],
        }

    def _budget(self, prospect: Prospect, caller: Caller) -> dict[str, Json]:
        """What another tenant has above this one is its own business; what it leaves is this one's, too."""
        now, in_force = self.clock(), prospect.is_in_force
        before, after = prospect.before, prospect.after
        if not in_force:
            before = after = replace(before, spent=before.limit)
        is_its_own = before.holder.tenant == caller.tenant.name
        runs_out_at = (after if prospect.fits else before).runs_out_at(now) if in_force else None
        return {
            **members.budget(before, now, in_full=is_its_own and in_force),
            "fits": prospect.fits,
            "resets_at": json_forms.utc(prospect.resets_at),
            "runs_out_at": json_forms.utc(runs_out_at),
            **json_forms.money("remaining_after", after.remaining),
        }
