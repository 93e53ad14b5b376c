"""Every way to be told no: the status, the envelope, and what to do about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import ClientSession, web

from gateway.catalog.yaml_files import load_catalog
from gateway.database.pace import Pace
from gateway.domain.tenant import Caller
from gateway.http.front_door import FrontDoor
from gateway.http.listening import listening
from gateway.http.request_ids import RequestIds
from gateway.telemetry.metrics import Metrics
from tests.journeys.conftest import OpenHouse
from tests.journeys.running import MODEL, MODELS, PROMPT, House, video
from tests.journeys.wire import asking, wired

JSON = {"Content-Type": "application/json"}


async def test_a_body_that_is_no_json_object_is_400_and_says_where(house: House) -> None:
    bodies = {
        b"": "not JSON",
        b"prompt=a+fox": "line 1, column 1",
        b'{"prompt": "a fox",}': "line 1",
        b'["a fox"]': "an array",
        b'"a fox"': "a string",
        b"null": "null",
        b"17": "a number",
        b'{"prompt": "a", "prompt": "b"}': "more than once",
        b'{"prompt": "a", "fps": NaN}': "NaN",
        b'{"prompt": "a", "fps": -Infinity}': "Infinity",
        b'{"prompt": "\xff"}': "UTF-8",
        b"[" * 100_000: "deeply",
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}": "JSON",
    }
    for body, hint in bodies.items():
        for api in ("v1", "v2"):
            answer = await house.ask("POST", f"/{api}/{MODEL}", data=body, headers=JSON)
            assert hint in answer.refused(400, "malformed_request")["error"], body[:50]
    assert (await house.bill()).jobs == []


async def test_all_fields_that_are_wrong_are_told_at_once(house: House) -> None:
    answer = await house.make(
        {"promt": "x", "fps": 99, "width": "wide", "guidance_scale": 0.5, "seed": 1.5, "num_frames": True}
    )
    envelope = answer.refused(400, "invalid_parameters")

    problems = {problem["field"]: problem for problem in envelope["problems"]}
    assert set(problems) == {"prompt", "promt", "fps", "width", "guidance_scale", "seed", "num_frames"}
    assert problems["promt"]["nearest"] == "prompt"
    assert (problems["fps"]["given"], problems["width"]["given"]) == (99, "wide")
    assert "1" in problems["fps"]["allowed"]
    assert "30" in problems["fps"]["allowed"]
    assert all(f"{field}: " in envelope["error"] for field in problems)
    assert (await house.bill()).jobs == []


async def test_a_value_outside_a_fixed_set_is_told_with_the_nearest_one(house: House) -> None:
    models = (await house.get("/v1/models")).json["models"]
    (kling,) = [model for model in models if model["name"] == "kling-2.6"]
    name, choices = next(
        (name, declared["enum"])
        for name, declared in kling["schema"]["properties"].items()
        if "enum" in declared
    )
    envelope = (await house.make({"prompt": PROMPT, name: f"{choices[0]}x"}, model="kling-2.6")).refused(
        400, "invalid_parameters"
    )
    (problem,) = [problem for problem in envelope["problems"] if problem["field"] == name]
    assert str(choices[0]) in problem["allowed"]
    assert problem["given"] == f"{choices[0]}x"


async def test_a_key_that_opens_nothing_is_401_and_says_why(house: House) -> None:
    key = house.key
    for shown, hint in {
        "": "Missing x-api-key",
        "SG_0123456789abcdef": "not the upstream's own",
        key[:-3]: "mistyped",
        key[:-1] + ("a" if key[-1] != "a" else "b"): "mistyped",
        "gwk_000000000000000000000000000000000" + "0dVrCr": "",
        "\u00e9": "invalid",
    }.items():
        for method, path in (
            ("POST", f"/v1/{MODEL}"),
            ("POST", f"/v2/{MODEL}"),
            ("GET", "/v1/usage"),
            ("GET", "/v1/get-user-credits"),
            ("GET", "/v1/models"),
            ("GET", "/v2/requests/x"),
            ("GET", "/v2/requests/x/status"),
            ("GET", "/v1/requests/x"),
        ):
            answer = await house.ask(
                method, path, key=shown, **({"json": video()} if method == "POST" else {})
            )
            envelope = answer.refused(401, "invalid_api_key")
            assert hint in envelope["error"]
            assert not shown or shown not in answer.body.decode()
    assert (await house.bill()).jobs == []


async def test_a_bearer_token_is_no_key(house: House) -> None:
    answer = await house.make(key="", headers={"Authorization": f"Bearer {house.key}"})
    answer.refused(401, "invalid_api_key")


async def test_a_model_that_the_tenant_may_not_use_is_403(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [], "models": ["ltx-2-fast"]}})

    for answer in (await house.make(), await house.submit()):
        envelope = answer.refused(403, "model_forbidden")
        assert MODEL in envelope["error"]
        assert "ltx-2-fast" in envelope["error"]
    assert (await house.bill()).jobs == []


async def test_a_price_that_nobody_knows_refuses_the_request(house: House) -> None:
    model = load_catalog(MODELS).find("eleven-labs-transcript")
    listed = {model["name"]: model for model in (await house.get("/v1/models")).json["models"]}
    assert listed[model.name]["price_usd_of_example"] is None

    for answer in (
        await house.make(model.example, model=model.name),
        await house.submit(model.example, model=model.name),
    ):
        answer.refused(403, "price_unknown")
    assert (await house.bill()).jobs == []


async def test_an_unknown_model_is_404_and_the_nearest_is_named(house: House) -> None:
    for name in ("ltx-2-19b-t2", "LTX-2-19b-t2v", "ltx-2-19b-t2v%20"):
        envelope = (await house.make(model=name)).refused(404, "model_not_found")
        assert MODEL in envelope["error"]


async def test_an_address_with_nothing_at_it_is_404(house: House) -> None:
    for path in ("/", "/v1", "/v1/", "/v3/x", f"/v1/{MODEL}/more", "/metrics", "/healthz", "/v1/..%2Fusage"):
        answer = await house.get(path, key="")
        assert answer.status in {404, 405}, path
        assert answer.json["code"] in {"route_not_found", "method_not_allowed"}


async def test_another_method_is_405_and_the_right_one_is_named(house: House) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        answer = await house.ask(method, f"/v1/{MODEL}")
        answer.refused(405, "method_not_allowed")
        assert answer.headers["Allow"] == "POST"
    answer = await house.ask("DELETE", "/v2/requests/x")
    answer.refused(405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD"}


async def test_a_budget_without_room_is_406_and_a_retry_will_not_help(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.01, "per": "month"}]}})
    await house.make(video(seed=1))
    await house.hold()
    await house.submit(video(seed=2))

    for answer in (await house.make(video(seed=3)), await house.submit(video(seed=3))):
        envelope = answer.refused(406, "budget_exceeded")
        assert envelope["window"] == "month"
        assert envelope["limit_usd"] == 0.01
        assert envelope["spent_usd"] == 0.004
        assert envelope["reserved_usd"] == 0.004
        assert envelope["price_usd"] == 0.004
        assert envelope["retry"] is False
        assert envelope["resets_at"].endswith("-01T00:00:00Z")
        assert "Retry-After" not in answer.headers
        for figure in ("Insufficient credits", "$0.01", "$0.004", envelope["resets_at"], "demo", "month"):
            assert figure in envelope["error"]
    await house.let_go()


async def test_a_body_that_does_not_come_is_408_and_ends_the_connection(open_house: OpenHouse) -> None:
    house = await open_house(settings={"listen.body_timeout_seconds": 0.1})
    address = urlsplit(house.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        f"POST /v1/{MODEL} HTTP/1.1\r\nHost: x\r\nx-api-key: {house.key}\r\n"
        'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"prompt": '.encode()
    )
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readuntil(b"}")
    writer.close()
    await writer.wait_closed()

    assert head.startswith("http/1.1 408 ")
    assert "connection: close" in head
    assert json.loads(body)["code"] == "body_timeout"


async def test_a_body_that_is_too_large_is_413_announced_or_not(open_house: OpenHouse) -> None:
    house = await open_house(settings={"listen.max_body_bytes": "2KiB"})
    large = json.dumps(video(negative_prompt="x" * 3000)).encode()

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 100):
            yield large[start : start + 100]

    for data in (large, in_pieces()):
        answer = await house.make(data=data, headers=JSON)
        assert "2048 bytes" in answer.refused(413, "body_too_large")["error"]
    assert (await house.make()).status == 200


async def test_a_body_that_is_not_called_json_is_415(house: House) -> None:
    for content_type in (
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        answer = await house.make(data=json.dumps(video()), headers={"Content-Type": content_type})
        assert "application/json" in answer.refused(415, "unsupported_media_type")["error"]
    named = await house.make(
        data=json.dumps(video()), headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert named.status == 200


async def test_when_too_many_wait_the_next_is_503_and_says_when_to_come_back(open_house: OpenHouse) -> None:
    house = await open_house(settings={"upstream.slots": 1, "upstream.most_waiting": 1})
    await house.hold()
    first, second = await house.submit(video(seed=1)), await house.submit(video(seed=2))
    await house.until_billed(1)

    answer = await house.submit(video(seed=3))
    answer.refused(503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1
    # It costs nobody a slot to join.
    joined = await house.submit(video(seed=2))
    await house.let_go()
    for each in (first, second, joined):
        assert (await house.result(each)).status == 200
    assert (await house.usage())["spent_micros"] == (await house.bill()).micros == 8_000


async def test_what_is_not_http_is_400_and_the_log_quotes_none_of_it(house: House) -> None:
    plain = asking(json.dumps(video()).encode(), key=house.key)
    house.secrets.add(PROMPT)
    for odd in (
        plain.replace(b"\r\n", b"\n"),
        plain.replace(b"Host: gateway", b"Host gateway"),
        plain.replace(b"x-api-key:", b"x-api-key :"),
        plain.replace(b"HTTP/1.1", b"HTTP/3.1"),
        plain.replace(b"Content-Length:", b"Content-Length: x"),
        plain + plain[1:],
    ):
        async with wired(house.url) as wire:
            await wire.send(odd)
            assert (await wire.reply()).status == 400, odd
            assert await wire.rest() == b""
    assert [line["event"] for line in house.log_lines if line["level"] in {"warning", "error"}] == []
    assert (await house.bill()).jobs == []


class BrokenKeys:
    """Fails in a way that nobody foresaw."""

    def authenticate(self, presented: str | None) -> Caller:
        raise RuntimeError(f"the register at /etc/secret/register is upside down: {presented}")


async def test_what_nobody_foresaw_is_500_without_a_trace_of_the_inside(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "pace")
    front_door = FrontDoor(
        keys=BrokenKeys(),  # type: ignore[arg-type] # it is the only thing of keys that is asked for
        metrics=Metrics(),
        request_ids=RequestIds(),
        pace=pace,
        clock=lambda: 0.0,
        max_body_bytes=1000,
        body_timeout_seconds=1,
    )

    async def handler(request: web.Request) -> web.StreamResponse:
        front_door.caller(request)
        return web.Response()

    app = web.Application(middlewares=[front_door.middleware])
    app.router.add_get("/", handler)
    async with (
        listening(app, "127.0.0.1", 0, 1.0) as url,
        ClientSession() as session,
        session.get(url, headers={"x-api-key": "gwk_zebrafinch"}) as answer,
    ):
        text = await answer.text()

    assert answer.status == 500
    assert json.loads(text)["code"] == "internal_error"
    assert json.loads(text)["request_id"] == answer.headers["x-request-id"]
    for inside in ("Traceback", "RuntimeError", "/etc", "gwk_", "register", ".py"):
        assert inside not in text
