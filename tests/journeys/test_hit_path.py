"""What the hit path knows by heart is true: whatever changes, whoever changes it, the next answer says so."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.blobs.disk import DiskBlobStore
from gateway.cache.disk import DiskGenerationCache
from gateway.database.marks import Marks
from gateway.domain.identity import Digest, Fingerprint
from tests.journeys.conftest import OpenHouse
from tests.journeys.program import run
from tests.journeys.running import MODEL, PRICE_MICROS, PROMPT, House, video
from tests.journeys.wire import LARGE, PATIENCE_SECONDS, SMALL, Reply, Wire, asking, fetching, learnt, wired

DAY_SECONDS = 24 * 3600
UNLIMITED: Mapping[str, Any] = {"demo": {"budgets": []}}


@asynccontextmanager
async def _known(
    house: House, body: bytes = SMALL, **options: Any
) -> AsyncIterator[tuple[Wire, bytes, Reply]]:
    """A connection, a request that is known by heart, and what is said to it."""
    house.insists = False
    request = asking(body, key=house.key, **options)
    async with wired(house.url) as wire:
        await wire.ask(request)
        (reply,) = await learnt(house, wire, request)
        assert (reply.status, reply.cache) == (200, "hit")
        yield wire, request, reply


async def _link(house: House, body: bytes = SMALL) -> str:
    """Path and query of a link to the media."""
    submitted = await house.submit(data=body, headers={"Content-Type": "application/json"})
    link = urlsplit((await house.result(submitted)).json["output"])
    return f"{link.path}?{link.query}"


def _fingerprint(reply: Reply) -> Fingerprint:
    return Fingerprint(reply.headers["cache-status"].partition('key="')[2].rstrip('"'))


def _digest(reply: Reply) -> Digest:
    return Digest(reply.headers["etag"].strip('"'))


def _path(house: House, reply: Reply) -> Path:
    digest = _digest(reply)
    return house.directory / "var" / "blobs" / "sha256" / digest[:2] / digest


# --- Keys


async def test_a_key_that_is_revoked_opens_nothing_from_the_next_request_on(house: House) -> None:
    async with _known(house) as (wire, request, _):
        second = await house.new_key("demo")
        await house.gateway.keys.revoke(house.key)

        refused = await wire.ask(request)
        assert (refused.status, json.loads(refused.body)["code"]) == (401, "invalid_api_key")
        assert (await wire.ask(request)).status == 401
        assert (await wire.ask(asking(SMALL, key=second))).cache == "hit"


async def test_a_key_that_another_process_revoked_opens_nothing_from_the_next_request_on(
    house: House,
) -> None:
    async with _known(house) as (wire, request, _), house.beside() as other:
        second = await house.new_key("demo")
        await learnt(house, wire, request, asking(SMALL, key=second))
        revoked = await run("keys", "revoke", house.key, "--config", house.config)
        assert revoked.code == 0, revoked.err
        assert (await wire.ask(request)).status == 401

        await other.keys.revoke(second)
        assert (await wire.ask(asking(SMALL, key=second))).status == 401


async def test_a_key_that_is_made_works_at_once_and_before_that_not_at_all(house: House) -> None:
    async with _known(house) as (wire, _, _), house.beside() as other:
        key = await other.keys.create("demo", "of a test")
        house.secrets.add(key)
        unknown = key[:-1] + ("a" if key[-1] != "a" else "b")

        assert (await wire.ask(asking(SMALL, key=unknown))).status == 401
        assert (await wire.ask(asking(SMALL, key=key))).cache == "hit"


async def test_while_the_keys_cannot_be_read_it_is_503_and_afterwards_as_before(house: House) -> None:
    async with _known(house) as (wire, request, _):
        with closing(sqlite3.connect(house.directory / "var" / "ledger.sqlite3")) as books:
            books.execute("ALTER TABLE keys_revision RENAME TO keys_revision_elsewhere")
            refused = await _until(wire, request, lambda reply: reply.status != 200)
            assert (refused.status, json.loads(refused.body)["code"]) == (503, "storage_unavailable")
            books.execute("ALTER TABLE keys_revision_elsewhere RENAME TO keys_revision")
        assert (await _until(wire, request, lambda reply: reply.status == 200)).cache == "hit"


async def _until(wire: Wire, request: bytes, seen: Callable[[Reply], bool]) -> Reply:
    """The first answer of which that is so; it is asked for until then."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            reply = await wire.ask(request)
            if seen(reply):
                return reply
            await asyncio.sleep(0.01)


