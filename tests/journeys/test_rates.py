"""How often a key may ask, over all workers; and that no refusal invites a storm of retries."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from gateway.domain.tenant import KeyTerms, Rate, Role
from tests.journeys.conftest import OpenHouse
from tests.journeys.running import Answer, House, video

TENANTS: dict[str, Any] = {
    "demo": {"budgets": [{"limit_usd": 25, "per": "month"}]},
    "poor": {"budgets": [{"limit_usd": 0, "per": "month"}]},
}


async def _key(house: House, tenant: str, rate: Rate | None, role: Role = Role.CALLER) -> str:
    key = await house.gateway.keys.create(tenant, "of a rate", terms=KeyTerms(role=role, rate=rate))
    house.secrets.add(key)
    return key


@pytest.fixture
async def house(open_house: OpenHouse) -> House:
    opened = await open_house(tenants=TENANTS)
    opened.insists = False  # asking again would count
    return opened


def _stands(answer: Answer) -> tuple[int, int]:
    """How many may come now, and in how many seconds all of them."""
    match = re.fullmatch(r'"key";r=(\d+);t=(\d+)', answer.headers["RateLimit"])
    assert match, answer.headers
    return int(match[1]), int(match[2])


async def test_a_key_with_a_rate_is_told_how_it_stands_with_every_answer(house: House) -> None:
    key = await _key(house, "demo", Rate(requests=60, seconds=3600, burst=3))

    looked = await house.get("/v1/usage", key=key)
    bought = await house.make(key=key)
    hit = await house.make(key=key)
    wrong = await house.make({"width": "x"}, key=key)
    limited = await house.make(key=key)
    nowhere = await house.get("/v1/nothing/at/all", key=key)
    looked_again = await house.get("/v1/models", key=key)

    told = (looked, bought, hit, wrong, limited, looked_again)
    assert [answer.status for answer in told] == [200, 200, 200, 400, 429, 200]
    assert [_stands(answer)[0] for answer in told] == [3, 2, 1, 0, 0, 0]
    assert {answer.headers["RateLimit-Policy"] for answer in told} == {'"key";q=60;w=3600'}
    assert _stands(looked) == (3, 0)
    assert 0 < _stands(limited)[1] <= 180
    assert 0 < int(limited.headers["Retry-After"]) <= 60
    # Nobody has asked whose key it is.
    assert "RateLimit" not in nowhere.headers
    house.clock.ahead_seconds = 180
    assert _stands(await house.get("/v1/usage", key=key)) == (3, 0)


async def test_a_key_without_a_rate_is_told_of_none(house: House) -> None:
    answers = [await house.make(), await house.make(), await house.get("/v1/usage")]

    assert all("RateLimit" not in answer.headers for answer in answers)
    assert all("RateLimit-Policy" not in answer.headers for answer in answers)


async def test_polling_reading_and_media_do_not_count(house: House) -> None:
    key = await _key(house, "demo", Rate(requests=1, seconds=3600, burst=1))
    submitted = await house.submit(key=key)
    result = await house.result(submitted, key=key)

    for _ in range(5):
        assert (await house.get("/v1/get-user-credits", key=key)).status == 200
        assert (await house.get(submitted.json["status_url"], key=key)).status == 200
        assert (await house.get(result.json["output"], key="")).status == 200

    (await house.make(key=key)).refused(429, "rate_limited")


async def test_what_is_refused_for_its_rate_costs_no_budget_and_the_other_way_round(house: House) -> None:
    key = await _key(house, "poor", Rate(requests=2, seconds=3600, burst=2))

    answers = [await house.make(video(seed=seed), key=key) for seed in (1, 2, 3)]

    assert [answer.status for answer in answers] == [406, 406, 429]
    metrics = await house.metrics()
    assert metrics.value("gateway_refusals_total", tenant="poor", reason="budget") == 2
    assert metrics.value("gateway_refusals_total", tenant="poor", reason="rate") == 1


async def test_no_budgets_refusal_invites_a_retry(house: House) -> None:
    keys = [await house.new_key("poor"), await _key(house, "poor", Rate(requests=9, seconds=60, burst=9))]

    for key in keys:
        for answer in (await house.make(key=key), await house.submit(key=key)):
            told = answer.refused(406, "budget_exceeded")
            assert told["retry"] is False
            assert "Retry-After" not in answer.headers
            assert told["resets_at"].endswith("-01T00:00:00Z")


async def test_a_rate_is_one_for_all_gateways_of_one_storage(house: House) -> None:
    await house.make()
    key = await _key(house, "demo", Rate(requests=10, seconds=3600, burst=10))

    async with house.beside() as other:
        asked = [
            house.ask("POST", f"{url}/v1/ltx-2-19b-t2v", key=key, json=video())
            for url in (house.url, other.url) * 12
        ]
        answers = await asyncio.gather(*asked)

    assert sorted(answer.status for answer in answers) == [200] * 10 + [429] * 14


async def test_an_administrators_rate_is_told_on_the_operators_listener_too(house: House) -> None:
    key = await _key(house, "demo", Rate(requests=5, seconds=60, burst=2), Role.ADMIN)

    answer = await house.get(f"{house.gateway.operations_url}/admin/tenants", key=key)

    assert _stands(answer) == (2, 0)
