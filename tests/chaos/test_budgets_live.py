"""A key revoked, a budget lowered and a team moved under four workers with some 200 requests in flight.

The database keeps a tape: in the order in which the transactions were made, each purchase and each change. Played again,
it says what there was room for at any moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.app.opening import LEDGER, SYSTEM_CLOCK, opened_directory
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, KeyTerms, Role
from gateway.domain.window import Window
from gateway.tenants.contract import Declared
from gateway.tenants.declarations import declared_from_json, declared_to_json
from tests.chaos.callers import Received, seeded
from tests.chaos.invariants import examined
from tests.chaos.processes import TENANT, World, world
from tests.journeys.running import MODEL, PRICE_MICROS, video

WORKERS = 4
EACH = 50
"""How many requests each key has under way before anything is changed, and how many more it sends then."""

TAPE = """
CREATE TABLE tape (serial INTEGER PRIMARY KEY, at REAL NOT NULL, purchase TEXT, entry INTEGER);
CREATE TRIGGER purchase_on_tape AFTER INSERT ON purchases BEGIN
    INSERT INTO tape (at, purchase) VALUES ((julianday('now') - 2440587.5) * 86400.0, NEW.id);
END;
CREATE TRIGGER change_on_tape AFTER INSERT ON audit BEGIN
    INSERT INTO tape (at, entry) VALUES ((julianday('now') - 2440587.5) * 86400.0, NEW.serial);
END;
"""
_SLACK_SECONDS = 0.02
"""The tape's clock counts in milliseconds, and a refusal is timed from outside."""

pytestmark = pytest.mark.timeout(300)


def _purchases(count: int) -> Budget:
    """Room for so many."""
    return Budget(Money(count * PRICE_MICROS), Window.TOTAL)


@dataclass(frozen=True)
class Ended:
    """One request of a caller, from outside."""

    key_id: str
    begun_at: float
    ended_at: float
    status: int
    code: str


@dataclass
class Played:
    """What was in force, and what was spent and held, at one moment of the tape."""

    declared: dict[str, Declared]
    tenant_of: Mapping[str, str]
    """By the id of a key."""

    terms: Mapping[str, KeyTerms]
    revoked: set[str] = field(default_factory=set)
    bought: Counter[str] = field(default_factory=Counter)
    """How many purchases count for a tenant, or for a key."""

    def path(self, tenant: str) -> list[str]:
        parent = self.declared[tenant].parent
        return [*(self.path(parent) if parent else ()), tenant]

    def is_allowed(self, key_id: str) -> bool:
        return key_id not in self.revoked

    def has_room(self, key_id: str) -> bool:
        """In every budget above the key."""
        limits = [(key_id, self.terms[key_id].budgets)]
        limits += [(name, self.declared[name].limits) for name in self.path(self.tenant_of[key_id])]
        return all(
            (self.bought[holder] + 1) * PRICE_MICROS <= budget.limit.micros
            for holder, budgets in limits
            for budget in budgets
        )


@dataclass(frozen=True)
class Step:
    """One line of the tape: a purchase, or a change."""

    at: float
    purchase: tuple[str, str] | None
    """Its path, and whose key it was."""

    change: tuple[str, str, Any] | None
    """The action, what it was done to, and what is said of that now."""

    def played(self, before: Played) -> Played:
        after = replace(
            before, declared={**before.declared}, revoked={*before.revoked}, bought=before.bought.copy()
        )
        match self.purchase, self.change:
            case (path, key_id), None:
                after.bought.update([*path.split("/"), key_id])
            case None, ("tenant changed", name, said):
                after.declared[name] = declared_from_json(name, said)
            case None, ("key revoked", what, _):
                after.revoked.add(what.partition("#")[2])
        return after