# --- Money


async def test_the_credits_are_what_is_left_after_whatever_was_bought_or_held_anywhere(house: House) -> None:
    async with _known(house) as (wire, request, reply), house.beside() as other:
        assert reply.headers["x-remaining-credits"] == "24.996"
        await learnt(house, wire, request)
        bought = await house.ask("POST", f"{other.url}/v1/{MODEL}", json=video(seed=2))
        assert bought.headers["x-remaining-credits"] == "24.992"
        assert (await wire.ask(request)).headers["x-remaining-credits"] == "24.992"

        await learnt(house, wire, request)
        await house.hold()
        submitted = await house.ask("POST", f"{other.url}/v2/{MODEL}", json=video(seed=3))
        assert (await wire.ask(request)).headers["x-remaining-credits"] == "24.988"
        await learnt(house, wire, request)
        await house.let_go()
        assert (await house.result(submitted)).status == 200
        assert (await wire.ask(request)).headers["x-remaining-credits"] == "24.988"

        await house.faults({"failed": {"count": 1}})
        assert (await house.make(video(seed=4))).status == 502
        assert (await wire.ask(request)).headers["x-remaining-credits"] == "24.988"


@pytest.mark.parametrize(("per", "days"), [("day", 1), ("month", 32)])
async def test_when_a_window_has_passed_the_credits_are_all_there_again(
    open_house: OpenHouse, per: str, days: int
) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 1, "per": per}]}})
    now = datetime.now(UTC)
    house.clock.ahead_seconds = 12 * 3600 - (now.hour * 3600 + now.minute * 60 + now.second)
    async with _known(house) as (wire, request, reply):
        assert reply.headers["x-remaining-credits"] == "0.996"
        await learnt(house, wire, request)
        house.clock.ahead_seconds += days * DAY_SECONDS
        again = await wire.ask(request)
        assert (again.cache, again.headers["x-remaining-credits"]) == ("hit", "1")
        assert int(again.headers["age"]) >= days * DAY_SECONDS


async def test_a_budget_that_is_spent_stops_no_hit_and_every_miss(open_house: OpenHouse) -> None:
    house = await open_house(tenants={"demo": {"budgets": [{"limit_usd": 0.004, "per": "total"}]}})
    async with _known(house) as (wire, request, reply):
        assert reply.headers["x-remaining-credits"] == "0"
        other = asking(json.dumps(video(seed=2)).encode(), key=house.key)
        assert (await wire.ask(other)).status == 406
        assert (await wire.ask(request)).cache == "hit"
    assert (await house.bill()).micros == PRICE_MICROS == (await house.usage())["spent_micros"]


# --- What is cached


@asynccontextmanager
async def _stores(house: House) -> AsyncIterator[tuple[DiskGenerationCache, DiskBlobStore]]:
    """Cache and store as another process of the same storage has them."""
    var = house.directory / "var"
    async with AsyncExitStack() as stack:
        marks = stack.enter_context(closing(Marks(var / "marks")))
        cache = await asyncio.to_thread(DiskGenerationCache, var / "cache", max_bytes=1 << 28, marks=marks)
        stack.callback(cache.close)
        blobs = await asyncio.to_thread(DiskBlobStore, var / "blobs", max_bytes=1 << 30, marks=marks)
        stack.callback(blobs.close)
        yield cache, blobs


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_what_another_process_forgot_or_deleted_is_no_hit_any_more_and_is_fetched_again(
    house: House, body: bytes
) -> None:
    async with _known(house, body) as (wire, request, reply), _stores(house) as (cache, blobs):
        await learnt(house, wire, request)
        known = await house.answered_by_heart()
        await cache.forget(_fingerprint(reply))
        again = await wire.ask(request)
        assert (again.status, again.headers["x-cost"], again.body) == (200, "0", reply.body)
        assert await house.answered_by_heart() == known

        fetch = fetching(await _link(house, body))
        await learnt(house, wire, request, fetch)
        await blobs.delete(_digest(reply))
        gone = await wire.ask(fetch)
        assert (gone.status, json.loads(gone.body)["code"]) == (404, "blob_not_found")
        again = await wire.ask(request)
        assert (again.status, again.cache, again.headers["x-cost"]) == (200, "fwd=miss; stored", "0")
        assert (await wire.ask(fetch)).body == reply.body
        await learnt(house, wire, request, fetch)
    assert len((await house.bill()).jobs) == 1


