"""/metrics, /healthz and /readyz; what is logged, and what never is."""

from __future__ import annotations

import asyncio
from datetime import datetime

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import MODEL, PROMPT, House, video

FAMILIES = {
    "gateway_requests_total": {"tenant", "model", "outcome"},
    "gateway_request_seconds_bucket": {"model", "outcome", "le"},
    "gateway_overhead_seconds_bucket": {"outcome", "le"},
    "gateway_upstream_seconds_bucket": {"model", "outcome", "le"},
    "gateway_upstream_requests_total": {"operation", "status"},
    "gateway_spend_usd_total": {"tenant", "model"},
    "gateway_saved_usd_total": {"tenant", "model", "by"},
    "gateway_reserved_usd": {"tenant"},
    "gateway_budget_limit_usd": {"tenant", "window"},
    "gateway_budget_remaining_usd": {"tenant", "window"},
    "gateway_budget_runs_out_timestamp_seconds": {"tenant", "window"},
    "gateway_alerts_total": {"tenant", "window", "threshold"},
    "gateway_cache_bytes": set(),
    "gateway_cache_entries": set(),
    "gateway_cache_evictions_total": set(),
    "gateway_cache_corrupt_total": {"kind"},
    "gateway_in_flight_generations": set(),
}


async def test_every_promised_metric_is_exposed_with_its_labels(open_house: OpenHouse) -> None:
    budgets = [{"limit_usd": 0.004, "per": "month", "alert_at": [100]}]
    house = await open_house(
        tenants={"demo": {"budgets": budgets}}, settings={"alerts.interval_seconds": 0.05}
    )
    await house.make()
    await house.make()
    async with asyncio.timeout(30):
        while not (metrics := await house.metrics()).has("gateway_alerts_total"):
            await asyncio.sleep(0.01)

    for name, labels in FAMILIES.items():
        assert metrics.labels(name) == {frozenset(labels)}, name
        assert f"# HELP {name.removesuffix('_total').removesuffix('_bucket')}" in metrics.text
    # A generation may take minutes: the buckets go to 600 s and beyond.
    for limit in ("600.0", "1800.0"):
        assert metrics.has("gateway_upstream_seconds_bucket", model=MODEL, le=limit)


async def test_money_and_answers_show_right_after_a_miss_a_hit_and_a_join(house: House) -> None:
    house.insists = False  # each answer counts
    size = len((await house.make()).body)
    while (after_miss := await house.metrics()).value("gateway_cache_entries") < 1:
        await asyncio.sleep(0)  # the cache is written behind the answer
    await house.make()
    after_hit = await house.metrics()
    await house.until_pending(0)
    await house.hold()
    waiting = [asyncio.create_task(house.make(video(seed=2))) for _ in range(3)]
    await house.until_pending(3)
    in_flight = await house.metrics()
    await house.let_go()
    for each in waiting:
        await each
    after_join = await house.metrics()

    place = {"tenant": "demo", "model": MODEL}
    assert after_miss.value("gateway_spend_usd_total", **place) == 0.004
    assert after_miss.value("gateway_budget_limit_usd", tenant="demo", window="month") == 25
    assert after_miss.value("gateway_budget_remaining_usd", tenant="demo", window="month") == 24.996
    assert after_miss.value("gateway_requests_total", outcome="miss", **place) == 1
    assert after_miss.value("gateway_saved_usd_total", **place) == 0
    assert after_miss.value("gateway_cache_entries") == 1
    assert after_miss.value("gateway_cache_bytes") == size
    assert after_miss.value("gateway_upstream_requests_total", operation="submit", status="200") == 1
    assert after_miss.value("gateway_upstream_seconds_count", model=MODEL, outcome="completed") == 1

    assert after_hit.value("gateway_spend_usd_total", **place) == 0.004
    assert after_hit.value("gateway_saved_usd_total", by="hit", **place) == 0.004
    assert after_hit.value("gateway_requests_total", outcome="hit", **place) == 1
    assert after_hit.value("gateway_request_seconds_count", model=MODEL, outcome="hit") == 1
    assert after_hit.value("gateway_overhead_seconds_count", outcome="hit") == 1

    assert in_flight.value("gateway_in_flight_generations") == 1
    assert in_flight.value("gateway_reserved_usd", tenant="demo") == 0.004
    assert in_flight.value("gateway_budget_remaining_usd", tenant="demo", window="month") == 24.992

    assert after_join.value("gateway_spend_usd_total", **place) == 0.008
    assert after_join.value("gateway_saved_usd_total", by="collapsed", **place) == 0.008
    assert after_join.value("gateway_requests_total", outcome="collapsed", **place) == 2
    assert after_join.value("gateway_reserved_usd", tenant="demo") == 0
    assert after_join.value("gateway_in_flight_generations") == 0


async def test_it_is_told_when_a_budget_runs_out_and_nothing_where_that_is_not_in_sight(
    open_house: OpenHouse,
) -> None:
    tenants = {
        "demo": {"budgets": [{"limit_usd": 0.012, "per": "total"}, {"limit_usd": 10, "per": "day"}]},
        "idle": {"budgets": [{"limit_usd": 1, "per": "total"}]},
    }
    house = await open_house(tenants=tenants)
    before = await house.metrics()
    await house.make(video(seed=1))
    began_at = house.clock()
    metrics = await house.metrics()
    name = "gateway_budget_runs_out_timestamp_seconds"

    assert not before.has(name)
    # $0.004 in a day, and $0.008 are left.
    assert metrics.of(name) == [{"tenant": "demo", "window": "total"}]
    told_at = metrics.value(name) - 2 * 24 * 3600
    (usage,) = [each for each in (await house.usage())["budgets"] if each["name"] == "total"]
    told_later_at = datetime.fromisoformat(usage["runs_out_at"]).timestamp() - 2 * 24 * 3600
    assert int(began_at) <= told_at <= told_later_at <= house.clock()


