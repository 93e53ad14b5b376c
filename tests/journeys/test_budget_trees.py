"""Budgets of an organisation, of its teams and of their keys, as those see them who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.domain.money import Money
from gateway.domain.tenant import Budget, KeyTerms
from gateway.domain.window import Window
from tests.journeys.conftest import OpenHouse
from tests.journeys.running import PRICE_MICROS, video
from tests.journeys.wire import SMALL, asking, learnt, wired

TREE: Mapping[str, Any] = {
    "film": {"parent": "acme", "budgets": [{"limit_usd": 1, "per": "day"}]},
    "music": {"parent": "acme", "budgets": []},
    "acme": {"budgets": [{"limit_usd": 0.012, "per": "month"}]},
}
"""The first one is whose key a house has."""


async def test_teams_share_what_their_organisation_may_spend_and_see_nothing_of_each_other(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants=dict(TREE))
    music = await house.new_key("music")
    statuses = [(await house.make(video(seed=seed))).status for seed in range(2)]
    statuses += [(await house.make(video(seed=2), key=music)).status]

    refused = (await house.make(video(seed=3), key=music)).refused(406, "budget_exceeded")

    assert statuses == [200, 200, 200]
    assert (refused["of"], refused["budget"], refused["remaining_usd"]) == ("acme", "month", 0)
    assert not {"limit_usd", "spent_usd", "reserved_usd"} & {*refused}
    usage = await house.usage(key=music)
    assert usage["spent_micros"] == PRICE_MICROS
    (above,) = usage["budgets"]
    assert (above["of"], above["remaining_micros"]) == ("acme", 0)
    assert not {"limit_micros", "spent_micros", "reserved_micros"} & {*above}
    day, month = (await house.usage())["budgets"]
    assert (day["of"], day["spent_micros"]) == ("film", 2 * PRICE_MICROS)
    assert month == above
    assert (await house.get("/v1/get-user-credits")).json["credits"] == 0


async def test_a_hit_that_is_known_by_heart_tells_what_others_below_the_organisation_have_left(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants=dict(TREE))
    house.insists = False
    music = await house.new_key("music")
    request = asking(SMALL, key=music)
    async with wired(house.url) as wire:
        await wire.ask(request)
        (reply,) = await learnt(house, wire, request)
        assert (reply.cache, reply.headers["x-remaining-credits"]) == ("hit", "0.008")

        assert (await house.make(video(seed=77))).status == 200

        again = await wire.ask(request)
        assert (again.cache, again.headers["x-remaining-credits"]) == ("hit", "0.004")


async def test_a_keys_own_budget_refuses_that_key_and_nobody_who_joined_it(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": []}})
    terms = KeyTerms(budgets=(Budget(Money(3_000), Window.TOTAL),))
    poor = await house.gateway.keys.create("demo", "a poor one", terms=terms)
    house.secrets.add(poor)

    # Each pair is a race: whoever takes off first, the other key of the same tenant is served.
    for seed in range(8):
        refused, served = await asyncio.gather(
            house.make(video(seed=seed), key=poor), house.make(video(seed=seed))
        )
        assert served.status == 200
        assert refused.status in {200, 406}

    told = (await house.make(video(seed=100), key=poor)).refused(406, "budget_exceeded")
    assert told["limit_usd"] == 0.003
    assert told["of"].startswith("demo#")
    assert (await house.usage())["spent_micros"] == 8 * PRICE_MICROS