def _tape(here: World) -> Sequence[Step]:
    with closing(sqlite3.connect(f"file:{here.storage / LEDGER}?mode=ro", uri=True)) as books:
        return [
            Step(
                at,
                None if path is None else (path, key_id),
                None if action is None else (action, what, json.loads(after) if after else None),
            )
            for at, path, key_id, action, what, after in books.execute(
                "SELECT tape.at, path, key_id, action, what, after FROM tape "
                "LEFT JOIN purchases ON purchases.id = purchase LEFT JOIN audit ON audit.serial = entry "
                "ORDER BY tape.serial"
            )
        ]


class Organisation:
    """Four keys of two teams of one organisation, another organisation, and somebody who administers them."""

    def __init__(self, here: World, session: aiohttp.ClientSession, received: Received, url: str) -> None:
        self.here = here
        self.session = session
        self.received = received
        self.url = url
        self.keys: dict[str, str] = {}
        """By id."""

        self.admin = ""
        self.ended: list[Ended] = []
        self.under_way = 0

    async def ask(self, key_id: str, seed: int) -> None:
        self.under_way += 1
        begun_at = SYSTEM_CLOCK()
        body = video(prompt="a red fox in the snow", seed=seed)
        headers = {"x-api-key": self.keys[key_id]}
        async with self.session.post(f"{self.url}/v1/{MODEL}", json=body, headers=headers) as answer:
            media = await answer.read()
            code = "" if answer.status == 200 else (await answer.json())["code"]
            if answer.status != 200:
                assert "Retry-After" not in answer.headers
        if answer.status == 200:
            self.received.note(f"seed {seed}", media)
        self.ended.append(Ended(key_id, begun_at, SYSTEM_CLOCK(), answer.status, code))
        self.under_way -= 1

    async def change(self, method: str, path: str, body: Any = None) -> None:
        headers = {"x-api-key": self.admin}
        async with self.session.request(
            method, f"{self.url}/admin{path}", json=body, headers=headers
        ) as answer:
            assert answer.status == 200, await answer.text()

    async def until_bought(self, count: int) -> None:
        """Until so many purchases are on the tape."""
        async with asyncio.timeout(120):
            while (
                sum(step.purchase is not None for step in await asyncio.to_thread(_tape, self.here)) < count
            ):
                await asyncio.sleep(0.02)


SEEDS = [os.environ["CHAOS_SEED"]] if "CHAOS_SEED" in os.environ else ["1", "2"]


