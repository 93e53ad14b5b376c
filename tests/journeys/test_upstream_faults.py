"""What the upstream does wrong, and what that means for the caller and for the money."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import PRICE_MICROS, House, video


async def _nothing_was_bought(house: House) -> None:
    usage = await house.usage()
    assert (usage["spent_micros"], usage["reserved_micros"]) == (0, 0)
    assert (await house.bill()).jobs == []


async def test_a_rate_limit_is_told_with_when_to_come_back_and_nothing_is_bought(house: House) -> None:
    await house.faults({"submit_rate_limited": {"reset_seconds": 30}})
    answer = await house.make()

    answer.refused(429, "upstream_rate_limited")
    assert 20 <= int(answer.headers["Retry-After"]) <= 30
    await _nothing_was_bought(house)


async def test_a_short_rate_limit_is_waited_out(open_house: OpenHouse) -> None:
    house = await open_house()
    await house.faults({"submit_rate_limited": {"reset_seconds": 0, "count": 1}})

    assert (await house.make()).status == 200
    metrics = await house.metrics()
    assert metrics.value("gateway_upstream_requests_total", operation="submit", status="429") == 1
    assert metrics.value("gateway_upstream_requests_total", operation="submit", status="200") == 1
    assert len((await house.bill()).jobs) == 1


async def test_a_short_rate_limit_without_end_is_told_after_some_tries(open_house: OpenHouse) -> None:
    house = await open_house(settings={"upstream.submit_attempts": 2})
    await house.faults({"submit_rate_limited": {"reset_seconds": 0}})
    answer = await house.make()

    answer.refused(429, "upstream_rate_limited")
    assert "Retry-After" in answer.headers
    tried = (await house.metrics()).value("gateway_upstream_requests_total", operation="submit", status="429")
    assert tried == 2
    await _nothing_was_bought(house)


SILENCE = [{"submit_dropped": {"count": 1}}] + [
    {"submit_error": {"count": 1, "status": status}} for status in (502, 504)
]


@pytest.mark.parametrize("fault", SILENCE, ids=str)
async def test_what_was_sent_into_silence_is_found_in_the_history_and_delivered_to_whoever_waits(
    house: House, fault: dict[str, Any]
) -> None:
    await house.faults(fault)

    answer = await house.make()

    assert (answer.status, answer.headers["x-cost"]) == (200, "0.004")
    assert (await house.make()).cache == "hit"
    bill, usage = await house.until_billed(1), await house.usage()
    assert (len(bill.jobs), bill.micros) == (1, PRICE_MICROS)
    assert (usage["spent_micros"], usage["reserved_micros"]) == (PRICE_MICROS, 0)


@pytest.mark.parametrize("fault", SILENCE, ids=str)
async def test_while_nobody_can_say_whether_it_was_bought_it_is_504_and_never_bought_again(
    house: House, fault: dict[str, Any]
) -> None:
    await house.restart(reconcile__wait_seconds=0.05)
    await house.faults({**fault, "history_lag": {"seconds": 3600}})
    first = await house.make()
    assert "may have been bought" in first.refused(504, "outcome_unknown")["error"]
    assert "Retry-After" not in first.headers

    # It was bought. Whatever comes of asking again, another purchase does not.
    assert (await house.make()).status == 504
    submitted = await house.submit()
    await house.restart()
    assert (await house.make()).status == 504
    bill, usage = await house.until_billed(1), await house.usage()
    assert (len(bill.jobs), bill.micros) == (1, PRICE_MICROS)
    assert (usage["spent_micros"], usage["reserved_micros"]) == (0, PRICE_MICROS)
    # Other requests are not held up by it.
    await house.faults({"history_lag": {}})
    assert (await house.make(video(seed=2))).status == 200
    pending = await house.get(f"/v2/requests/{submitted.json['request_id']}/status")
    assert pending.json["status"] in {"QUEUED", "PROCESSING"}


async def test_what_the_history_does_not_show_in_time_was_not_bought_and_its_money_goes_back(
    house: House,
) -> None:
    await house.restart(reconcile__wait_seconds=0.05, reconcile__history_lag_seconds=60)
    await house.faults({"submit_dropped": {"count": 1}, "history_lag": {"seconds": 1e9}})
    assert (await house.make()).status == 504

    await house.faults({"history_lag": {}})
    house.clock.ahead_seconds += 61
    async with asyncio.timeout(10):
        while (await house.usage())["reserved_micros"]:
            await asyncio.sleep(0.01)

    assert (await house.usage())["spent_micros"] == 0


@pytest.mark.parametrize("status", [500, 503])
async def test_a_refusal_that_is_documented_as_unbilled_is_tried_again(house: House, status: int) -> None:
    await house.faults({"submit_refused": {"count": 1, "status": status}})

    assert (await house.make()).status == 200
    assert len((await house.bill()).jobs) == 1


async def test_an_upstream_that_is_out_of_order_is_502_and_nothing_is_bought(open_house: OpenHouse) -> None:
    house = await open_house(settings={"upstream.submit_attempts": 1})
    await house.faults({"submit_refused": {"status": 503}})
    answer = await house.make()

    answer.refused(502, "upstream_unreachable")
    assert "Retry-After" in answer.headers
    await _nothing_was_bought(house)


async def test_an_upstream_that_is_not_there_is_502_and_what_is_cached_is_served_all_the_same(
    open_house: OpenHouse,
) -> None:
    house = await open_house(settings={"upstream.submit_attempts": 1})
    made = await house.make()
    await house.stop_sandbox()

    answer = await house.make(video(seed=2))
    answer.refused(502, "upstream_unreachable")
    assert house.sandbox_url.rpartition(":")[2] not in answer.body.decode()
    hit = await house.make()
    assert (hit.cache, hit.body) == ("hit", made.body)
    assert (await house.usage())["reserved_micros"] == 0


@pytest.mark.parametrize(
    "fault",
    [
        {"insufficient_credits": {"status": 402}},
        {"insufficient_credits": {"status": 406}},
        {"model_retired": {"probability": 1}},
    ],
    ids=str,
)
async def test_what_only_the_operator_can_mend_is_502_without_the_accounts_figures(
    house: House, fault: dict[str, Any]
) -> None:
    await house.faults(fault)
    answer = await house.make()

    assert "operator" in answer.refused(502, "upstream_unusable")["error"]
    assert "1000" not in answer.body.decode()
    assert "Retry-After" not in answer.headers
    await _nothing_was_bought(house)


async def test_a_wrong_key_for_the_upstream_is_502_and_is_not_told(open_house: OpenHouse) -> None:
    wrong = "SG_00zebrafinch00"
    house = await open_house(environment={"UPSTREAM_KEY": wrong})
    house.secrets.add(wrong)
    await house.restart(
        upstream__kind="segmind",
        upstream__base_url=house.sandbox_url,
        upstream__api_key_env="UPSTREAM_KEY",
        upstream__result_hosts=["127.0.0.1"],
    )
    answer = await house.make()

    answer.refused(502, "upstream_unusable")
    assert "SG_" not in answer.body.decode()
    assert "zebrafinch" not in (await house.metrics()).text
    await _nothing_was_bought(house)


async def test_the_sandbox_is_reached_as_segmind_is_with_a_key_from_the_environment(
    open_house: OpenHouse,
) -> None:
    house = await open_house(environment={"SEGMIND_API_KEY": "SG_0123456789abcdef"})
    await house.restart(
        upstream__kind="segmind",
        upstream__base_url=house.sandbox_url,
        upstream__result_hosts=["127.0.0.1"],
        upstream__poll_first_seconds=0.01,
    )

    assert (await house.make()).status == 200


@pytest.mark.parametrize(
    "fault",
    [
        {"poll_error": {"count": 5, "status": 502}},
        {"poll_error": {"count": 5, "status": 504}},
        {"poll_rate_limited": {"count": 2, "reset_seconds": 0}},
        {"unknown_status": {"count": 3}},
        {"result_error": {"count": 3, "status": 504}},
        {"result_missing": {"seconds": 0.1, "count": 1}},
        {"hex_request_id": {"count": 1}},
        {"output_as_list": {"count": 1}},
        {"output_as_object": {"count": 1}},
        {"record_expired": {"count": 1}},
    ],
    ids=str,
)
async def test_what_passes_is_survived_and_bought_once(house: House, fault: dict[str, Any]) -> None:
    await house.faults(fault)
    made = await house.make()

    assert (made.status, made.headers["Content-Type"]) == (200, "video/mp4"), made.body
    bill, usage = await house.bill(), await house.usage()
    assert len(bill.jobs) == 1
    assert (usage["spent_micros"], usage["reserved_micros"]) == (bill.micros, 0)
    assert (await house.make()).body == made.body


async def test_a_cost_that_is_not_told_is_settled_at_the_price_that_was_held(house: House) -> None:
    await house.faults({"cost_missing": {"count": 1}})
    made = await house.make()

    assert made.headers["x-cost"] == "0.004"
    assert (await house.usage())["spent_micros"] == PRICE_MICROS == (await house.bill()).micros


@pytest.mark.parametrize(
    "fault",
    [
        {"download_truncated": {"count": 1, "fraction": 0.5}},
        {"download_truncated": {"count": 1, "fraction": 0}},
        {"file_gone": {"count": 1}},
        {"download_corrupted": {"count": 1, "at": 0}},
    ],
    ids=str,
)
async def test_a_download_that_failed_is_fetched_again_and_not_bought_again(
    house: House, fault: dict[str, Any]
) -> None:
    expected = await house.make(video(seed=5))
    await house.faults(fault)
    made = await house.make(video(seed=6))
    if made.status != 200:
        # The caller is told that it is paid for; asking again fetches it.
        assert made.status == 502, made.body
        assert made.json["code"].startswith("result_")
        made = await house.make(video(seed=6))

    assert (made.status, made.headers["Content-Type"]) == (200, "video/mp4"), made.body
    assert len(made.body) == pytest.approx(len(expected.body), rel=0.5)
    bill, usage = await house.bill(), await house.usage()
    assert len(bill.jobs) == 2
    assert (usage["spent_micros"], usage["reserved_micros"]) == (bill.micros, 0)


async def test_what_is_not_what_was_asked_for_is_not_kept(house: House) -> None:
    await house.faults({"foreign_result_host": {"count": 1}})
    answer = await house.make()

    answer.refused(502, "result_unavailable")
    assert house.blob_files() == []
    assert (await house.usage())["reserved_micros"] == PRICE_MICROS
    # It is paid for. Whoever asks again waits for the same purchase.
    again = await house.make()
    assert again.status in {200, 502}
    assert len((await house.bill()).jobs) == 1


async def test_a_slow_upstream_is_waited_for_by_v1_and_the_overhead_leaves_that_out(house: House) -> None:
    await house.faults({"cold_start": {"seconds": 0.5, "count": 1}})
    made, hit = await house.make(), await house.make()

    assert (made.status, hit.status) == (200, 200)
    metrics = await house.metrics()
    assert metrics.value("gateway_request_seconds_sum", outcome="miss") >= 0.5
    assert metrics.value("gateway_overhead_seconds_sum", outcome="miss") < 0.5


async def test_many_purchases_under_every_kind_of_passing_fault_add_up(house: House) -> None:
    await house.faults(
        {
            "poll_error": {"probability": 0.3},
            "result_error": {"probability": 0.3},
            "poll_rate_limited": {"probability": 0.1, "reset_seconds": 0},
            "failed": {"probability": 0.2},
            "cost_missing": {"probability": 0.2},
            "unknown_status": {"probability": 0.2},
        }
    )
    answers = await asyncio.gather(*(house.make(video(seed=seed % 12)) for seed in range(36)))
    assert {answer.status for answer in answers} <= {200, 502}

    bill, usage = await house.until_billed(12), await house.usage()
    assert (usage["spent_micros"], usage["reserved_micros"]) == (bill.micros, 0)
    seeds = [job["seed"] for job in bill.jobs if job["state"] == "COMPLETED"]
    assert len(seeds) == len(set(seeds))


async def test_a_video_of_the_wrong_size_is_paid_and_lost_and_neither_kept_nor_served(house: House) -> None:
    await house.faults({"wrong_size": {"count": 1}})

    refused = (await house.make()).refused(502, "result_broken")

    assert "128" in refused["error"]
    usage, metrics = await house.usage(), await house.metrics()
    assert (usage["spent_micros"], usage["reserved_micros"]) == (PRICE_MICROS, 0)
    assert metrics.value("gateway_paid_and_lost_usd_total") == 0.004
    assert metrics.value("gateway_cache_entries") == 0
    # Asked again, it is bought again: what was lost is known to be lost.
    assert (await house.make()).cache == "fwd=miss; stored"
    assert len((await house.bill()).jobs) == 2


async def test_a_delivery_that_breaks_on_its_way_is_fetched_again_and_paid_once(house: House) -> None:
    await house.faults({"download_corrupted": {"count": 1, "at": 0}})

    answer = await house.make()

    assert (answer.status, answer.cache) == (200, "fwd=miss; stored")
    assert len((await house.bill()).jobs) == 1
    assert (await house.metrics()).value("gateway_paid_and_lost_usd_total") == 0


async def test_where_the_operator_wants_it_an_unknown_purchase_is_given_up_when_it_is_asked_for_again(
    house: House,
) -> None:
    await house.restart(reconcile__wait_seconds=0.05, reconcile__on_unknown="buy_again")
    await house.faults({"submit_dropped": {"count": 1}, "history_lag": {"seconds": 3600}})
    # The first caller is not bought for twice: giving up takes somebody who asks again.
    assert (await house.make()).status == 504
    assert len((await house.bill()).jobs) == 1

    again = await house.make()

    assert (again.status, again.headers["x-cost"]) == (200, "0.004")
    bill, usage, metrics = await house.until_billed(2), await house.usage(), await house.metrics()
    assert usage["spent_micros"] == bill.micros == 2 * PRICE_MICROS
    assert metrics.value("gateway_paid_and_lost_usd_total") == 0.004


async def test_whose_key_ends_while_it_waits_for_what_was_not_bought_is_told_that_and_nothing_is_bought(
    house: House,
) -> None:
    await house.restart(reconcile__wait_seconds=0.05, reconcile__history_lag_seconds=60)
    await house.faults({"submit_dropped": {"count": 1}, "history_lag": {"seconds": 1e9}})
    assert (await house.make()).status == 504
    await house.restart(reconcile__wait_seconds=20)
    keys = [await house.new_key("demo") for _ in range(2)]
    waiting = [asyncio.create_task(house.make(key=key)) for key in keys]
    submitted = await house.submit(key=keys[1])
    await house.until_pending(4)
    for key in keys:
        await house.gateway.keys.revoke(key)

    await house.faults({"history_lag": {}})
    house.clock.ahead_seconds += 61

    for answer in await asyncio.gather(*waiting):
        assert "Retry-After" not in answer.headers
        answer.refused(401, "key_ended")
    polled = await house.get(submitted.json["status_url"])
    assert (polled.status, polled.json["code"]) == (422, "key_ended")
    assert len((await house.bill()).jobs) == 1
    assert (await house.usage())["spent_micros"] == (await house.usage())["reserved_micros"] == 0


async def test_who_waited_for_what_was_not_bought_and_then_buys_it_is_told_what_it_cost(house: House) -> None:
    await house.restart(reconcile__wait_seconds=0.05, reconcile__history_lag_seconds=60)
    await house.faults({"submit_dropped": {"count": 1}, "history_lag": {"seconds": 1e9}})
    assert (await house.make()).status == 504
    await house.restart(reconcile__wait_seconds=20)
    waiting = asyncio.create_task(house.make())
    await house.until_pending(2)

    await house.faults({"history_lag": {}})
    house.clock.ahead_seconds += 61

    answer = await waiting
    assert (answer.status, answer.cache, answer.headers["x-cost"]) == (200, "fwd=miss; stored", "0.004")
    assert (await house.usage())["spent_micros"] == PRICE_MICROS
