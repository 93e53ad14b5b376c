"""Concurrent identical requests make one purchase, whoever hangs up."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import PRICE_MICROS, Answer, House, video

MISS, COLLAPSED = "fwd=miss; stored", "fwd=miss; collapsed"


async def test_twenty_identical_requests_at_once_buy_one_video(house: House) -> None:
    await house.hold()
    waiting = [asyncio.create_task(house.make()) for _ in range(20)]
    await house.until_pending(20)
    await house.let_go()
    answers = [await each for each in waiting]

    assert {answer.status for answer in answers} == {200}
    assert Counter(answer.cache for answer in answers) == {MISS: 1, COLLAPSED: 19}
    assert len({answer.body for answer in answers}) == 1
    assert len({answer.headers["Cache-Status"].partition("key=")[2] for answer in answers}) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 20
    assert Counter(answer.headers["x-cost"] for answer in answers) == {"0.004": 1, "0": 19}
    assert len((await house.bill()).jobs) == 1
    usage = await house.usage()
    assert (usage["spent_micros"], usage["saved_by_joining_micros"]) == (PRICE_MICROS, 19 * PRICE_MICROS)
    assert usage["saved_micros"] == 19 * PRICE_MICROS
    assert (usage["misses"], usage["collapsed"], usage["hits"]) == (1, 19, 0)
    assert usage["reserved_micros"] == 0


async def _hang_up(house: House, caller: asyncio.Task[Answer]) -> None:
    """`caller` hangs up, and the gateway has noticed it."""
    noticed = len(_hung_up(house))
    caller.cancel()
    async with asyncio.timeout(30):
        while len(_hung_up(house)) == noticed:
            await asyncio.sleep(0.01)


def _hung_up(house: House) -> list[object]:
    return [line for line in house.log_lines if line.get("status") == 499]


async def test_when_the_first_caller_hangs_up_the_others_are_served_and_the_first_has_paid(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants={"demo": {"budgets": []}, "other": {"budgets": []}})
    other = await house.new_key("other")
    await house.hold()
    first = asyncio.create_task(house.make())
    await house.until_pending(1)
    joined = [asyncio.create_task(house.make(key=other)) for _ in range(4)]
    await house.until_pending(5)
    await _hang_up(house, first)
    await house.let_go()
    answers = [await each for each in joined]

    assert [(answer.status, answer.cache) for answer in answers] == [(200, COLLAPSED)] * 4
    assert (await house.usage())["spent_micros"] == PRICE_MICROS
    assert (await house.usage(key=other))["spent_micros"] == 0
    assert len((await house.bill()).jobs) == 1
    (line,) = [line for line in house.log_lines if line.get("status") == 499]
    assert line["outcome"] == "abandoned"


async def test_when_all_callers_hang_up_the_video_is_made_kept_and_hit(house: House) -> None:
    await house.hold()
    callers = [asyncio.create_task(house.make()) for _ in range(3)]
    await house.until_pending(3)
    for caller in callers:
        await _hang_up(house, caller)
    await house.let_go()
    await house.until_pending(0)

    later = await house.make()
    assert (later.status, later.cache, later.headers["x-cost"]) == (200, "hit", "0")
    assert len((await house.bill()).jobs) == 1
    assert (await house.usage())["spent_micros"] == PRICE_MICROS
    assert (await house.metrics()).value("gateway_requests_total", outcome="abandoned") == 3


async def test_callers_of_v1_and_v2_join_each_other(house: House) -> None:
    await house.hold()
    leader = await house.submit()
    sync = asyncio.create_task(house.make())
    second = await house.submit()
    await house.until_pending(3)
    await house.let_go()

    assert (await sync).cache == COLLAPSED
    paid, free = await house.result(leader), await house.result(second)
    assert (paid.json["metrics"]["cost"], free.json["metrics"]["cost"]) == (0.004, 0)
    assert (paid.json["cache_status"], free.json["cache_status"]) == ("miss", "collapsed")
    assert len((await house.bill()).jobs) == 1


async def test_of_two_tenants_who_join_the_one_who_came_first_pays(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"ann": {"budgets": []}, "bob": {"budgets": []}})
    ann, bob = house.key, await house.new_key("bob")
    await house.hold()
    first = asyncio.create_task(house.make(key=ann))
    await house.until_pending(1)
    second = asyncio.create_task(house.make(key=bob))
    await house.until_pending(2)
    await house.let_go()

    assert ((await first).cache, (await second).cache) == (MISS, COLLAPSED)
    assert (await house.usage(key=ann))["spent_micros"] == PRICE_MICROS
    bobs = await house.usage(key=bob)
    assert (bobs["spent_micros"], bobs["saved_by_joining_micros"]) == (0, PRICE_MICROS)


async def test_one_who_cannot_pay_does_not_keep_others_from_paying(open_house: OpenHouse) -> None:
    house = await open_house(
        tenants={
            "poor": {"budgets": [{"limit_usd": 0.003, "per": "total"}]},
            "rich": {"budgets": [{"limit_usd": 1, "per": "total"}]},
        }
    )
    rich = await house.new_key("rich")

    # Each pair is a race: whoever takes off first, the rich one is served.
    for seed in range(8):
        poor_answer, rich_answer = await asyncio.gather(
            house.make(video(seed=seed)), house.make(video(seed=seed), key=rich)
        )
        assert (rich_answer.status, rich_answer.cache) == (200, MISS)
        assert poor_answer.status in {200, 406}

    assert (await house.usage())["spent_micros"] == 0
    assert (await house.usage(key=rich))["spent_micros"] == 8 * PRICE_MICROS
    assert len((await house.bill()).jobs) == 8


async def test_one_without_budget_may_join_since_it_costs_nothing(open_house: OpenHouse) -> None:
    house = await open_house(
        tenants={"rich": {"budgets": []}, "poor": {"budgets": [{"limit_usd": 0, "per": "total"}]}}
    )
    poor = await house.new_key("poor")
    await house.hold()
    first = asyncio.create_task(house.make())
    await house.until_pending(1)
    joined = asyncio.create_task(house.make(key=poor))
    await house.until_pending(2)
    await house.let_go()

    assert ((await first).cache, (await joined).cache) == (MISS, COLLAPSED)
    assert (await house.make(key=poor)).cache == "hit"


async def test_what_fails_fails_for_all_who_joined_and_costs_nobody(house: House) -> None:
    await house.faults({"failed": {"count": 1, "error": "The model crashed."}})
    await house.hold()
    waiting = [asyncio.create_task(house.make()) for _ in range(3)]
    await house.until_pending(3)
    await house.let_go()

    for each in waiting:
        assert "The model crashed" in (await each).refused(502, "generation_failed")["error"]
    assert (await house.usage())["spent_micros"] == (await house.usage())["reserved_micros"] == 0
    assert (await house.make()).cache == MISS
