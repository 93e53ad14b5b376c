"""What a request would come to is said before it is asked for, and asking costs nothing."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from gateway.domain.money import Money
from gateway.domain.tenant import Budget, KeyTerms, Rate, Role
from gateway.domain.window import Window
from gateway.http.listening import listening
from tests.journeys.conftest import OpenHouse
from tests.journeys.program import run
from tests.journeys.running import MODEL, PRICE_MICROS, Answer, House, video

PAST_WHAT_IS_BELIEVED = 11.0
ENOUGH = 20
FLAT = "flux-schnell"
"""A model whose price does not depend on what is asked for."""


async def _ask(house: House, parameters: Any = None, *, model: str = MODEL, **options: Any) -> Answer:
    return await house.ask(
        "POST", f"/v1/{model}/quote", json=video() if parameters is None else parameters, **options
    )


async def _quote(house: House, parameters: Any = None, **options: Any) -> Any:
    answer = await _ask(house, parameters, **options)
    assert answer.status == 200, answer.body
    return answer.json


def _charging(house: House, usd: str) -> None:
    """From its next start on, the gateway's rule prices the smallest video so; the sandbox bills as ever."""
    file = house.models / f"{MODEL}.yaml"
    file.write_text(file.read_text().replace("minimum_usd: 0.004", f"minimum_usd: {usd}"))


async def test_a_miss_is_told_with_what_every_budget_is_afterwards_and_so_they_are(
    open_house: OpenHouse,
) -> None:
    budgets = [{"limit_usd": 1, "per": "day"}, {"limit_usd": 2, "rolling": "30d", "models": [FLAT]}]
    house = await open_house(
        tenants={
            "film": {"parent": "acme", "budgets": budgets},
            "acme": {"budgets": [{"limit_usd": 3, "per": "month"}], "max_usd_per_request": 2},
        }
    )
    told = await _quote(house)

    assert (told["outcome"], told["fits"]) == ("miss", True)
    assert told["price"]["held_micros"] == told["price"]["expected_micros"] == PRICE_MICROS
    assert told["evidence"] == {"purchases": 0, "since": None, "until": None}
    assert told["seconds"]["p50"] == told["seconds"]["p95"] > 0
    assert told["queue"] == {"place": 0, "waiting": 0}
    assert [(budget["of"], budget["per"]) for budget in told["budgets"]] == [
        ("film", "day"), ("film", "rolling 30d"), ("acme", "month"), ("acme", "request"),
    ]  # fmt: skip
    made = await house.make()
    assert made.headers["Cache-Status"].endswith(told["fingerprint"] + '"')
    after = {budget["name"]: budget["remaining_micros"] for budget in (await house.usage())["budgets"]}
    said = {budget["name"]: budget["remaining_after_micros"] for budget in told["budgets"]}
    assert said == after | {"request": 2_000_000}
    assert after["day"] == 1_000_000 - PRICE_MICROS


async def test_asking_leaves_no_trace_but_a_line_in_the_log(open_house: OpenHouse) -> None:
    house = await open_house()
    marks = house.directory / "var" / "marks"

    async def everything() -> Any:
        usage = await house.usage()
        usage.pop("as_of")
        metrics = await house.metrics()
        counted = {
            name: metrics.value(name)
            for name in ("gateway_requests_total", "gateway_reserved_usd", "gateway_saved_usd_total")
        }
        bill = await house.bill()
        return usage, counted, bill.all, await house.pending(), marks.read_bytes(), len(house.blob_files())

    await house.make()
    # What an answer does not wait for is done by then: remembering, concluding, counting.
    await house.restart()
    before = await everything()
    for parameters in (video(), video(seed=2), video(seed=-1)):
        for _ in range(3):
            await _quote(house, parameters)
    assert await everything() == before
    lines = [line for line in house.log_lines if line.get("route") == "/v1/{model}/quote"]
    assert len(lines) == 9
    assert {line["status"] for line in lines} == {200}


