"""Tenants' keys: made and revoked by commands of another process, in force at once, and kept nowhere."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from tests.journeys.conftest import OpenHouse
from tests.journeys.program import run
from tests.journeys.running import MODEL, House


async def test_a_key_that_a_command_made_works_at_once_and_a_revoked_one_no_more(house: House) -> None:
    made = await run("keys", "create", "demo", "--name", "laptop", "--config", house.config)
    key = made.out.strip()
    house.secrets.add(key)

    assert (made.code, made.err) == (0, "")
    assert re.fullmatch(r"gwk_[0-9A-Za-z]{39}\n", made.out)
    assert (await house.make(key=key)).status == 200

    revoked = await run("keys", "revoke", key, "--config", house.config)
    assert revoked.code == 0, revoked.err
    assert key not in revoked.out
    answer = await house.make(key=key)
    assert "revoked" in answer.refused(401, "invalid_api_key")["error"]
    # The others go on.
    assert (await house.make()).cache == "hit"


async def test_keys_are_listed_by_their_beginning_and_revoked_by_it_or_by_their_id(
    open_house: OpenHouse,
) -> None:
    house = await open_house(tenants={"demo": {"budgets": []}, "other": {"budgets": []}})
    second = await house.new_key("other")
    listed = await run("keys", "list", "--config", house.config)
    heading, first_row, second_row = listed.out.splitlines()

    assert heading.split() == [
        *("ID", "TENANT", "KEY", "ROLE", "CREATED", "USED", "EXPIRES", "REVOKED", "NAME")
    ]
    assert first_row.split()[1:3] == ["demo", f"{house.key[:12]}…"]
    assert second_row.split()[1:3] == ["other", f"{second[:12]}…"]
    assert house.key not in listed.out
    of_other = await run("keys", "list", "other", "--config", house.config)
    assert of_other.out.splitlines() == [heading, second_row]

    for named in (first_row.split()[0], second_row.split()[2]):
        ended = await run("keys", "revoke", named, "--config", house.config)
        assert ended.code == 0, ended.err
        assert named.rstrip("…") in ended.out
    for key in (house.key, second):
        (await house.get("/v1/usage", key=key)).refused(401, "invalid_api_key")
    after = (await run("keys", "list", "--config", house.config)).out
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d", after)) == 4


async def test_a_key_for_nobody_is_not_made_and_the_nearest_tenant_is_named(house: House) -> None:
    made = await run("keys", "create", "dmo", "--config", house.config)

    assert (made.code, made.out) == (1, "")
    assert "demo" in made.err
    assert "Traceback" not in made.err


async def test_what_is_no_key_cannot_be_revoked(house: House) -> None:
    ended = await run("keys", "revoke", "gwk_nothing", "--config", house.config)

    assert ended.code == 1
    assert "gateway keys list" in ended.err


async def test_a_key_is_stored_only_as_a_hash(house: House) -> None:
    files = [path for path in (house.directory / "var").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert house.key.encode() not in path.read_bytes(), path
    with closing(sqlite3.connect(house.directory / "var" / "ledger.sqlite3")) as books:
        (hashed,) = books.execute("SELECT hash FROM keys").fetchone()
    assert len(hashed) == 32


async def test_the_keys_of_a_tenant_who_has_left_open_nothing_until_it_is_back(
    open_house: OpenHouse,
) -> None:
    both: Mapping[str, Any] = {"demo": {"budgets": []}, "guest": {"budgets": []}}
    house = await open_house(tenants=both)
    guest = await house.new_key("guest")
    house.declare({"demo": {"budgets": []}})
    await house.restart()
    (await house.get("/v1/usage", key=guest)).refused(401, "invalid_api_key")
    house.declare(both)
    await house.restart()

    assert (await house.get("/v1/usage", key=guest)).status == 200


async def test_a_key_in_the_address_opens_nothing(house: House) -> None:
    answer = await house.ask("POST", f"/v1/{MODEL}?x-api-key={house.key}", key="", json={"prompt": "x"})

    answer.refused(401, "invalid_api_key")
    assert house.key not in answer.body.decode()
