"""Which requests are the same request, and which are not."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import PRICE_MICROS, PROMPT, House, video

JSON = {"Content-Type": "application/json"}

DEFAULTS = {"fps": 24, "guidance_scale": 4, "seed": 1234567890}


async def test_however_the_same_request_is_written_it_is_paid_once(house: House) -> None:
    first = await house.make()
    assert first.cache == "fwd=miss; stored"

    written = [
        json.dumps(video(), indent=7),
        json.dumps(dict(reversed(video().items()))),
        json.dumps(video(**DEFAULTS)),
        json.dumps(video(fps=24.0, guidance_scale=4.0, seed=1234567890.0, num_frames=9.0, width=256.0)),
        json.dumps(video(width=256)).replace("256", "2.56e2"),
        json.dumps(video()).replace("red", "\\u0072ed"),
        "\n\t " + json.dumps(video()) + " \r\n",
    ]
    for body in written:
        again = await house.make(data=body, headers=JSON)
        assert (again.status, again.cache) == (200, "hit"), body
        assert again.body == first.body

    assert len((await house.bill()).jobs) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": PROMPT + " "},
        {"prompt": PROMPT.upper()},
        {"fps": 25},
        {"guidance_scale": 4.5},
        {"height": 288},
        {"num_frames": 17},
        {"seed": 1234567891},
        {"seed": 0},
        {"negative_prompt": ""},
        {"negative_prompt": "blurry"},
    ],
    ids=str,
)
async def test_any_other_change_is_another_request(house: House, change: dict[str, object]) -> None:
    await house.make()
    changed = await house.make(video(**change))

    assert (changed.status, changed.cache) == (200, "fwd=miss; stored"), changed.body[:300]
    jobs = (await house.bill()).jobs
    assert len(jobs) == 2
    # What was hashed is what was sent: every parameter, with the documented defaults.
    assert [job["parameters"] for job in jobs] == [{**DEFAULTS, **video()}, {**DEFAULTS, **video(), **change}]


async def test_the_same_name_in_other_letters_of_unicode_is_another_request(house: House) -> None:
    composed, decomposed = "a caf\u00e9 in the snow", "a cafe\u0301 in the snow"

    assert (await house.make(video(prompt=composed))).cache == "fwd=miss; stored"
    assert (await house.make(video(prompt=decomposed))).cache == "fwd=miss; stored"
    assert (await house.make(data=json.dumps(video(prompt=composed)), headers=JSON)).cache == "hit"


async def test_the_same_parameters_for_another_model_are_another_request(house: House) -> None:
    asked = {"prompt": PROMPT}
    first = await house.make(asked, model="fast-flux-schnell")
    other = await house.make(asked, model="flux-schnell")

    assert (first.status, other.status) == (200, 200), (first.body[:300], other.body[:300])
    assert (first.cache, other.cache) == ("fwd=miss; stored", "fwd=miss; stored")


async def test_a_seed_of_minus_one_is_something_new_each_time_and_can_be_asked_for_again(
    house: House,
) -> None:
    first, second = await house.make(video(seed=-1)), await house.make(video(seed=-1))

    assert (first.cache, second.cache) == ("fwd=bypass; stored", "fwd=bypass; stored")
    assert first.seed != second.seed
    assert first.body != second.body
    assert [answer.headers["x-cost"] for answer in (first, second)] == ["0.004", "0.004"]
    bill = await house.bill()
    assert [job["seed"] for job in bill.jobs] == [first.seed, second.seed]
    assert [job["parameters"]["seed"] for job in bill.jobs] == [first.seed, second.seed]

    for answer in (first, second):
        again = await house.make(video(seed=answer.seed))
        assert (again.cache, again.body, again.seed) == ("hit", answer.body, answer.seed)
    assert (await house.bill()).micros == 2 * PRICE_MICROS


async def test_many_at_once_with_a_seed_of_minus_one_are_many_different_videos(house: House) -> None:
    answers = await asyncio.gather(*(house.make(video(seed=-1)) for _ in range(5)))

    assert len({answer.body for answer in answers}) == 5
    assert len({answer.seed for answer in answers}) == 5
    assert len((await house.bill()).jobs) == 5


async def test_private_tenants_share_with_nobody_and_everybody_else_shares(open_house: OpenHouse) -> None:
    private = {"budgets": [{"limit_usd": 1, "per": "total"}], "cache": "private"}
    shared = {"budgets": [{"limit_usd": 1, "per": "total"}]}
    house = await open_house(
        tenants={"ann": private, "bob": private, "carol": shared, "dave": {**shared, "cache": "shared"}}
    )
    keys = {name: await house.new_key(name) for name in house.tenants}

    first = {name: await house.make(key=key) for name, key in keys.items()}
    second = {name: await house.make(key=key) for name, key in keys.items()}

    assert {name: answer.cache for name, answer in first.items()} == {
        "ann": "fwd=miss; stored",
        "bob": "fwd=miss; stored",
        "carol": "fwd=miss; stored",
        "dave": "hit",
    }
    assert {answer.cache for answer in second.values()} == {"hit"}
    assert {name: (await house.usage(key=key))["spent_micros"] for name, key in keys.items()} == {
        "ann": PRICE_MICROS,
        "bob": PRICE_MICROS,
        "carol": PRICE_MICROS,
        "dave": 0,
    }
    assert (await house.bill()).micros == 3 * PRICE_MICROS


async def test_private_tenants_do_not_join_each_others_flights(open_house: OpenHouse) -> None:
    private = {"budgets": [], "cache": "private"}
    house = await open_house(tenants={"ann": private, "bob": private})
    keys = [house.key, await house.new_key("bob")]
    await house.hold()
    waiting = [asyncio.create_task(house.make(key=key)) for key in keys]
    await house.until_pending(2)
    await house.let_go()

    assert [(await each).cache for each in waiting] == ["fwd=miss; stored"] * 2
    assert len((await house.bill()).jobs) == 2
