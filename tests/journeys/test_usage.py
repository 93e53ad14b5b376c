"""Who has used how much, as an administrator and the operator of the command ask it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from decimal import Decimal
from typing import Any

from gateway.accounting.focus import COLUMNS
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, KeyTerms, Role
from gateway.domain.window import Window
from tests.journeys.conftest import OpenHouse
from tests.journeys.program import Ended, run
from tests.journeys.running import MODEL, PRICE_MICROS, Answer, House, video

ORGANISATION: dict[str, Any] = {
    "acme": {"budgets": [{"limit_usd": 1, "per": "day", "zone": "Europe/Berlin"}]},
    "film": {"parent": "acme", "budgets": [{"limit_usd": 0.02, "per": "day"}]},
    "paint": {"parent": "acme"},
    "zenith": {"budgets": [{"limit_usd": 5, "rolling": "30d"}]},
}
FRACTION = 0.3


async def _opened(open_house: OpenHouse, **settings: Any) -> House:
    house = await open_house(tenants=ORGANISATION, settings=settings)
    house.insists = False
    return house


async def _asks(house: House, query: str = "", **options: Any) -> Answer:
    key = await house.gateway.keys.create("acme", "of an admin", terms=KeyTerms(role=Role.ADMIN))
    house.secrets.add(key)
    return await house.get(f"{house.gateway.operations_url}/admin/usage{query}", key=key, **options)


async def _has(house: House, query: str = "") -> Any:
    answer = await _asks(house, query)
    assert answer.status == 200, answer.body
    return answer.json


async def _command(house: House, *arguments: str) -> Ended:
    return await run("usage", "--config", house.config, *arguments)


async def _one_pays_and_others_join(house: House, *joining: str) -> dict[str, str]:
    """Who has paid is film; answers with the keys."""
    keys = {tenant: await house.new_key(tenant) for tenant in ("film", "paint", "zenith")}
    await house.hold()
    first = asyncio.create_task(house.make(key=keys["film"]))
    await house.until_pending(1)
    others = [asyncio.create_task(house.make(key=keys[tenant])) for tenant in joining]
    await house.until_pending(1 + len(joining))
    await house.let_go()
    for answer in (await first, *[await other for other in others]):
        assert answer.status == 200
    await house.until_pending(0)
    return keys


async def test_what_is_reported_is_what_was_bought_hit_and_joined(open_house: OpenHouse) -> None:
    house = await _opened(open_house)
    keys = await _one_pays_and_others_join(house, "zenith")
    for _ in range(3):
        assert (await house.make(key=keys["paint"])).cache == "hit"
    report = await _has(house, "?by=team,model")

    lines = {line["team"]: line for line in report["lines"]}
    assert {line["model"] for line in report["lines"]} == {MODEL}
    assert {team: (line["spent_micros"], line["misses"]) for team, line in lines.items()} == {
        "acme/film": (PRICE_MICROS, 1),
        "acme/paint": (0, 0),
        "zenith": (0, 0),
    }
    assert (lines["acme/paint"]["hits"], lines["acme/paint"]["saved_by_hits_micros"]) == (3, 3 * PRICE_MICROS)
    assert (lines["zenith"]["collapsed"], lines["zenith"]["saved_by_joining_micros"]) == (1, PRICE_MICROS)
    # `first` is the default, and hits cost nothing.
    assert report["total"]["charged_micros"] == report["total"]["credited_micros"] == 0
    assert report["total"]["net_micros"] == (await house.bill()).micros == PRICE_MICROS


async def test_who_joined_owes_a_share_and_who_hits_a_fraction_and_budgets_see_neither(
    open_house: OpenHouse,
) -> None:
    house = await _opened(open_house, **{"chargeback.payers": "split", "chargeback.hit_price": FRACTION})
    keys = await _one_pays_and_others_join(house, "zenith", "paint", "film", "zenith")
    share, hit = PRICE_MICROS // 3, PRICE_MICROS * 3 // 10
    for tenant in ("paint", "film", "paint"):
        assert (await house.make(key=keys[tenant])).cache == "hit"
    report = await _has(house, "?by=organisation,team")

    owed = {line["team"]: (line["charged_micros"], line["credited_micros"]) for line in report["lines"]}
    assert owed == {
        "acme/film": (0, 2 * share + 2 * hit),
        "acme/paint": (share + 2 * hit, 0),
        "zenith": (share, 0),
    }
    assert report["total"]["net_micros"] == PRICE_MICROS
    (credits_of_film, credits_of_zenith) = [
        (await house.get("/v1/get-user-credits", key=keys[tenant])).json["credits"]
        for tenant in ("film", "zenith")
    ]
    assert (credits_of_film, credits_of_zenith) == (0.016, 5.0)


async def test_what_hits_cost_outlives_a_restart_and_a_move_leaves_what_was_spent_where_it_was(
    open_house: OpenHouse,
) -> None:
    house = await _opened(open_house, **{"chargeback.hit_price": FRACTION})
    keys = await _one_pays_and_others_join(house)
    for _ in range(4):
        assert (await house.make(key=keys["zenith"])).cache == "hit"
    house.declare(ORGANISATION | {"film": {**ORGANISATION["film"], "parent": "zenith"}})
    await house.restart()
    assert (await house.make(video(prompt="another fox"), key=keys["film"])).status == 200
    report = await _has(house, "?by=organisation&tenant=film")

    credited = 4 * (PRICE_MICROS * 3 // 10)
    assert [
        (line["organisation"], line["spent_micros"], line["credited_micros"]) for line in report["lines"]
    ] == [("acme", PRICE_MICROS, credited), ("zenith", PRICE_MICROS, 0)]
    assert report["total"]["hits"] == 0


async def test_without_a_grouping_every_budget_is_there_with_when_it_runs_out(
    open_house: OpenHouse,
) -> None:
    house = await _opened(open_house)
    keys = await _one_pays_and_others_join(house)
    for number in range(3):
        assert (await house.make(video(prompt=f"fox {number} in the snow"), key=keys["film"])).status == 200
    report = await _has(house, "?tenant=acme")

    assert "lines" not in report
    budgets = {budget["of"]: budget for budget in report["budgets"]}
    assert list(budgets) == ["acme", "film"]
    assert budgets["film"]["remaining_micros"] == 20_000 - 4 * PRICE_MICROS
    assert budgets["film"]["spent_micros"] == budgets["acme"]["spent_micros"] == 4 * PRICE_MICROS
    assert (await _has(house, "?tenant=zenith"))["budgets"][0]["runs_out_at"] is None
    assert (await house.make(video(prompt="the last fox there is"), key=keys["film"])).status == 200
    used_up = {budget["of"]: budget for budget in (await _has(house))["budgets"]}
    assert used_up["film"]["remaining_micros"] == 0
    assert used_up["film"]["runs_out_at"] is not None
    assert {"acme", "film", "zenith"} <= set(used_up)


async def test_budgets_are_listed_behind_those_above_them_and_keys_behind_their_tenant(
    open_house: OpenHouse,
) -> None:
    a_day = [{"limit_usd": 1, "per": "day"}]
    house = await open_house(
        tenants={"zenith": {"budgets": a_day}, "art": {"parent": "zenith", "budgets": a_day}}
    )
    terms = KeyTerms(budgets=(Budget(Money.exactly(1), Window.DAY),))
    key = await house.gateway.keys.create("zenith", "of a budget", terms=terms)
    key_id = (await house.gateway.keys.find_key(key)).id
    admin = await house.gateway.keys.create("art", "of an admin", terms=KeyTerms(role=Role.ADMIN))
    house.secrets |= {key, admin}
    report = (await house.get(f"{house.gateway.operations_url}/admin/usage", key=admin)).json

    assert [budget["of"] for budget in report["budgets"]] == ["zenith", f"zenith#{key_id}", "art"]


async def test_the_same_in_every_form_by_command_and_over_http(open_house: OpenHouse) -> None:
    house = await _opened(open_house, **{"chargeback.payers": "split"})
    await _one_pays_and_others_join(house, "zenith")
    as_json = await _has(house, "?by=key,day")
    as_csv = await _asks(house, "?by=key,day", headers={"Accept": "text/csv"})
    as_focus = await _asks(house, "?as=focus")
    printed, told, listed = await asyncio.gather(
        _command(house, "--by", "key,day", "--as", "json"),
        _command(house, "--by", "key,day", "--as", "csv"),
        _command(house),
    )

    assert as_csv.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert json.loads(printed.out) == as_json
    assert told.out == as_csv.body.decode()
    rows = list(csv.DictReader(io.StringIO(as_csv.body.decode())))
    assert [row["net_usd"] for row in rows] == [
        f"{Decimal(line['net_micros']) / 1_000_000:.6f}" for line in as_json["lines"]
    ]
    lines = list(csv.DictReader(io.StringIO(as_focus.body.decode())))
    assert list(lines[0]) == list(COLUMNS)
    assert sum(Decimal(line["BilledCost"]) for line in lines) == Decimal("0.004")
    categories = [(line["SubAccountId"], line["ChargeCategory"], line["BilledCost"]) for line in lines]
    assert sorted(categories) == [
        ("acme/film", "Adjustment", "-0.002000"),
        ("acme/film", "Usage", "0.004000"),
        ("zenith", "Adjustment", "0.002000"),
        ("zenith", "Usage", "0.000000"),
    ]
    assert "$0.004" in listed.out
    assert "rolling 30d" in listed.out


async def test_mistakes_are_told_by_their_field(open_house: OpenHouse) -> None:
    house = await _opened(open_house)
    for query, field in (
        ("?by=taem", "by"),
        ("?zon=UTC", "zon"),
        ("?to=2026-11-01&to=2026-11-02", "to"),
        ("?as=pdf", "as"),
        ("?as=focus&by=team", "by"),
    ):
        problems = (await _asks(house, query)).refused(400, "invalid_query")["problems"]
        assert [problem["field"] for problem in problems] == [field]
    (await _asks(house, "?tenant=flim")).refused(404, "tenant_not_found")
    ended = await _command(house, "--by", "taem")
    assert (ended.code, ended.out) == (1, "")
    assert "did you mean team?" in ended.err


async def test_the_callers_own_keys_see_no_report(open_house: OpenHouse) -> None:
    house = await _opened(open_house)
    for role in (Role.CALLER, Role.READER):
        key = await house.gateway.keys.create("film", role.value, terms=KeyTerms(role=role))
        house.secrets.add(key)
        answer = await house.get(f"{house.gateway.operations_url}/admin/usage", key=key)
        answer.refused(403, "key_forbidden")
    assert (await house.get("/admin/usage")).status in (404, 405)
