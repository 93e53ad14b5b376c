"""POST /v2/{model} and the requests that it leaves behind."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import MODEL, PRICE_MICROS, PROMPT, House, video

TWO_TENANTS = {"ann": {"budgets": [{"limit_usd": 1, "per": "month"}]}, "bob": {"budgets": []}}


async def test_a_submit_is_answered_at_once_with_absolute_urls_on_the_gateway(house: House) -> None:
    await house.hold()
    submitted = await house.submit()

    identity = submitted.json["request_id"]
    assert submitted.status == 200
    assert str(uuid.UUID(identity)) == identity == submitted.headers["x-request-id"]
    assert submitted.json == {
        "request_id": identity,
        "status": "QUEUED",
        "poll_url": f"{house.url}/v1/requests/{identity}",
        "status_url": f"{house.url}/v2/requests/{identity}/status",
        "response_url": f"{house.url}/v2/requests/{identity}",
    }
    await house.let_go()


async def test_every_answer_names_the_request_that_it_answers_and_a_resource_the_one_that_it_tells_of(
    house: House,
) -> None:
    submitted = await house.submit()
    identity, result = submitted.json["request_id"], await house.result(submitted)
    link = result.json["output"]
    looks = [await house.get(f"/v1/{place}") for place in ("usage", "models", "get-user-credits")]
    looks.append(await house.ask("POST", f"/v1/{MODEL}/quote", json=video()))
    # The first is answered by the application, and those after it from memory, as far as they can be.
    for _ in range(2):
        looks += [await house.ask("GET", link, key=""), await house.ask("HEAD", link, key="")]
        for headers in ({"Range": "bytes=0-9"}, {"If-None-Match": "*"}, {"Range": "bytes=99999999-"}):
            looks.append(await house.ask("GET", link, key="", headers=headers))
    statuses = [each.status for each in looks]
    named = [str(uuid.UUID(each.headers["x-request-id"])) for each in looks]

    assert statuses == [200] * 4 + [200, 200, 206, 304, 416] * 2
    assert len({*named, identity}) == len(looks) + 1
    assert {line["request_id"] for line in house.log_lines if "request_id" in line}.issuperset(named[:4])
    assert result.headers["x-request-id"] == identity


async def test_a_request_that_has_ended_is_dropped_after_its_time(house: House) -> None:
    submitted = await house.submit()
    await house.result(submitted)
    house.clock.ahead_seconds += 31 * 24 * 3600
    await house.restart()

    async with asyncio.timeout(30):
        while (answer := await house.get(f"/v2/requests/{submitted.json['request_id']}")).status == 200:
            await asyncio.sleep(0.01)
    answer.refused(404, "request_not_found")


@pytest.mark.parametrize("public_url", ["https://gateway.example.com", "https://example.com/media/"])
async def test_links_point_to_the_public_url_where_there_is_one(
    open_house: OpenHouse, public_url: str
) -> None:
    house = await open_house(settings={"listen.public_url": public_url})
    submitted = await house.submit()
    base, path = public_url.rstrip("/"), f"/v2/requests/{submitted.json['request_id']}"
    assert submitted.json["status_url"] == f"{base}{path}/status"
    assert submitted.json["response_url"] == f"{base}{path}"
    await house.until_pending(0)

    result = await house.get(path)
    assert result.json["output"].startswith(f"{base}/blobs/")
    assert (await house.get(result.json["output"].removeprefix(base), key="")).status == 200


async def test_a_request_is_queued_then_processing_then_completed(open_house: OpenHouse) -> None:
    house = await open_house(time_scale=0.02)
    await house.faults({"cold_start": {"seconds": 0.4, "count": 1}})
    # Half a second's work, after being cold for a while: each step lasts for many polls.
    submitted = await house.submit(video(num_frames=177, width=320))
    seen, answer = [], submitted
    while answer.json["status"] != "COMPLETED":
        answer = await house.get(submitted.json["status_url"])
        assert answer.status == 200
        assert answer.json["request_id"] == submitted.json["request_id"]
        assert answer.json["status_url"] == submitted.json["status_url"]
        assert answer.json["response_url"] == submitted.json["response_url"]
        if answer.json["status"] != "COMPLETED":
            assert answer.json["metrics"] == {}
            # The result's own address says the same for as long as there is none.
            pending = await house.get(submitted.json["response_url"])
            assert pending.status == 200
        if answer.json["status"] not in seen:
            seen.append(answer.json["status"])

    assert seen == ["QUEUED", "PROCESSING", "COMPLETED"]
    assert "output" not in answer.json


async def test_a_completed_request_has_the_upstreams_shape(house: House) -> None:
    submitted = await house.submit()
    status = await house.ended(submitted)

    assert status.json["metrics"]["cost"] == 0.004
    assert status.json["metrics"]["remaining_credits"] == 24.996
    for url in (submitted.json["response_url"], submitted.json["poll_url"]):
        result = await house.get(url)
        assert result.status == 200
        record = result.json
        assert record["status"] == "COMPLETED"
        assert record["request_id"] == submitted.json["request_id"]
        assert record["error"] is None
        assert record["seed"] == "1234567890"
        assert record["prompt"] == PROMPT
        assert record["timings"] == {}
        metrics = record["metrics"]
        assert set(metrics) == {
            "cost",
            "remaining_credits",
            "inference_time",
            "queue_time",
            "total_time",
        }
        assert (metrics["cost"], metrics["remaining_credits"]) == (0.004, 24.996)
        assert min(metrics["inference_time"], metrics["queue_time"], metrics["total_time"]) >= 0
        media = await house.get(record["output"], key="")
        assert record["video"] == {
            "url": record["output"],
            "content_type": "video/mp4",
            "file_name": f"{media.headers['ETag'].strip(chr(34))}.mp4",
            "file_size": str(len(media.body)),
        }


async def test_what_was_made_for_v2_is_a_hit_for_both_and_the_other_way_round(house: House) -> None:
    await house.result(await house.submit())
    assert (await house.make()).cache == "hit"

    made = await house.make(video(seed=2))
    submitted = await house.submit(video(seed=2))
    assert submitted.json["status"] == "QUEUED"
    # It is there already: the first look is the last.
    status = await house.get(submitted.json["status_url"])
    assert status.json["status"] == "COMPLETED"
    assert status.json["metrics"]["cost"] == 0
    result = await house.get(submitted.json["response_url"])
    assert result.json["cache_status"] == "hit"
    assert result.json["metrics"]["cost"] == 0
    assert (await house.get(result.json["output"], key="")).body == made.body
    assert len((await house.bill()).jobs) == 2


async def test_a_seed_of_minus_one_is_told_in_the_record(house: House) -> None:
    result = await house.result(await house.submit(video(seed=-1)))
    again = await house.submit(video(seed=int(result.json["seed"])))

    assert (await house.result(again)).json["output"].partition("?")[0] == result.json["output"].partition(
        "?"
    )[0]
    assert len((await house.bill()).jobs) == 1


@pytest.mark.parametrize("status", [422, 200])
async def test_what_the_upstream_could_not_make_is_failed_under_422_with_its_reason_and_costs_nothing(
    house: House, status: int
) -> None:
    await house.faults({"failed": {"count": 1, "status": status, "error": "The GPU caught fire."}})
    submitted = await house.submit()
    ended = await house.ended(submitted)

    for answer in (
        ended,
        await house.get(submitted.json["response_url"]),
        await house.get(submitted.json["poll_url"]),
    ):
        assert answer.status == 422
        assert answer.json["status"] == "FAILED"
        assert answer.json["request_id"] == submitted.json["request_id"]
        assert answer.json["code"] == "generation_failed"
        assert "The GPU caught fire" in answer.json["error"]
    usage = await house.usage()
    assert (usage["spent_micros"], usage["reserved_micros"]) == (0, 0)
    assert (await house.bill()).micros == 0
    # It is not remembered as failed: the next one is a new try.
    assert (await house.result(await house.submit())).json["metrics"]["cost"] == 0.004


async def test_what_moderation_refused_once_may_pass_the_next_time(house: House) -> None:
    await house.faults({"moderation": {"probability": 1}})
    refused = await house.ended(await house.submit())

    assert refused.status == 422
    assert "content_policy_violation" in refused.json["error"]
    assert (await house.make()).status == 200
    assert (await house.usage())["spent_micros"] == PRICE_MICROS


async def test_a_tenant_sees_only_its_own_requests(open_house: OpenHouse) -> None:
    house = await open_house(tenants=TWO_TENANTS)
    bob = await house.new_key("bob")
    second = await house.new_key("ann")
    submitted = await house.submit()
    await house.ended(submitted)

    for url in (
        submitted.json["status_url"],
        submitted.json["response_url"],
        submitted.json["poll_url"],
    ):
        assert (await house.get(url)).status == 200
        assert (await house.get(url, key=second)).status == 200
        (await house.get(url, key=bob)).refused(404, "request_not_found")
        (await house.get(url, key="")).refused(401, "invalid_api_key")
        unknown = url.replace(submitted.json["request_id"], str(uuid.uuid4()))
        (await house.get(unknown)).refused(404, "request_not_found")


async def test_a_synchronous_request_can_be_asked_for_by_its_id_too(house: House) -> None:
    made = await house.make()
    record = await house.get(f"/v2/requests/{made.headers['x-request-id']}")

    assert record.status == 200
    assert record.headers["x-cost"] == "0.004"
    assert (await house.get(record.json["output"], key="")).body == made.body


async def test_requests_and_their_links_survive_a_restart(open_house: OpenHouse) -> None:
    house = await open_house(settings={"listen.public_url": "https://gateway.example.com"})
    submitted = await house.submit()
    path = f"/v2/requests/{submitted.json['request_id']}"
    await house.until_pending(0)
    before = await house.get(path)
    await house.restart()
    after = await house.get(path)

    assert after.json == before.json
    link = after.json["output"].removeprefix("https://gateway.example.com")
    assert (await house.get(link, key="")).status == 200
    assert (await house.make()).cache == "hit"


@pytest.mark.parametrize("repeated", [False, True])
async def test_what_was_in_flight_at_a_restart_is_collected_and_not_bought_again(
    house: House, repeated: bool
) -> None:
    await house.hold()
    submitted = await house.submit()
    await house.until_billed(1)
    await house.stop()
    await house.start()
    path = f"/v2/requests/{submitted.json['request_id']}"
    assert (await house.get(path)).json["status"] in {"QUEUED", "PROCESSING"}
    again = await house.submit() if repeated else None
    await house.let_go()
    await house.until_pending(0)
    result = await house.get(path)

    assert (result.status, result.json["status"]) == (200, "COMPLETED")
    assert (result.json["metrics"]["cost"], result.json["cache_status"]) == (0.004, "miss")
    if again is not None:
        joined = await house.result(again)
        assert (joined.json["metrics"]["cost"], joined.json["cache_status"]) == (0, "collapsed")
    bill, usage = await house.bill(), await house.usage()
    assert (len(bill.jobs), bill.micros) == (1, usage["spent_micros"])
    assert usage["reserved_micros"] == 0
    assert (await house.make()).cache == "hit"


async def test_a_request_whose_body_is_wrong_is_refused_at_the_submit(house: House) -> None:
    (await house.submit({"width": 99})).refused(400, "invalid_parameters")
    (await house.submit(model="ltx-2-19b-t2w")).refused(404, "model_not_found")
    assert (await house.bill()).jobs == []


async def test_get_of_a_model_says_how_it_is_to_be_asked(house: House) -> None:
    refused = await house.get(f"/v2/{MODEL}")

    refused.refused(405, "method_not_allowed")
    assert refused.headers["Allow"] == "POST"