async def test_what_is_there_is_a_hit_that_needs_no_budget(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.004, "per": "total"}]}})
    await house.make()

    told = await _quote(house)

    assert (told["outcome"], told["fits"]) == ("hit", True)
    assert told["price"]["held_micros"] == told["price"]["expected_micros"] == 0
    assert told["price"]["rule_micros"] == PRICE_MICROS
    assert told["seconds"] == {"p50": 0, "p95": 0}
    (budget,) = told["budgets"]
    assert (budget["fits"], budget["remaining_after_micros"]) == (True, 0)


async def test_what_was_stored_and_is_forgotten_by_the_cache_is_a_hit_and_what_is_lost_a_miss(
    open_house: OpenHouse,
) -> None:
    house = await open_house()
    await house.make()
    await house.stop()
    for path in (house.directory / "var" / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    await house.start()

    assert (await _quote(house))["outcome"] == "hit"
    for path in house.blob_files():
        path.unlink()
    await house.restart()
    assert (await _quote(house))["outcome"] == "miss"


async def test_what_is_under_way_costs_whoever_joins_it_nothing_wherever_it_is_under_way(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.004, "per": "total"}]}})
    await house.hold()
    submitted = await house.submit()

    here = await _quote(house)
    async with house.beside() as other:
        there = (await house.ask("POST", f"{other.url}/v1/{MODEL}/quote", json=video())).json
    anew = await _quote(house, video(seed=2))
    house.clock.ahead_seconds = 5.0  # longer than it is expected to take
    later = await _quote(house)
    await house.let_go()
    await house.ended(submitted)

    for told in (here, there):
        assert (told["outcome"], told["fits"], told["price"]["held_micros"]) == ("in_flight", True, 0)
        assert told["queue"]["place"] == 0
    assert (later["outcome"], later["seconds"]) == ("in_flight", {"p50": 0, "p95": 0})
    assert anew["seconds"]["p50"] > 0
    assert (await _quote(house))["outcome"] == "hit"


@pytest.mark.parametrize(("on_unknown", "outcome"), [("wait", "in_flight"), ("buy_again", "miss")])
async def test_of_what_may_have_been_bought_a_quote_says_what_the_settings_would_do(
    open_house: OpenHouse, on_unknown: str, outcome: str
) -> None:
    house = await open_house(
        settings={"reconcile.on_unknown": on_unknown, "reconcile.interval_seconds": 3600, "reconcile.wait_seconds": 0.05}
    )  # fmt: skip
    await house.faults({"submit_dropped": {"count": 1}, "history_lag": {"seconds": 3600}})
    if on_unknown == "wait":
        (await house.make()).refused(504, "outcome_unknown")
    else:
        await house.submit()
        async with asyncio.timeout(30):
            while not (await house.metrics()).value("gateway_unknown_usd"):
                await asyncio.sleep(0.01)

    assert (await _quote(house))["outcome"] == outcome


async def test_something_new_each_time_is_bought_each_time_and_has_no_name_yet(house: House) -> None:
    first, second = [await _quote(house, video(seed=-1)) for _ in range(2)]

    assert first == second
    assert (first["outcome"], first["fingerprint"]) == ("bypass", None)
    assert first["price"]["held_micros"] == PRICE_MICROS


