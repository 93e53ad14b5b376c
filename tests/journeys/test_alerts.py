"""Alerts reach whoever listens: signed, under one id, until they are taken, and once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.alerts.signing import SigningSecret
from gateway.alerts.webhooks import WebhookMessenger
from gateway.domain.errors import CannotStart
from gateway.domain.tenant import KeyTerms, Role
from gateway.http.listening import listening
from tests.journeys.conftest import OpenHouse
from tests.journeys.program import run
from tests.journeys.running import House, video

KEY = b"of a test, with 32 bytes in all!"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
TWO_VIDEOS = {"demo": {"budgets": [{"limit_usd": 0.008, "per": "total"}]}}

_PATIENCE_SECONDS = 30.0
_ADDRESS = "/hooks/an-address-that-is-a-secret"


@pytest.fixture
def hit_path() -> bool:
    """Nothing here is asked for twice."""
    return True


@dataclass(frozen=True)
class Message:
    """One try to tell something, as it arrived."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def data(self) -> Any:
        return json.loads(self.body)["data"]

    def check(self) -> None:
        """The signature, as the specification has it, and not as the gateway has it."""
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        digest = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert self.headers["webhook-signature"] == f"v1,{digest}"
        assert self.headers["Content-Type"] == "application/json"


@dataclass
class Receiver:
    """Listens, and answers as it is told to: with these statuses in turn, and then always with the last; 0: not at all."""

    statuses: list[int]
    url: str = ""
    messages: list[Message] = field(default_factory=list)
    elsewhere: int = 0
    """How often somebody came to where a redirect leads."""

    retry_after: str = "0"
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        self.messages.append(Message(request.headers.copy(), await request.read()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if not status:
            await self.closing.wait()
        headers = {"Location": "/elsewhere"} if status == 307 else {"Retry-After": self.retry_after}
        return web.Response(status=status or 200, headers=headers)

    async def take_elsewhere(self, _: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()

    async def received(self, count: int) -> Sequence[Message]:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while len(self.messages) < count:
                await asyncio.sleep(0.01)
        for message in self.messages:
            message.check()
        return self.messages


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver([*statuses])
    application = web.Application()
    application.router.add_post(_ADDRESS, receiver.take)
    application.router.add_route("*", "/elsewhere", receiver.take_elsewhere)
    async with listening(application, "127.0.0.1", 0, 75.0) as url:
        receiver.url = url + _ADDRESS
        yield receiver
        receiver.closing.set()


async def _house(open_house: OpenHouse, receiver: Receiver | None, **options: Any) -> House:
    settings = {
        **({"alerts.webhook_url": receiver.url} if receiver else {}),
        "alerts.interval_seconds": 0.05,
        "alerts.projected": False,
        "alerts.timeout_seconds": 0.5,
    }
    house = await open_house(
        tenants=options.pop("tenants", TWO_VIDEOS),
        settings=settings | options.pop("settings", {}),
        environment={"ALERTS_WEBHOOK_SECRET": SECRET},
        **options,
    )
    house.secrets |= {SECRET, SECRET.removeprefix("whsec_"), _ADDRESS}
    return house


async def _listed(house: House) -> Sequence[Any]:
    key = await house.gateway.keys.create("demo", "of an admin", terms=KeyTerms(role=Role.ADMIN))
    house.secrets.add(key)
    answer = await house.get(f"{house.gateway.operations_url}/admin/alerts", key=key)
    assert answer.status == 200, answer.body
    listed: Sequence[Any] = answer.json["alerts"]
    return listed


async def _until_listed(house: House, count: int) -> Sequence[Any]:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while len(listed := await _listed(house)) != count:
            await asyncio.sleep(0.01)
    return listed


async def _until_logged(house: House, event: str) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while event not in {line["event"] for line in house.log_lines}:
            await asyncio.sleep(0.01)


async def _until_tries(house: House, tries: int) -> Any:
    """The only alert, once so many tries are written down."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while len(listed := await _listed(house)) != 1 or len(listed[0]["deliveries"]) < tries:
            await asyncio.sleep(0.01)
    return listed[0]


async def test_each_threshold_reaches_whoever_listens_once_signed_and_is_in_log_and_metrics(
    open_house: OpenHouse,
) -> None:
    async with receiving(200) as receiver:
        house = await _house(open_house, receiver)
        await house.make(video(seed=1))
        (half,) = await receiver.received(1)
        await house.make(video(seed=2))
        messages = await receiver.received(3)
        refused = [await house.make(video(seed=seed)) for seed in (3, 4)]
        await house.restart()
        await house.make(video(seed=5))
        await house.until_pending(0)

    assert [each.status for each in refused] == [406, 406]
    assert {each.data["threshold_percent"] for each in messages} == {50, 80, 100}
    assert len({each.id for each in messages}) == 3
    assert half.data == {
        "tenant": "demo", "path": "demo", "key_id": None, "budget": "total", "window": "total", "threshold_percent": 50,
        "limit_usd": 0.008, "limit_micros": 8000, "spent_usd": half.data["spent_usd"],
        "spent_micros": half.data["spent_micros"], "reserved_usd": half.data["reserved_usd"],
        "reserved_micros": half.data["reserved_micros"], "remaining_usd": 0.004, "remaining_micros": 4000,
        "resets_at": None, "runs_out_at": half.data["runs_out_at"],
    }  # fmt: skip
    assert half.data["spent_micros"] + half.data["reserved_micros"] == 4000
    assert json.loads(half.body)["type"] == "budget.threshold_reached"
    lines = [line for line in house.log_lines if line["event"] == "budget threshold reached"]
    assert sorted(line["threshold"] for line in lines) == ["100", "50", "80"]
    assert len([line for line in house.log_lines if line["event"] == "alert delivered"]) == 3


async def test_the_metrics_count_what_was_raised_and_how_it_was_sent(open_house: OpenHouse) -> None:
    async with receiving(500, 200) as receiver:
        house = await _house(open_house, receiver)
        await house.make(video(seed=1))
        await _until_tries(house, 1)
        house.clock.ahead_seconds += 6
        await _until_tries(house, 2)
        metrics = await house.metrics()

    assert metrics.value("gateway_alerts_total", tenant="demo", window="total", threshold="50") == 1
    assert metrics.value("gateway_webhook_deliveries_total", outcome="failed") == 1
    assert metrics.value("gateway_webhook_deliveries_total", outcome="delivered") == 1


async def test_what_is_not_taken_is_sent_again_by_the_clock_under_the_same_id_through_a_restart(
    open_house: OpenHouse,
) -> None:
    async with receiving(500, 0, 307, 204) as receiver:
        house = await _house(open_house, receiver)
        await house.make(video(seed=1))
        for tries, (pause_seconds, restarted) in enumerate([(5, False), (300, True), (1800, False)], start=1):
            pending = await _until_tries(house, tries)
            assert pending["state"] == "pending"
            assert pending["due_at"] is not None
            if restarted:
                await house.restart()
            house.clock.ahead_seconds += pause_seconds * 1.1 + 1
        taken = await _until_tries(house, 4)
        messages = await receiver.received(4)

    assert (taken["state"], taken["due_at"]) == ("delivered", None)
    assert [each["status"] for each in taken["deliveries"]] == [500, None, 307, 204]
    assert [each["error"] for each in taken["deliveries"]] == [
        "answered 500", "no answer within 0.5 seconds", "a redirect, which is not followed", None,
    ]  # fmt: skip
    assert {(each.id, each.body) for each in messages} == {(taken["id"], messages[0].body)}
    assert json.loads(messages[0].body) == taken["message"]
    times = [int(each.headers["webhook-timestamp"]) for each in messages]
    assert [later - sooner > 4 for sooner, later in itertools.pairwise(times)] == [True] * 3
    assert (len(messages), receiver.elsewhere) == (4, 0)


async def test_whoever_says_that_it_is_gone_is_not_sent_the_same_again(open_house: OpenHouse) -> None:
    async with receiving(410) as receiver:
        house = await _house(open_house, receiver)
        await house.make(video(seed=1))
        ended = await _until_tries(house, 1)
        # What is seen in the database by now may be about to be logged: a stop would come between.
        await _until_logged(house, "alert given up")
        house.clock.ahead_seconds += 30 * 24 * 3600
        await house.restart()
        again = await _until_tries(house, 1)

    assert (ended["state"], again["state"], len(again["deliveries"])) == ("given up", "given up", 1)
    assert [line["level"] for line in house.log_lines if line["event"] == "alert given up"] == ["error"]


@pytest.mark.parametrize(
    ("status", "said", "asked_seconds"),
    [
        (503, "120", 120.0),
        (429, "Tue, 24 Nov 2026 00:10:00 GMT", 600.0),
        (429, "Mon, 23 Nov 2026 00:10:00 GMT", 0.0),
        (503, "soon", None),
        (503, "Tue, 99 Nov 2026 00:10:00 GMT", None),
        (503, None, None),
        (500, "120", None),
    ],
)
async def test_when_a_receiver_wants_to_be_asked_again_is_read_in_either_form(
    status: int, said: str | None, asked_seconds: float | None
) -> None:
    midnight = datetime(2026, 11, 24, tzinfo=UTC).timestamp()

    async def busy(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={} if said is None else {"Retry-After": said})

    application = web.Application()
    application.router.add_post(_ADDRESS, busy)
    async with (
        listening(application, "127.0.0.1", 0, 75.0) as url,
        WebhookMessenger.open(
            url=url + _ADDRESS, secret=SigningSecret(SECRET), clock=lambda: midnight, timeout_seconds=30
        ) as messenger,
    ):
        delivery = await messenger.send("msg_1", "{}")

    assert (delivery.status, delivery.error) == (status, f"answered {status}")
    assert delivery.retry_after_seconds == asked_seconds


async def test_a_receiver_that_names_a_pause_is_left_alone_for_so_long(open_house: OpenHouse) -> None:
    async with receiving(503, 204) as receiver:
        receiver.retry_after = "7200"
        house = await _house(open_house, receiver)
        await house.make(video(seed=1))
        pending = await _until_tries(house, 1)

    due = datetime.fromisoformat(pending["due_at"]) - datetime.fromisoformat(pending["deliveries"][0]["at"])
    assert due.total_seconds() >= 7200 - 1


async def test_where_nobody_listens_it_is_tried_again_and_the_address_is_not_told(
    open_house: OpenHouse,
) -> None:
    async with receiving(200) as receiver:
        pass
    house = await _house(open_house, receiver)
    await house.make(video(seed=1))
    pending = await _until_tries(house, 1)

    assert (pending["state"], pending["deliveries"][0]["error"]) == ("pending", "no connection")


async def test_without_a_webhook_alerts_are_in_the_log_and_kept_unsent(open_house: OpenHouse) -> None:
    house = await _house(open_house, None)
    await house.make(video(seed=1))
    kept = await _until_tries(house, 0)

    assert (kept["state"], kept["threshold"]) == ("unsent", "50")
    assert [line["threshold"] for line in house.log_lines if line["event"] == "budget threshold reached"] == [
        "50"
    ]


async def test_what_is_old_is_forgotten_and_the_newest_stays(open_house: OpenHouse) -> None:
    a_day = {"demo": {"budgets": [{"limit_usd": 0.008, "per": "day"}]}}
    house = await _house(open_house, None, tenants=a_day)
    for day in (1, 2):
        await house.make(video(seed=day))
        newest = await _until_listed(house, day)
        house.clock.ahead_seconds += 24 * 3600
    house.clock.ahead_seconds += 90 * 24 * 3600
    await house.restart()

    assert (await _until_listed(house, 1))[0]["id"] == newest[0]["id"]


async def test_a_refusal_in_one_process_is_told_of_once_by_whichever_looks_first(
    open_house: OpenHouse,
) -> None:
    tenants = {"demo": {"budgets": [{"limit_usd": 0.011, "per": "total", "alert_at": [100]}]}}
    async with receiving(200) as receiver:
        house = await _house(open_house, receiver, tenants=tenants)
        async with house.beside() as other:
            for seed in (1, 2):
                await house.make(video(seed=seed))
            refused = await house.ask("POST", f"{other.url}/v1/ltx-2-19b-t2v", json=video(seed=3))
            (message,) = await receiver.received(1)
            again = await house.make(video(seed=3))
            taken = await _until_tries(house, 1)

    assert (refused.status, again.status) == (406, 406)
    assert (message.id, message.data["remaining_micros"]) == (taken["id"], 3000)


async def test_a_refusal_right_before_a_stop_is_told_of_after_the_start(open_house: OpenHouse) -> None:
    tenants = {"demo": {"budgets": [{"limit_usd": 0.007, "per": "total", "alert_at": [100]}]}}
    async with receiving(200) as receiver:
        house = await _house(
            open_house, receiver, tenants=tenants, settings={"alerts.interval_seconds": 3600}
        )
        await house.make(video(seed=1))
        refused = await house.make(video(seed=2))
        await house.restart(**{"alerts.interval_seconds": 0.05})
        (message,) = await receiver.received(1)

    assert (refused.status, message.data["remaining_micros"]) == (406, 3000)


async def test_a_budget_of_a_key_is_told_of_with_the_keys_id(open_house: OpenHouse) -> None:
    house = await _house(open_house, None, tenants={"demo": {"budgets": []}})
    operations = f"{house.gateway.operations_url}/admin/keys"
    admin = await house.gateway.keys.create("demo", "admin", terms=KeyTerms(role=Role.ADMIN))
    body = {"tenant": "demo", "budgets": [{"limit_usd": 0.008, "per": "month", "alert_at": [50]}]}
    made = await house.ask("POST", operations, key=admin, json=body)
    house.secrets |= {admin, made.json["key"]}
    await house.make(video(seed=1), key=made.json["key"])
    told = await _until_tries(house, 0)

    assert (told["tenant"], told["key_id"], told["budget"]) == ("demo", made.json["id"], "month")
    assert told["message"]["data"]["key_id"] == made.json["id"]


async def test_who_is_no_admin_sees_no_alert_and_bad_questions_are_told(open_house: OpenHouse) -> None:
    house = await _house(open_house, None)
    address = f"{house.gateway.operations_url}/admin/alerts"
    admin = await house.gateway.keys.create("demo", "admin", terms=KeyTerms(role=Role.ADMIN))
    house.secrets.add(admin)

    (await house.get(address)).refused(403, "key_forbidden")
    (await house.get(address, key="")).refused(401, "invalid_api_key")
    (await house.get(f"{address}?limit=0", key=admin)).refused(400, "invalid_query")
    (await house.get(f"{address}?tenent=demo", key=admin)).refused(400, "invalid_query")
    (await house.get(f"{address}?tenant=dmeo", key=admin)).refused(404, "tenant_not_found")
    assert (await house.get(f"{address}?tenant=demo&limit=1000", key=admin)).json == {"alerts": []}


@pytest.mark.parametrize(
    ("settings", "environment", "said"),
    [
        ({}, {}, "ALERTS_WEBHOOK_SECRET (alerts.webhook_secret_env)"),
        ({"alerts.webhook_secret_env": "OURS"}, {"OURS": "whsec_c2hvcnQ="}, "has 5 bytes"),
        (
            {"alerts.webhook_secret_file": "nowhere"},
            {"ALERTS_WEBHOOK_SECRET": SECRET},
            "alerts.webhook_secret_file",
        ),
    ],
    ids=["no secret", "a short one", "no file"],
)
async def test_with_an_address_and_nothing_to_sign_with_nothing_starts(
    open_house: OpenHouse, settings: Mapping[str, Any], environment: Mapping[str, str], said: str
) -> None:
    with pytest.raises(CannotStart) as refusal:
        await open_house(
            settings={"alerts.webhook_url": "http://127.0.0.1:1/x", **settings}, environment=environment
        )

    assert said in str(refusal.value)
    assert "c2hvcnQ" not in str(refusal.value)


async def test_the_secret_may_be_in_a_file(open_house: OpenHouse, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    async with receiving(200) as receiver:
        settings = {"alerts.webhook_secret_file": str(tmp_path / "secret")}
        house = await _house(open_house, receiver, settings=settings)
        await house.make(video(seed=1))
        await receiver.received(1)


async def test_the_commands_show_what_was_told_and_try_whether_somebody_listens(
    open_house: OpenHouse,
) -> None:
    async with receiving(503, 200) as receiver:
        house = await _house(open_house, receiver)
        await house.make(video(seed=1))
        await _until_tries(house, 1)
        place = ("--config", str(house.config))
        listed = await run("alerts", "list", *place)
        as_json = await run("alerts", "list", "--json", "--tenant", "demo", *place)
        with_url = (*place, "--set", f"alerts.webhook_url={receiver.url}")
        taken = await run("alerts", "test", *with_url, ALERTS_WEBHOOK_SECRET=SECRET)
        receiver.statuses = [500]
        not_taken = await run("alerts", "test", *with_url, ALERTS_WEBHOOK_SECRET=SECRET)
        messages = await receiver.received(3)
    nowhere = await run("alerts", "test", *place)

    (_, row) = listed.out.splitlines()
    assert [*row.split()[2:]] == ["demo", "total", "50", "%", "pending", "1", "answered", "503"]
    (told,) = json.loads(as_json.out)
    assert (told["id"], told["message"]["data"]["tenant"]) == (messages[0].id, "demo")
    assert (taken.code, taken.out.split()[0]) == (0, messages[1].id)
    assert json.loads(messages[1].body)["type"] == "test"
    assert (not_taken.code, "answered 500" in not_taken.err) == (1, True)
    assert (nowhere.code, "alerts.webhook_url is not set" in nowhere.err) == (1, True)
    for said in (listed, as_json, taken, not_taken, nowhere):
        assert SECRET not in said.out + said.err
