"""What a key may, within what its tenant and everybody above it may: the same on every way to an answer."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.domain.tenant import KeyTerms, Rate, Role
from tests.journeys.conftest import OpenHouse
from tests.journeys.running import MODEL, House, video

ORGANISATION: dict[str, Any] = {
    "demo": {"budgets": [{"limit_usd": 25, "per": "month"}]},
    "acme": {"budgets": [{"limit_usd": 25, "per": "month"}], "cache": "private", "models": [MODEL]},
    "film": {"parent": "acme", "budgets": []},
}


async def _key(house: House, tenant: str, terms: KeyTerms) -> str:
    key = await house.gateway.keys.create(tenant, "of its own terms", terms=terms)
    house.secrets.add(key)
    return key


async def test_a_reader_asks_for_nothing_not_even_for_what_is_there(open_house: OpenHouse) -> None:
    house = await open_house(tenants=ORGANISATION)
    await house.make()
    reader = await _key(house, "demo", KeyTerms(role=Role.READER))

    for _ in range(3):
        (await house.make(video(), key=reader)).refused(403, "key_forbidden")

    assert (await house.get("/v1/usage", key=reader)).status == 200
    assert (await house.bill()).micros == 4_000


async def test_a_key_may_ask_as_often_as_it_may_hits_included_and_is_told_when_again(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants=ORGANISATION)
    house.insists = False  # asking again would count
    key = await _key(house, "demo", KeyTerms(rate=Rate(requests=3, seconds=3600, burst=3)))

    answers = [await house.make(video(), key=key) for _ in range(5)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    refusal = answers[-1]
    refusal.refused(429, "rate_limited")
    assert 0 < int(refusal.headers["Retry-After"]) <= 1200
    assert (await house.metrics()).value("gateway_refusals_total", tenant="demo", reason="rate") == 2
    house.clock.ahead_seconds = 3600
    assert (await house.make(video(), key=key)).status == 200


async def test_a_rate_is_kept_over_requests_at_the_same_moment(open_house: OpenHouse) -> None:
    house = await open_house(tenants=ORGANISATION)
    await house.make()
    house.insists = False  # asking again would count
    key = await _key(house, "demo", KeyTerms(rate=Rate(requests=10, seconds=3600, burst=10)))

    answers = await asyncio.gather(*(house.make(video(), key=key) for _ in range(40)))

    assert sorted(answer.status for answer in answers) == [200] * 10 + [429] * 30


async def test_models_of_a_key_and_of_whoever_is_above_are_kept_for_hits_too(open_house: OpenHouse) -> None:
    house = await open_house(tenants=ORGANISATION)
    other = "ltx-2-fast"
    assert (await house.make({"prompt": "a fox"}, model=other)).status == 200
    team = await _key(house, "film", KeyTerms())
    narrow = await _key(house, "demo", KeyTerms(models=frozenset({MODEL})))

    for _ in range(3):
        for key in (team, narrow):
            (await house.make({"prompt": "a fox"}, model=other, key=key)).refused(403, "model_forbidden")
        assert (await house.make(video(), key=team)).status == 200
        assert (await house.make(video(), key=narrow)).status == 200


async def test_what_an_organisation_keeps_private_its_teams_share_and_nobody_else(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants=ORGANISATION)
    team, head = await _key(house, "film", KeyTerms()), await _key(house, "acme", KeyTerms())

    made = await house.make(video(), key=team)
    shared = [await house.make(video(), key=head) for _ in range(3)]
    stranger = await house.make()

    assert made.cache.startswith("fwd=miss")
    assert [answer.cache for answer in shared] == ["hit"] * 3
    assert stranger.cache.startswith("fwd=miss")
    assert len((await house.bill()).jobs) == 2


async def test_when_a_key_was_last_used_is_known_however_it_was_answered(open_house: OpenHouse) -> None:
    house = await open_house(tenants=ORGANISATION)

    async def used_at() -> float:
        keys = house.gateway.keys
        # What the hit path has served is handed over when somebody looks at the figures.
        await house.metrics()
        await keys.write_down_uses()
        found = {key.id: key.last_used_at for key in await keys.listed("demo")}
        return found[identity] or 0.0

    identity = (await house.gateway.keys.find_key(house.key)).id
    assert await used_at() == 0
    before = house.clock()
    assert (await house.make()).status == 200
    assert before <= await used_at() <= house.clock()

    for seconds in range(10, 60, 10):
        house.clock.ahead_seconds = seconds
        before = house.clock()
        # Asked again until the hit path has answered: it knows the caller, and asks nobody.
        assert (await house.make()).cache == "hit"
        assert before <= await used_at() <= house.clock()


async def test_a_use_right_before_a_stop_is_written_down(open_house: OpenHouse) -> None:
    house = await open_house(tenants=ORGANISATION)
    assert (await house.make()).status == 200

    await house.restart()

    (key,) = await house.gateway.keys.listed("demo")
    assert key.last_used_at is not None