async def test_what_would_be_refused_for_its_price_does_not_fit_and_says_when_it_would(
    open_house: OpenHouse,
) -> None:
    budgets = [{"limit_usd": 0.005, "per": "day"}, {"limit_usd": 0.004, "rolling": "12h"}]
    house = await open_house(
        tenants={
            "film": {"parent": "acme", "budgets": budgets},
            "acme": {"budgets": [{"limit_usd": 0.009, "per": "month"}], "max_usd_per_request": 0.003},
        }
    )
    assert [budget["fits"] for budget in (await _quote(house))["budgets"]] == [True, True, True, False]
    house.declare(
        {
            "film": {"parent": "acme", "budgets": budgets},
            "acme": {"budgets": [{"limit_usd": 0.009, "per": "month"}]},
        }
    )
    await house.restart()
    await house.make()

    told = await _quote(house, video(seed=2))
    refusal = (await house.make(video(seed=2))).refused(406, "budget_exceeded")

    day, rolling, month = told["budgets"]
    assert not told["fits"]
    assert [day["fits"], rolling["fits"], month["fits"]] == [False, False, True]
    named = next(budget for budget in told["budgets"] if budget["name"] == refusal["budget"])
    assert (named["of"], named["resets_at"]) == (refusal["of"], refusal["resets_at"])
    assert rolling["resets_at"] is not None
    # Of what is the organisation's own, only what it leaves.
    assert month["remaining_after_micros"] == 9_000 - 2 * PRICE_MICROS
    assert {name for name in month if name.startswith(("limit", "spent", "reserved"))} == set()
    assert day["limit_micros"] == 5_000


async def test_a_budget_whose_days_are_over_has_nothing_left_wherever_that_is_told(
    open_house: OpenHouse,
) -> None:
    house = await open_house()
    await house.make(video(seed=1))
    ended = (datetime.fromtimestamp(house.clock(), UTC) - timedelta(days=2)).date().isoformat()
    house.declare(
        {"demo": {"budgets": [{"limit_usd": 5, "per": "total", "last_day": ended, "name": "pilot"}]}}
    )
    await house.restart()

    told = await _quote(house)

    (budget,) = told["budgets"]
    assert (told["fits"], budget["name"], budget["remaining_micros"]) == (False, "pilot", 0)
    (await house.make()).refused(406, "budget_exceeded")
    assert (await house.get("/v1/get-user-credits")).json["credits"] == 0
    # By the long way at first, then from memory.
    for _ in range(3):
        assert (await house.make(video(seed=1))).headers["x-remaining-credits"] == "0"


async def test_whoever_may_look_may_ask_as_often_as_it_likes(house: House) -> None:
    reader = await house.gateway.keys.create("demo", "a reader", terms=KeyTerms(role=Role.READER))
    rated = await house.gateway.keys.create("demo", "rated", terms=KeyTerms(rate=Rate(1, 3600, 1)))
    own = KeyTerms(budgets=(Budget(Money(3_000), Window.TOTAL),))
    poor = await house.gateway.keys.create("demo", "a poor one", terms=own)
    house.secrets |= {reader, rated, poor}

    for key in (reader, rated, rated, rated):
        assert (await _quote(house, key=key))["fits"]
    told = await _quote(house, key=poor)
    assert not told["fits"]
    assert told["budgets"][0]["of"].startswith("demo#")
    assert (await house.make(key=rated)).status == 200


async def test_what_a_generation_would_be_refused_for_a_quote_is_refused_for(house: House) -> None:
    narrow = await house.gateway.keys.create("demo", "narrow", terms=KeyTerms(models=frozenset({FLAT})))
    house.secrets.add(narrow)

    (await _ask(house, key="")).refused(401, "invalid_api_key")
    (await _ask(house, key=narrow)).refused(403, "model_forbidden")
    (await _ask(house, model="ltx-2-19b-t2w")).refused(404, "model_not_found")
    (await _ask(house, video(width=1))).refused(400, "invalid_parameters")
    unpriced = {"audio_url": "https://example.com/a.mp3", "model_id": "scribe_v1"}
    (await _ask(house, unpriced, model="eleven-labs-transcript")).refused(403, "price_unknown")
    path = f"/v1/{MODEL}/quote"
    (await house.ask("POST", path, data=b"[1]", headers={"Content-Type": "application/json"})).refused(
        400, "malformed_request"
    )
    (await house.ask("POST", path, data=b"{}", headers={"Content-Type": "text/plain"})).refused(
        415, "unsupported_media_type"
    )
    (await house.get(path)).refused(405, "method_not_allowed")


