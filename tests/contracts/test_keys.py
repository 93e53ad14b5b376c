"""What the tenants' keys promise, sentence by sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.errors import KeyUnknown, StorageUnavailable, TenantUnknown, Unauthenticated
from gateway.tenants.contract import Declared
from gateway.tenants.sqlite import SqliteDirectory
from tests.contracts.ledger_books import NOON, MovableClock

TENANTS = [Declared(name, budgets=()) for name in ("acme", "other")]


class Registries:
    """The same keys, opened again and again, each time as another process would."""

    def __init__(self, path: Path, stack: ExitStack, *, marked: bool) -> None:
        self.path = path
        self.stack = stack
        self.marked = marked
        self.clock = MovableClock()

    async def open(self) -> SqliteDirectory:
        marks = self.marks() if self.marked else None
        database = SqliteDatabase(self.path, marks=marks)
        self.stack.callback(database.close)
        keys = SqliteDirectory(database, clock=self.clock)
        self.stack.callback(keys.close)
        await keys.apply(TENANTS, who="a test", if_other=True)
        return keys

    def marks(self) -> Marks:
        marks = Marks(self.path.with_name("marks"))
        self.stack.callback(marks.close)
        return marks


@pytest.fixture(params=["marked", "not marked"])
def registries(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Registries]:
    with ExitStack() as stack:
        yield Registries(tmp_path / "ledger.sqlite3", stack, marked=request.param == "marked")


async def test_a_key_opens_the_door_for_its_tenant(registries: Registries) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "laptop")

    caller = keys.authenticate(key)

    (listed,) = await keys.listed("acme")
    assert (caller.tenant.name, caller.key_id) == ("acme", listed.id)
    assert (listed.name, listed.created_at, listed.revoked_at) == ("laptop", NOON, None)
    assert key.startswith(listed.hint)


async def test_no_two_keys_are_alike_and_none_is_kept(registries: Registries) -> None:
    keys = await registries.open()
    made = {await keys.create("acme", "") for _ in range(50)}

    assert len(made) == 50
    stored = registries.path.read_bytes() + registries.path.with_name("ledger.sqlite3-wal").read_bytes()
    assert not [key for key in made if key.encode() in stored]


async def test_a_key_that_another_process_makes_or_revokes_is_known_at_once(registries: Registries) -> None:
    gateway, command = await registries.open(), await registries.open()
    key = await command.create("acme", "")
    assert gateway.authenticate(key).tenant.name == "acme"

    await command.revoke(key)

    with pytest.raises(Unauthenticated, match="revoked"):
        gateway.authenticate(key)


@pytest.mark.parametrize(
    "change", ["UPDATE keys SET revoked_at = 1", "UPDATE keys SET tenant = 'nobody'", "DELETE FROM keys"]
)
async def test_what_somebody_else_does_to_the_keys_is_known_within_a_second(
    registries: Registries, change: str
) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "")
    keys.authenticate(key)

    with closing(sqlite3.connect(registries.path)) as somebody, somebody:
        somebody.execute(change)

    registries.clock.now += 1
    with pytest.raises(Unauthenticated):
        keys.authenticate(key)


async def test_what_somebody_else_does_is_known_even_when_the_clock_is_set_back(
    registries: Registries,
) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "")
    keys.authenticate(key)

    with closing(sqlite3.connect(registries.path)) as somebody, somebody:
        somebody.execute("UPDATE keys SET revoked_at = 1")

    registries.clock.now -= 3600
    with pytest.raises(Unauthenticated):
        keys.authenticate(key)


async def test_the_revision_is_another_after_each_change_and_the_same_while_there_is_none(
    registries: Registries,
) -> None:
    gateway, command = await registries.open(), await registries.open()
    revisions = [gateway.revision]
    first = await command.create("acme", "")
    revisions.append(gateway.revision)
    await gateway.create("other", "")
    revisions.append(gateway.revision)
    await command.revoke(first)
    revisions.append(gateway.revision)

    assert len(set(revisions)) == 4
    gateway.authenticate(await gateway.create("acme", ""))
    before = gateway.revision
    registries.clock.now += 2
    with closing(sqlite3.connect(registries.path)) as somebody, somebody:
        somebody.execute("CREATE TABLE of_no_interest (x)")
    assert gateway.revision == before


async def test_keys_that_cannot_be_read_let_nobody_in(registries: Registries) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "")
    with closing(sqlite3.connect(registries.path)) as somebody, somebody:
        somebody.execute("ALTER TABLE keys_revision RENAME TO elsewhere")

    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            keys.authenticate(key)

    with closing(sqlite3.connect(registries.path)) as somebody, somebody:
        somebody.execute("ALTER TABLE elsewhere RENAME TO keys_revision")
    assert keys.authenticate(key).tenant.name == "acme"


@pytest.mark.parametrize("registries", ["marked"], indirect=True)
async def test_each_change_of_a_key_changes_the_mark_of_the_keys(registries: Registries) -> None:
    keys, marks = await registries.open(), registries.marks()
    place = marks.place("keys")
    seen = [marks.read(place)]
    key = await keys.create("acme", "")
    seen.append(marks.read(place))
    await keys.revoke(key)
    seen.append(marks.read(place))
    await keys.listed(None)

    assert len(set(seen)) == 3
    assert marks.read(place) == seen[-1]


@pytest.mark.parametrize("by", ["id", "hint", "key"])
async def test_a_key_is_revoked_by_its_id_its_hint_or_itself(registries: Registries, by: str) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "")
    (listed,) = await keys.listed(None)

    revoked = await keys.revoke({"id": listed.id, "hint": listed.hint, "key": key}[by])

    assert revoked.id == listed.id
    with pytest.raises(Unauthenticated):
        keys.authenticate(key)
    with pytest.raises(KeyUnknown):
        await keys.revoke(listed.id)


async def test_keys_are_made_for_known_tenants_only_and_the_nearest_is_named(registries: Registries) -> None:
    with pytest.raises(TenantUnknown, match="did you mean acme"):
        await (await registries.open()).create("acne", "")


async def test_the_keys_of_a_tenant_who_has_left_open_nothing(registries: Registries) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "")
    await keys.apply([TENANTS[1]], who="a test")

    with pytest.raises(Unauthenticated, match="tenant"):
        keys.authenticate(key)

    await keys.apply(TENANTS, who="a test")
    assert keys.authenticate(key).tenant.name == "acme"


@pytest.mark.parametrize(
    ("presented", "word"),
    [
        (None, "Missing x-api-key"),
        ("", "Missing x-api-key"),
        ("SG_0123456789abcdef", "not the upstream's own"),
        ("gwk_short", "cut short or mistyped"),
        ("\udcff\udcfe", "invalid"),
    ],
)
async def test_what_is_no_key_is_refused_with_what_is_wrong(
    registries: Registries, presented: str | None, word: str
) -> None:
    with pytest.raises(Unauthenticated, match=word):
        (await registries.open()).authenticate(presented)


async def test_a_mistyped_key_is_told_from_an_unknown_one(registries: Registries) -> None:
    keys = await registries.open()
    key = await keys.create("acme", "")
    mistyped = key[:10] + ("x" if key[10] != "x" else "y") + key[11:]

    with pytest.raises(Unauthenticated, match="mistyped"):
        keys.authenticate(mistyped)
    other = registries.path.with_name("other.sqlite3")
    elsewhere = await Registries(other, registries.stack, marked=registries.marked).open()
    with pytest.raises(Unauthenticated, match="does not know it"):
        elsewhere.authenticate(key)