async def test_what_another_process_remembered_instead_is_what_is_answered(house: House) -> None:
    async with _known(house) as (wire, request, reply), _stores(house) as (cache, _):
        other = asking(json.dumps(video(seed=2)).encode(), key=house.key)
        bought = await wire.ask(other)
        await learnt(house, wire, request, other)
        generation = await cache.get(_fingerprint(bought))
        assert generation is not None
        # Whatever may bring this about: an entry is a name, and may come to stand for something else.
        await cache.put(replace(generation, fingerprint=_fingerprint(reply)))
        again = await wire.ask(request)
        assert (again.cache, _fingerprint(again), again.body) == ("hit", _fingerprint(reply), bought.body)


async def test_what_was_evicted_is_no_hit_any_more(open_house: OpenHouse) -> None:
    house = await open_house(settings={"storage.max_bytes": "40KB"})
    async with _known(house) as (wire, request, reply):
        fetch = fetching(await _link(house))
        await learnt(house, wire, request, fetch)
        assert (await house.make(video(seed=2))).status == 200
        assert (await wire.ask(fetch)).status == 404
        again = await wire.ask(request)
        assert (again.cache, again.headers["x-cost"], again.body) == ("fwd=miss; stored", "0", reply.body)


def _replaced(path: Path) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(path.read_bytes()[::-1])
    beside.replace(path)


def _changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("first", ["by its link", "by the same bytes", "in other words"])
@pytest.mark.parametrize("damage", [Path.unlink, _replaced, _changed, _cut_short])
async def test_a_large_file_that_was_damaged_by_hand_is_not_sent_any_more(
    house: House, damage: Callable[[Path], None], first: str
) -> None:
    async with _known(house, LARGE) as (wire, request, reply):
        fetch = fetching(await _link(house, LARGE), "Range: bytes=0-99")
        await learnt(house, wire, request, fetch, request, request)
        path = _path(house, reply)
        path.chmod(0o600)
        damage(path)

        if first == "by its link":
            assert (await wire.ask(fetch)).status == 404
        again = await wire.ask(request if first != "in other words" else asking(b" " + LARGE, key=house.key))
        assert (again.status, again.cache, again.body) == (200, "fwd=miss; stored", reply.body)
        assert again.headers["x-cost"] == "0"
        await learnt(house, wire, request, fetch)


@pytest.mark.parametrize("damage", [Path.unlink, _replaced, _changed, _cut_short])
async def test_a_small_file_that_was_damaged_by_hand_is_found_out_soon_and_never_sent(
    house: House, damage: Callable[[Path], None]
) -> None:
    async with _known(house) as (wire, request, reply):
        path = _path(house, reply)
        path.chmod(0o600)
        damage(path)

        def found_out(said: Reply) -> bool:
            assert (said.status, said.body) == (200, reply.body)
            return said.cache != "hit"

        again = await _until(wire, request, found_out)
        assert (again.cache, again.headers["x-cost"]) == ("fwd=miss; stored", "0")
        assert (await wire.ask(request)).cache == "hit"


# --- Whose it is, and what is not for everybody


async def test_what_is_private_is_its_tenants_alone_however_well_it_is_known(open_house: OpenHouse) -> None:
    private = {"budgets": [], "cache": "private"}
    house = await open_house(tenants={"ann": private, "bob": private, "carol": {"budgets": []}})
    bob, carol = await house.new_key("bob"), await house.new_key("carol")
    async with _known(house) as (wire, anns, reply):
        await learnt(house, wire, anns)
        for key in (bob, carol):
            theirs = await wire.ask(asking(SMALL, key=key))
            assert (theirs.cache, theirs.headers["x-cost"]) == ("fwd=miss; stored", "0.004")
        known = await learnt(house, wire, anns, *(asking(SMALL, key=key) for key in (bob, carol)))
        assert len({_fingerprint(each) for each in known}) == 3
        assert [_fingerprint(each) for each in known].index(_fingerprint(reply)) == 0
        # In other words, too.
        spelt = json.dumps(video(), indent=1).encode()
        assert [_fingerprint(await wire.ask(asking(spelt, key=key))) for key in (house.key, bob, carol)] == [
            _fingerprint(each) for each in known
        ]
    assert len((await house.bill()).jobs) == 3