async def test_a_place_in_the_line_is_told_where_there_is_one(open_house: OpenHouse) -> None:
    house = await open_house(
        tenants={"demo": {"budgets": []}, "other": {"budgets": []}}, settings={"upstream.slots": 1}
    )
    other = await house.new_key("other")
    await house.hold()
    waiting = [await house.submit(video(seed=seed)) for seed in range(4)]

    mine, theirs = await _quote(house, video(seed=9)), await _quote(house, video(seed=9), key=other)
    joined = await _quote(house, video(seed=3))
    await house.let_go()
    for submitted in waiting:
        await house.ended(submitted)

    assert mine["queue"] == {"place": 4, "waiting": 3}
    # One of the three goes first: they have waited for longer, and it is their turn.
    assert theirs["queue"] == {"place": 2, "waiting": 3}
    assert (joined["outcome"], joined["queue"]["place"]) == ("in_flight", 0)


async def test_the_hold_is_learned_from_the_bills_and_is_not_below_the_rule_until_there_are_enough(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.5, "per": "total"}]}})
    await house.stop()
    _charging(house, "0.1")
    await house.start()

    for seed in range(ENOUGH):
        told = await _quote(house, video(seed=seed))
        assert told["price"]["held_micros"] == told["price"]["rule_micros"] == 100_000
        assert told["price"]["expected_micros"] == (100_000 if seed < 5 else PRICE_MICROS)
        assert told["evidence"]["purchases"] == seed
        assert (await house.make(video(seed=seed))).status == 200
        house.clock.ahead_seconds += PAST_WHAT_IS_BELIEVED
    told = await _quote(house, video(seed=99))

    assert told["price"]["held_micros"] == told["price"]["expected_micros"] == PRICE_MICROS
    assert told["evidence"]["since"] <= told["evidence"]["until"]
    # What is left would do for four by the rule.
    await house.hold()
    submitted = [await house.submit(video(seed=100 + number)) for number in range(6)]
    assert {answer.status for answer in submitted} == {200}
    assert (await house.usage())["reserved_micros"] == 6 * PRICE_MICROS
    await house.let_go()
    for each in submitted:
        await house.ended(each)
    assert (await house.usage())["spent_micros"] == (ENOUGH + 6) * PRICE_MICROS == (await house.bill()).micros


async def test_what_is_dearer_than_the_rule_is_held_dearer_from_the_first_bill_on(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.01, "per": "total"}]}})
    await house.stop()
    _charging(house, "0.003")
    await house.start()
    await house.make(video(seed=1))
    house.clock.ahead_seconds += PAST_WHAT_IS_BELIEVED
    await house.make(video(seed=2))

    refusal = (await house.make(video(seed=3))).refused(406, "budget_exceeded")

    assert refusal["price_usd"] == PRICE_MICROS / 1e6
    warned = [line for line in house.log_lines if line["event"] == "charged more than was held"]
    assert [line["held_usd"] for line in warned] == [0.003]
    assert (await house.usage())["spent_micros"] == 2 * PRICE_MICROS


async def test_where_the_rule_is_to_be_held_it_is_held_and_what_is_expected_is_told_all_the_same(
    open_house: OpenHouse,
) -> None:
    house = await open_house(settings={"prices.hold": "rule"})
    await house.stop()
    _charging(house, "0.003")
    await house.start()
    for seed in range(5):
        await house.make(video(seed=seed))
    house.clock.ahead_seconds += PAST_WHAT_IS_BELIEVED

    told = await _quote(house, video(seed=99))
    await house.hold()
    submitted = await house.submit(video(seed=100))

    assert told["price"]["held_micros"] == 3_000 == (await house.usage())["reserved_micros"]
    assert told["price"]["expected_micros"] == PRICE_MICROS
    await house.let_go()
    await house.ended(submitted)