@pytest.mark.parametrize("seed", SEEDS)
async def test_changes_under_two_hundred_requests_count_from_their_commit_on_to_the_micro_dollar(
    tmp_path: Path, seed: str
) -> None:
    chance = seeded(seed)
    declared = {
        "acme": Declared("acme", budgets=(_purchases(4 * EACH + chance.randint(40, 60)),)),
        "zenith": Declared("zenith", budgets=(_purchases(chance.randint(5, 20)),)),
        "film": Declared("film", parent="acme", budgets=(_purchases(4 * EACH),)),
        "paint": Declared("paint", parent="acme", budgets=(_purchases(4 * EACH),)),
        "root": Declared("root", budgets=(_purchases(0),)),
        TENANT: Declared(TENANT, budgets=(_purchases(0),)),
    }
    terms = {
        "first": ("film", KeyTerms()),
        "second": ("film", KeyTerms()),
        "third": ("paint", KeyTerms()),
        "fourth": ("paint", KeyTerms(budgets=(_purchases(EACH + chance.randint(2, 10)),))),
    }
    async with (
        world(tmp_path, settings={"admin.served_on": "listen"}) as here,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        said = {each.name: declared_to_json(each) for each in declared.values()}
        (here.directory / "tenants.yaml").write_text(json.dumps({"tenants": said}))
        received = Received()
        gateway = await here.start(workers=WORKERS)
        organisation = Organisation(here, session, received, gateway.url)
        ids: dict[str, str] = {}
        async with opened_directory(here.settings()) as directory:
            for name, (tenant, of_key) in terms.items():
                key = await directory.create(tenant, name, terms=of_key)
                ids[name] = (await directory.find_key(key)).id
                organisation.keys[ids[name]] = key
            organisation.admin = await directory.create("root", "admin", terms=KeyTerms(role=Role.ADMIN))
        with closing(sqlite3.connect(here.storage / LEDGER)) as books:
            books.executescript(TAPE)

        await here.faults(session, {"poll_error": {"status": 502}})
        asked = [
            (ids[name], number * EACH + each) for number, name in enumerate(terms) for each in range(EACH)
        ]
        later = [(key_id, 1000 + number) for key_id, number in asked]
        # Some ask for what somebody else asks for, too.
        later += [(key_id, 1000 + number) for key_id, number in chance.sample(asked, EACH)]
        later += [(chance.choice([*ids.values()]), number) for _, number in chance.sample(later, EACH)]
        chance.shuffle(later)
        first = [asyncio.create_task(organisation.ask(*each)) for each in asked]
        await organisation.until_bought(4 * EACH)

        changes = [
            ("DELETE", f"/keys/{ids['second']}", None),
            ("PUT", "/tenants/film", said["film"] | {"parent": "zenith"}),
            ("PUT", "/tenants/paint", said["paint"] | {"budgets": [_lowered(chance.randint(1, 12))]}),
        ]
        chance.shuffle(changes)
        portion = len(later) // (len(changes) + 1)
        second = []
        for change in changes:
            assert organisation.under_way >= 4 * EACH, "all of the first are still in flight"
            second += [asyncio.create_task(organisation.ask(*later.pop())) for _ in range(portion)]
            # Whichever of them comes first.
            await organisation.change(*change)
        second += [asyncio.create_task(organisation.ask(*each)) for each in later]
        await here.calm(session)
        await asyncio.gather(*first, *second)

        gateway.process.terminate()
        assert await gateway.ended() == 0
        figures = await examined(here, session, received)
        tape, log = _tape(here), here.log.read_text()

    start = Played(
        declared,
        {ids[name]: tenant for name, (tenant, _) in terms.items()},
        {ids[name]: of_key for name, (_, of_key) in terms.items()},
    )
    states = [*_states(start, tape)]
    _no_budget_was_passed(states, tape)
    _every_end_is_a_defined_one(organisation.ended, states, tape)
    assert figures.drift_micros == 0
    assert figures.payments == sum(step.purchase is not None for step in tape)
    assert "Traceback" not in log
    # It was tried, and not just not met.
    said_no = Counter(ended.code for ended in organisation.ended)
    assert len(organisation.ended) == len(first) + len(second)
    assert said_no["budget_exceeded"] > EACH / 2
    assert said_no["invalid_api_key"] + said_no["key_ended"] > 0


def _lowered(count: int) -> Any:
    return {"limit_usd": str(Money((2 * EACH + count) * PRICE_MICROS).usd), "per": "total"}


def _states(start: Played, tape: Sequence[Step]) -> Iterator[Played]:
    """What was in force before each line of the tape, and after the last."""
    state = start
    yield state
    for step in tape:
        state = step.played(state)
        yield state


def _no_budget_was_passed(states: Sequence[Played], tape: Sequence[Step]) -> None:
    for before, step in zip(states, tape, strict=False):
        if step.purchase is not None:
            path, key_id = step.purchase
            assert path.split("/") == before.path(before.tenant_of[key_id])
            assert before.is_allowed(key_id)
            assert before.has_room(key_id)


def _every_end_is_a_defined_one(
    ended: Sequence[Ended], states: Sequence[Played], tape: Sequence[Step]
) -> None:
    for each in ended:
        first = sum(step.at <= each.begun_at - _SLACK_SECONDS for step in tape)
        last = sum(step.at <= each.ended_at + _SLACK_SECONDS for step in tape)
        seen = states[first : last + 1]
        match each.status, each.code:
            case 200, _:
                pass
            case 401, "invalid_api_key" | "key_ended":
                assert not all(state.is_allowed(each.key_id) for state in seen), each
            case 406, "budget_exceeded":
                assert not all(state.has_room(each.key_id) for state in seen), each
            case _:
                raise AssertionError(each)
