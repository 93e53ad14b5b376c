"""Budgets hold, to the micro-dollar, whoever comes at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import PRICE_MICROS, House, video

DAY_SECONDS = 24 * 3600
FOR_TEN = {"demo": {"budgets": [{"limit_usd": 0.04, "per": "month"}]}}


def _for_two(window: str) -> dict[str, Any]:
    return {"demo": {"budgets": [{"limit_usd": 0.008, "per": window}]}}


async def _books_balance(house: House, purchases: int) -> None:
    bill, usage = await house.until_billed(purchases), await house.usage()
    assert len(bill.jobs) == purchases
    assert usage["spent_micros"] == bill.micros == purchases * PRICE_MICROS
    assert usage["reserved_micros"] == 0
    metrics = await house.metrics()
    assert metrics.value("gateway_reserved_usd") == 0
    assert metrics.value("gateway_spend_usd_total") == bill.micros / 1e6


async def test_two_hundred_at_once_against_a_budget_for_ten_buy_exactly_ten(open_house: OpenHouse) -> None:
    house = await open_house(tenants=FOR_TEN)
    answers = await asyncio.gather(*(house.make(video(seed=seed)) for seed in range(200)))

    assert Counter(answer.status for answer in answers) == {200: 10, 406: 190}
    assert all(answer.cache == "fwd=miss; stored" for answer in answers if answer.status == 200)
    await _books_balance(house, 10)
    assert (await house.get("/v1/get-user-credits")).json["credits"] == 0


async def test_two_hundred_submits_at_once_against_a_budget_for_ten_buy_exactly_ten(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants=FOR_TEN)
    answers = await asyncio.gather(*(house.submit(video(seed=seed)) for seed in range(200)))
    await house.until_pending(0)

    assert Counter(answer.status for answer in answers) == {200: 10, 406: 190}
    taken = [answer for answer in answers if answer.status == 200]
    assert Counter([(await house.ended(each)).status for each in taken]) == {200: 10}
    await _books_balance(house, 10)


async def test_a_hit_and_a_join_need_no_budget(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.004, "per": "total"}]}})
    answers = await asyncio.gather(*(house.make() for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert (await house.make()).headers["x-remaining-credits"] == "0"
    (await house.make(video(seed=2))).refused(406, "budget_exceeded")
    await _books_balance(house, 1)


async def test_a_budget_for_a_day_is_there_again_the_next_day(open_house: OpenHouse) -> None:
    house = await open_house(tenants=_for_two("day"))
    now = datetime.now(UTC)
    into_the_day_seconds = now.hour * 3600 + now.minute * 60 + now.second
    house.clock.ahead_seconds = 12 * 3600 - into_the_day_seconds  # noon
    statuses = [(await house.make(video(seed=seed))).status for seed in range(3)]
    house.clock.ahead_seconds += DAY_SECONDS
    statuses += [(await house.make(video(seed=seed))).status for seed in range(2, 5)]

    assert statuses == [200, 200, 406, 200, 200, 406]
    await _books_balance(house, 4)


async def test_a_budget_for_a_month_is_there_again_the_next_month_and_says_when(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants=_for_two("month"))
    statuses = [(await house.make(video(seed=seed))).status for seed in range(2)]
    refused = await house.make(video(seed=2))
    resets_at = datetime.fromisoformat(refused.refused(406, "budget_exceeded")["resets_at"])
    house.clock.ahead_seconds = resets_at.timestamp() - house.clock() + 60
    statuses += [(await house.make(video(seed=seed))).status for seed in range(2, 5)]

    assert statuses == [200, 200, 200, 200, 406]


async def test_a_budget_in_all_is_never_there_again(open_house: OpenHouse) -> None:
    house = await open_house(tenants=_for_two("total"))
    statuses = [(await house.make(video(seed=seed))).status for seed in range(3)]
    house.clock.ahead_seconds = 400 * DAY_SECONDS
    refused = await house.make(video(seed=2))

    assert statuses == [200, 200, 406]
    envelope = refused.refused(406, "budget_exceeded")
    assert (envelope["window"], envelope["resets_at"]) == ("total", None)


async def test_of_several_budgets_each_has_to_have_room(open_house: OpenHouse) -> None:
    house = await open_house(
        tenants={"demo": {"budgets": [{"limit_usd": 1, "per": "month"}, {"limit_usd": 0.004, "per": "day"}]}}
    )
    assert (await house.make()).status == 200
    refused = (await house.make(video(seed=2))).refused(406, "budget_exceeded")

    assert (refused["window"], refused["limit_usd"]) == ("day", 0.004)
    budgets = {budget["per"]: budget for budget in (await house.usage())["budgets"]}
    assert (budgets["month"]["remaining_micros"], budgets["day"]["remaining_micros"]) == (996_000, 0)


async def test_a_tenant_with_no_budgets_has_no_limit(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": []}})
    made = await house.make()

    assert made.status == 200
    assert "x-remaining-credits" not in made.headers
    assert (await house.usage())["budgets"] == []
    record = (await house.make(headers={"Accept": "application/json"})).json
    assert "remaining_credits" not in record["metrics"]


async def test_one_tenants_spending_is_not_anothers(open_house: OpenHouse) -> None:
    budget = {"budgets": [{"limit_usd": 0.004, "per": "month"}]}
    house = await open_house(tenants={"ann": budget, "bob": budget})
    bob = await house.new_key("bob")

    assert (await house.make(video(seed=1))).status == 200
    assert (await house.make(video(seed=2))).status == 406
    assert (await house.make(video(seed=2), key=bob)).status == 200
    assert (await house.usage(key=bob))["spent_micros"] == PRICE_MICROS


async def test_what_failed_gives_its_money_back_for_the_next(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.004, "per": "month"}]}})
    await house.faults({"failed": {"count": 3}})
    statuses = [(await house.make()).status for _ in range(5)]

    assert statuses == [502, 502, 502, 200, 200]


async def test_spending_survives_a_restart(open_house: OpenHouse) -> None:
    house = await open_house(tenants=_for_two("month"))
    assert (await house.make(video(seed=1))).status == 200
    await house.restart()
    statuses = [(await house.make(video(seed=seed))).status for seed in (2, 3)]

    assert statuses == [200, 406]
    usage = await house.usage()
    assert (usage["spent_micros"], usage["misses"]) == (2 * PRICE_MICROS, 2)


async def test_what_is_held_counts_against_the_budget_until_it_lands(open_house: OpenHouse) -> None:
    house = await open_house(tenants=_for_two("month"))
    await house.hold()
    for seed in (1, 2):
        assert (await house.submit(video(seed=seed))).status == 200
    (await house.submit(video(seed=3))).refused(406, "budget_exceeded")
    usage = await house.usage()
    assert (usage["spent_micros"], usage["reserved_micros"]) == (0, 2 * PRICE_MICROS)
    assert (await house.get("/v1/get-user-credits")).json["credits"] == 0
    metrics = await house.metrics()
    assert metrics.value("gateway_reserved_usd", tenant="demo") == 0.008
    assert metrics.value("gateway_in_flight_generations") == 2
    await house.let_go()
    await house.until_pending(0)

    await _books_balance(house, 2)


@pytest.mark.parametrize("limit", [0, 0.003999])
async def test_a_budget_that_is_too_small_for_one_buys_none(open_house: OpenHouse, limit: float) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": limit, "per": "month"}]}})
    (await house.make()).refused(406, "budget_exceeded")
    assert (await house.bill()).jobs == []