async def test_nothing_is_learned_from_what_the_upstream_did_not_price_nor_from_another_shape(
    open_house: OpenHouse,
) -> None:
    house = await open_house()
    await house.faults({"cost_missing": {"count": 1}})
    await house.make(video(seed=1))
    await house.make(video(seed=2, num_frames=17))
    await house.make(video(seed=3))
    house.clock.ahead_seconds += PAST_WHAT_IS_BELIEVED

    assert (await _quote(house, video(seed=9)))["evidence"]["purchases"] == 1
    assert (await _quote(house, video(seed=9, num_frames=17)))["evidence"]["purchases"] == 1
    assert (await _quote(house, video(seed=9, num_frames=25)))["evidence"]["purchases"] == 0
    assert (await _quote(house, video(seed=9, prompt="another")))["evidence"]["purchases"] == 1


async def test_a_model_says_what_it_takes_what_it_costs_and_what_it_cost_lately(house: House) -> None:
    (listed,) = [each for each in (await house.get("/v1/models")).json["models"] if each["name"] == MODEL]
    told = (await house.get(f"/v1/models/{MODEL}")).json

    assert listed.items() <= told.items()
    assert told["defaults"]["num_frames"] == told["schema"]["properties"]["num_frames"]["default"]
    assert "prompt" not in told["defaults"]
    assert told["price"].startswith("$0.416 at ")
    assert told["lately"] is None
    for seed in range(5):
        await house.make(video(seed=seed))
    lately = (await house.get(f"/v1/models/{MODEL}")).json["lately"]
    assert (lately["purchases"], lately["cost_usd"]) == (5, {"p50": 0.004, "p95": 0.004})
    assert len(lately["since"]) == len("2026-11-23")

    narrow = await house.gateway.keys.create("demo", "narrow", terms=KeyTerms(models=frozenset({FLAT})))
    house.secrets.add(narrow)
    (await house.get(f"/v1/models/{MODEL}", key=narrow)).refused(403, "model_forbidden")
    assert (await house.get(f"/v1/models/{FLAT}", key=narrow)).status == 200
    (await house.get("/v1/models/ltx-2-19b-t2w")).refused(404, "model_not_found")
    (await house.get(f"/v1/models/{MODEL}", key="")).refused(401, "invalid_api_key")


async def test_the_command_shows_the_gateways_answer_and_says_what_is_wrong(house: House) -> None:
    def asking(*more: str, key: str = house.key, url: str = house.url) -> Any:
        return run("quote", MODEL, json.dumps(video()), "--url", url, *more, GATEWAY_API_KEY=key)

    shown, raw, keyless, wrong, torn, nowhere = await asyncio.gather(
        asking(),
        asking("--json"),
        asking(key=""),
        asking(key="gwk_no"),
        asking(key="gwk_to\nrn"),
        asking(url="http://127.0.0.1:1"),
    )

    assert (shown.code, shown.err) == (0, "")
    assert f"{MODEL}: miss" in shown.out
    assert "$0.004" in shown.out
    assert "month" in shown.out
    assert json.loads(raw.out) == await _quote(house)
    assert [each.code for each in (keyless, wrong, torn, nowhere)] == [1, 1, 1, 1]
    assert "GATEWAY_API_KEY" in keyless.err
    assert "key" in wrong.err
    assert "GATEWAY_API_KEY is no key" in torn.err
    assert "gwk_" not in torn.err
    assert "--url" in nowhere.err


async def test_the_command_reads_standard_input_and_takes_its_key_nowhere_else(house: House) -> None:
    came: list[str] = []

    async def move(_: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    async def elsewhere(request: web.Request) -> web.Response:
        came.append(request.headers.get("x-api-key", ""))
        return web.json_response({})

    moved = web.Application()
    moved.router.add_post("/v1/{model}/quote", move)
    moved.router.add_get("/elsewhere", elsewhere)
    async with listening(moved, "127.0.0.1", 0, 75.0) as url:
        told = await run("quote", MODEL, json.dumps(video()), "--url", url, GATEWAY_API_KEY=house.key)
    empty = await run("quote", MODEL, "-", "--url", house.url + "/", GATEWAY_API_KEY=house.key)

    assert (told.code, came) == (1, [])
    assert "302" in told.err
    assert (empty.code, "not JSON" in empty.err) == (1, True)