async def test_the_budgets_of_a_thousand_tenants_are_told(open_house: OpenHouse) -> None:
    budgets = [{"limit_usd": 25, "per": "month"}, {"limit_usd": 2, "per": "day"}]
    house = await open_house(tenants={f"tenant-{n}": {"budgets": budgets} for n in range(1000)})
    await house.make()
    metrics = await house.metrics()

    assert metrics.value("gateway_budget_limit_usd") == 27_000
    assert metrics.value("gateway_budget_remaining_usd", tenant="tenant-0", window="day") == 1.996
    assert metrics.value("gateway_budget_remaining_usd", tenant="tenant-999", window="day") == 2
    assert len(metrics.of("gateway_reserved_usd")) == 1000


async def test_what_was_spent_and_saved_is_still_there_after_a_restart(house: House) -> None:
    house.insists = False  # each answer counts
    await house.make()
    await house.make()
    await house.restart()
    metrics = await house.metrics()

    assert metrics.value("gateway_spend_usd_total") == metrics.value("gateway_saved_usd_total") == 0.004
    assert metrics.value("gateway_cache_entries") == 1
    assert metrics.value("gateway_cache_bytes") > 0


async def test_requests_that_were_refused_are_counted_without_labels_that_callers_make_up(
    house: House,
) -> None:
    await house.make({"width": 1})
    await house.make(model="made-up-by-a-caller")
    await house.make(key="gwk_madeupbyacaller")
    metrics = await house.metrics()

    assert metrics.value("gateway_requests_total", outcome="refused", model=MODEL) == 1
    assert "made" not in metrics.text.replace("Generations being made now", "").replace("requests made", "")


async def test_it_is_alive_and_ready(house: House) -> None:
    operations = house.gateway.operations_url
    health = await house.get(f"{operations}/healthz", key="")
    ready = await house.get(f"{operations}/readyz", key="")

    assert (health.status, health.json) == (200, {"status": "ok"})
    assert (ready.status, ready.json) == (200, {"status": "ready"})


async def test_while_it_drains_it_is_not_ready_takes_nothing_new_and_lets_the_rest_land(
    open_house: OpenHouse,
) -> None:
    house = await open_house(settings={"shutdown.grace_seconds": 30})
    operations = house.gateway.operations_url
    made = await house.make()
    await house.until_pending(0)
    await house.hold()
    waiting = asyncio.create_task(house.make(video(seed=2)))
    await house.until_pending(1)
    draining = asyncio.create_task(house.gateway.drain())
    async with asyncio.timeout(30):
        while (await house.get(f"{operations}/readyz", key="")).status != 503:
            await asyncio.sleep(0.01)

    assert (await house.get(f"{operations}/healthz", key="")).status == 200
    refused = await house.make(video(seed=3))
    refused.refused(503, "shutting_down")
    assert int(refused.headers["Retry-After"]) >= 1
    hit = await house.make()
    assert (hit.cache, hit.body) == ("hit", made.body)
    await house.let_go()
    landed = await waiting
    assert (landed.status, landed.cache) == (200, "fwd=miss; stored")
    await draining
    assert (await house.usage())["reserved_micros"] == 0


async def test_what_does_not_land_in_time_is_told_so_and_is_there_after_the_restart(house: House) -> None:
    await house.hold()
    waiting = asyncio.create_task(house.make())
    await house.until_billed(1)
    await house.stop()
    told = await waiting
    told.refused(503, "shutting_down")
    await house.let_go()
    await house.start()
    made = await house.make()

    assert (made.status, made.headers["x-cost"]) == (200, "0")
    assert len((await house.bill()).jobs) == 1
    record = await house.get(f"/v2/requests/{told.headers['x-request-id']}")
    assert (record.json["status"], record.json["metrics"]["cost"]) == ("COMPLETED", 0.004)


async def test_a_line_is_logged_for_each_request_and_has_neither_prompt_nor_key(house: House) -> None:
    made = await house.make()
    await house.make(key=house.key[:-1])
    await house.make({"prompt": PROMPT, "seed": PROMPT})
    await house.get(f"/v2/requests/{house.key}")
    await house.get(f"/{house.key}?key={house.key}", key="")
    await house.ask("POST", f"/v1/{house.key}", json=video())
    await house.faults({"failed": {"count": 1, "error": f"cannot make {PROMPT} for SG_0123456789abcdef"}})
    failed = await house.make(video(seed=2))
    await house.submit(video(seed=3))
    await house.until_pending(0)

    lines = [line for line in house.log_lines if line["event"] == "request"]
    assert len(lines) == 8
    (line,) = [line for line in lines if line["request_id"] == made.headers["x-request-id"]]
    assert (line["tenant"], line["model"], line["outcome"]) == ("demo", MODEL, "miss")
    assert (line["status"], line["cost_usd"], line["method"]) == (200, "0.004", "POST")
    assert line["route"] == "/v1/{model}"
    assert line["fingerprint"] in made.headers["Cache-Status"]
    assert {"seconds", "upstream_seconds", "timestamp", "level"} <= line.keys()
    said, exposed = house.log.getvalue(), (await house.metrics()).text
    for secret in (house.key, house.key[:-1], "SG_0123456789abcdef", "zebrafinch"):
        assert secret not in said
        assert secret not in exposed
    assert "SG_0123" not in failed.body.decode()
