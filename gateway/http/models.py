"""GET /v1/models and /v1/models/{model}: what may be asked for, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from gateway.catalog.contract import Catalog, Model
from gateway.domain import json_forms
from gateway.domain.errors import PriceUnknown
from gateway.domain.estimate import Lately, lately
from gateway.domain.generation import Json
from gateway.generation import intake
from gateway.generation.estimating import NEWEST
from gateway.http.errors import json_response
from gateway.http.front_door import FrontDoor
from gateway.ledger.contract import Evidence


@dataclass(frozen=True, slots=True)
class Models:
    """The part of the catalogue that a key may use."""

    front_door: FrontDoor
    catalog: Catalog
    evidence: Evidence

    async def get_models(self, request: web.Request) -> web.Response:
        """Every model that the key may use: what it takes, and what it costs."""
        caller = self.front_door.caller(request)
        return json_response(
            {"models": [_described(model) for model in self.catalog if caller.may_use(model.name)]}
        )

    async def get_model(self, request: web.Request) -> web.Response:
        """One of them, with how it is priced and what it cost lately, whoever bought."""
        caller = self.front_door.caller(request)
        model = self.catalog.find(request.match_info["model"])
        intake.check_allowed(caller, model)
        known = lately(await self.evidence.settled(model.name, None, most=NEWEST))
        return json_response(
            {
                **_described(model),
                "defaults": _defaults(model),
                "example": dict(model.example),
                "price": model.price_in_words,
                "deadline_seconds": model.deadline_seconds,
                "lately": None if known is None else _lately(known),
            }
        )


def _described(model: Model) -> dict[str, Json]:
    return {
        "name": model.name,
        "title": model.title,
        "modality": model.modality,
        "media_type": model.media_type,
        "schema": dict(model.schema),
        "price_usd_of_example": _price_of_example(model),
    }


def _price_of_example(model: Model) -> Json:
    try:
        return model.price(model.complete(model.example)).usd_number
    except PriceUnknown:
        return None


def _defaults(model: Model) -> dict[str, Json]:
    parameters = model.schema["properties"]
    assert isinstance(parameters, dict)  # noqa: S101 -- as JSON Schema has it
    return {
        name: keywords["default"]
        for name, keywords in parameters.items()
        if isinstance(keywords, dict) and "default" in keywords
    }


def _lately(known: Lately) -> dict[str, Json]:
    return {
        "purchases": known.purchases,
        "since": json_forms.day(known.since),
        "until": json_forms.day(known.until),
        "cost_usd": {"p50": known.cost_p50.usd_number, "p95": known.cost_p95.usd_number},
        "seconds": {"p50": round(known.seconds_p50, 3), "p95": round(known.seconds_p95, 3)},
    }