async def test_a_model_that_a_tenant_may_not_use_is_403_however_well_it_is_known(
    open_house: OpenHouse,
) -> None:
    house = await open_house(
        tenants={"demo": {"budgets": []}, "narrow": {"budgets": [], "models": ["fast-flux-schnell"]}}
    )
    narrow = await house.new_key("narrow")
    async with _known(house) as (wire, request, _):
        assert (await wire.ask(asking(SMALL, key=narrow))).status == 403
        assert (await wire.ask(request)).cache == "hit"
        assert (await wire.ask(asking(SMALL, key=narrow))).status == 403
        picture = json.dumps({"prompt": PROMPT}).encode()
        asked = [asking(picture, key=key, model="fast-flux-schnell") for key in (house.key, narrow)]
        assert [(await wire.ask(each)).cache for each in asked] == ["fwd=miss; stored", "hit"]
        await learnt(house, wire, *asked)
        # Now all is known that is needed: who it is, what is left, and the video.
        assert (await wire.ask(asking(SMALL, key=narrow))).status == 403


async def test_the_same_words_for_another_model_are_another_request(house: House) -> None:
    words = json.dumps({"prompt": PROMPT}).encode()
    async with _known(house, words, model="fast-flux-schnell") as (wire, request, reply):
        other = await wire.ask(asking(words, key=house.key, model="flux-schnell"))
        assert other.cache == "fwd=miss; stored"
        assert other.body != reply.body
        assert (await wire.ask(request)).body == reply.body


async def test_something_new_each_time_is_never_known(house: House) -> None:
    new = asking(json.dumps(video(seed=-1)).encode(), key=house.key)
    float_new = asking(json.dumps(video(seed=-1.0)).encode(), key=house.key)
    async with _known(house) as (wire, request, _):
        replies = [await wire.ask(each) for each in (new, new, float_new, new, request, float_new)]
    made = [reply for reply in replies if reply.cache != "hit"]

    assert [reply.cache for reply in made] == ["fwd=bypass; stored"] * 5
    assert {reply.headers["x-cost"] for reply in made} == {"0.004"}
    assert len({reply.headers["x-seed-value"] for reply in made}) == 5
    assert len((await house.bill()).jobs) == 6


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
async def test_a_link_that_has_run_out_opens_nothing_however_well_it_is_known(
    open_house: OpenHouse, body: bytes
) -> None:
    house = await open_house(settings={"links.lifetime_seconds": 1000})
    async with _known(house, body) as (wire, _, reply):
        fetch = fetching(await _link(house, body))
        assert (await learnt(house, wire, fetch))[0].body == reply.body
        house.clock.ahead_seconds = 990
        assert (await wire.ask(fetch)).status == 200
        house.clock.ahead_seconds = 1002
        refused = await wire.ask(fetch)
        assert (refused.status, json.loads(refused.body)["code"]) == (403, "link_invalid")


async def test_an_answer_grows_older_and_each_has_an_id_of_its_own(house: House) -> None:
    async with _known(house) as (wire, request, reply):
        house.clock.ahead_seconds = 100
        replies = [await wire.ask(request) for _ in range(300)]

    assert len({each.headers["x-request-id"] for each in (reply, *replies)}) == 301
    assert {int(each.headers["age"]) // 50 for each in replies} == {2}
    assert {each.body for each in replies} == {reply.body}


async def test_after_a_restart_and_while_it_drains_what_is_cached_is_served_all_the_same(
    house: House,
) -> None:
    async with _known(house) as (wire, request, reply):
        await house.gateway.drain()
        assert (await wire.ask(request)).cache == "hit"
        other = asking(json.dumps(video(seed=2)).encode(), key=house.key)
        assert (await wire.ask(other)).status == 503
    await house.restart()
    async with wired(house.url) as wire:
        assert [said.body for said in await learnt(house, wire, request)] == [reply.body]
    assert len((await house.bill()).jobs) == 1
