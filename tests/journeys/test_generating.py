"""POST /v1/{model}: the media, the headers, and the second time for nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import uuid

import av

from tests.journeys.conftest import OpenHouse
from tests.journeys.running import FEW_MODELS, MODEL, PRICE_MICROS, House, video

PAGE = {
    "prompt": "A dynamic medium shot of a courier walking quickly through a modern corridor, smooth tracking shot",
    "negative_prompt": "blurry, low quality, still frame, watermark",
    "width": 720,
    "height": 1280,
    "num_frames": 121,
    "fps": 24,
    "seed": 1234567890,
    "guidance_scale": 4,
}
"""As the upstream's own page sends it: $0.416."""


async def test_the_pages_own_snippet_is_answered_with_a_playable_video_and_the_second_time_for_nothing(
    house: House,
) -> None:
    first = await house.make(PAGE)

    assert (first.status, first.headers["Content-Type"]) == (200, "video/mp4"), first.body[:500]
    with av.open(io.BytesIO(first.body), "r") as film:
        (picture,), (sound,) = film.streams.video, film.streams.audio
        assert (picture.codec_context.name, sound.codec_context.name) == ("h264", "aac")
        assert (picture.width, picture.height) == (704, 1280)
        assert len(list(film.decode(picture))) == 121
    assert first.headers["x-cost"] == "0.416"
    assert first.headers["x-remaining-credits"] == "24.584"
    assert first.seed == PAGE["seed"]
    assert first.cache == "fwd=miss; stored"

    second = await house.make(PAGE)

    assert (second.status, second.body, second.cache) == (200, first.body, "hit")
    assert second.headers["x-cost"] == "0"
    assert second.headers["x-remaining-credits"] == "24.584"
    bill = await house.bill()
    assert (len(bill.jobs), bill.micros) == (1, 416_000)


async def test_a_miss_and_a_hit_carry_every_header_that_was_promised(house: House) -> None:
    miss = await house.make()
    house.clock.ahead_seconds = 61
    hit = await house.make()

    digest = hashlib.sha256(miss.body).digest()
    for answer in (miss, hit):
        assert answer.status == 200
        assert str(uuid.UUID(answer.headers["x-request-id"])) == answer.headers["x-request-id"]
        assert float(answer.headers["x-generation-time"]) >= 0
        assert answer.headers["x-seed-value"] == "1234567890"
        assert answer.headers["ETag"] == f'"{digest.hex()}"'
        assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
        assert answer.headers["Content-Length"] == str(len(miss.body))
        assert answer.headers["x-remaining-credits"] == "24.996"
        assert "Python" not in answer.headers["Server"]
    assert miss.headers["x-request-id"] != hit.headers["x-request-id"]
    assert (miss.headers["x-cost"], hit.headers["x-cost"]) == ("0.004", "0")
    assert int(miss.headers["Age"]) < 60 <= int(hit.headers["Age"])
    fingerprint = miss.headers["Cache-Status"].removeprefix("gateway; fwd=miss; stored; key=")
    assert len(bytes.fromhex(fingerprint.strip('"'))) == 32
    assert hit.headers["Cache-Status"] == f"gateway; hit; key={fingerprint}"


async def test_with_accept_application_json_the_answer_is_the_v2_result_record(house: House) -> None:
    miss = await house.make(headers={"Accept": "application/json"})
    hit = await house.make(headers={"Accept": "application/json"})

    for answer in (miss, hit):
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        record = answer.json
        assert (record["status"], record["error"], record["seed"]) == ("COMPLETED", None, "1234567890")
        assert record["request_id"] == answer.headers["x-request-id"]
        assert record["output"] == record["video"]["url"]
        media = await house.get(record["output"], key="")
        assert (media.status, media.headers["Content-Type"]) == (200, "video/mp4")
        assert record["video"]["file_size"] == str(len(media.body))
    assert (miss.json["metrics"]["cost"], hit.json["metrics"]["cost"]) == (0.004, 0)
    assert (miss.cache, hit.cache) == ("fwd=miss; stored", "hit")
    assert len((await house.bill()).jobs) == 1


async def test_whoever_takes_anything_gets_the_media_as_from_the_upstream(house: House) -> None:
    # The first is what a widespread JavaScript client sends with every request.
    for accepted in (
        "application/json, text/plain, */*",
        "*/*",
        "video/mp4, application/json;q=0.5",
        "video/*",
    ):
        answer = await house.make(headers={"Accept": accepted})
        assert answer.headers["Content-Type"] == "video/mp4", accepted

    for accepted in ("application/json, */*;q=0.5", "Application/JSON; charset=utf-8"):
        answer = await house.make(headers={"Accept": accepted})
        assert answer.headers["Content-Type"] == "application/json", accepted


async def test_an_image_model_answers_an_image_and_lists_it_in_its_record(house: House) -> None:
    asked = {"prompt": "a red fox in the snow, zebrafinch"}
    made = await house.make(asked, model="fast-flux-schnell")
    record = await house.make(asked, model="fast-flux-schnell", headers={"Accept": "application/json"})

    assert made.status == 200, made.body
    assert made.headers["Content-Type"].startswith("image/")
    (image,) = record.json["images"]
    assert image["url"] == record.json["output"]
    assert (await house.get(image["url"], key="")).body == made.body


async def test_a_video_costs_the_tenant_what_the_upstream_has_billed(house: House) -> None:
    house.insists = False  # each answer counts
    await house.make()
    await house.make(video(seed=2))
    await house.make()

    bill, usage = await house.bill(), await house.usage()
    assert usage["spent_micros"] == bill.micros == 2 * PRICE_MICROS
    assert usage["saved_micros"] == PRICE_MICROS
    assert (usage["hits"], usage["misses"], usage["reserved_micros"]) == (1, 2, 0)
    assert usage["models"][MODEL]["spent_usd"] == 0.008


async def test_credits_are_what_is_left_of_the_tightest_budget(open_house: OpenHouse) -> None:
    house = await open_house(
        tenants={
            "demo": {"budgets": [{"limit_usd": 25, "per": "month"}, {"limit_usd": 1, "per": "day"}]},
            "free": {"budgets": []},
        }
    )
    await house.make()

    assert (await house.get("/v1/get-user-credits")).json == {"credits": 0.996, "free-credits": 0}
    free = await house.get("/v1/get-user-credits", key=await house.new_key("free"))
    assert free.json["credits"] is None


async def test_the_models_are_listed_as_far_as_the_tenant_may_use_them(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [], "models": [MODEL]}, "all": {"budgets": []}})

    few = (await house.get("/v1/models")).json["models"]
    every = (await house.get("/v1/models", key=await house.new_key("all"))).json["models"]

    assert [model["name"] for model in few] == [MODEL]
    assert len(every) == len(FEW_MODELS)
    assert few[0]["schema"]["required"] == ["prompt"]
