"""What the tenants' keys promise, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.errors import Unauthenticated
from gateway.domain.tenant import Tenant
from gateway.tenants.contract import KeyUnknown, TenantUnknown
from gateway.tenants.sqlite import SqliteKeys
from gateway.tenants.yaml_files import DeclaredTenants
from tests.contracts.ledger_books import NOON, MovableClock

TENANTS = DeclaredTenants({name: Tenant(name, ()) for name in ("acme", "other")})


class Registries:
    """The same keys, opened again and again, each time as another process would."""

    def __init__(self, path: Path, closing: ExitStack) -> None:
        self.path = path
        self.closing = closing

    def open(self, tenants: DeclaredTenants = TENANTS) -> SqliteKeys:
        database = SqliteDatabase(self.path)
        self.closing.callback(database.close)
        keys = SqliteKeys(database, tenants=tenants, clock=MovableClock())
        self.closing.callback(keys.close)
        return keys


@pytest.fixture
def registries(tmp_path: Path) -> Iterator[Registries]:
    with ExitStack() as closing:
        yield Registries(tmp_path / "ledger.sqlite3", closing)


async def test_a_key_opens_the_door_for_its_tenant(registries: Registries) -> None:
    keys = registries.open()
    key = await keys.create("acme", "laptop")

    caller = keys.authenticate(key)

    (listed,) = await keys.listed("acme")
    assert (caller.tenant.name, caller.key_id) == ("acme", listed.id)
    assert (listed.name, listed.created_at, listed.revoked_at) == ("laptop", NOON, None)
    assert key.startswith(listed.hint)


async def test_no_two_keys_are_alike_and_none_is_kept(registries: Registries) -> None:
    keys = registries.open()
    made = {await keys.create("acme", "") for _ in range(50)}

    assert len(made) == 50
    stored = registries.path.read_bytes() + registries.path.with_name("ledger.sqlite3-wal").read_bytes()
    assert not [key for key in made if key.encode() in stored]


async def test_a_key_that_another_process_makes_or_revokes_is_known_at_once(registries: Registries) -> None:
    gateway, command = registries.open(), registries.open()
    key = await command.create("acme", "")
    assert gateway.authenticate(key).tenant.name == "acme"

    await command.revoke(key)

    with pytest.raises(Unauthenticated, match="revoked"):
        gateway.authenticate(key)


@pytest.mark.parametrize("by", ["id", "hint", "key"])
async def test_a_key_is_revoked_by_its_id_its_hint_or_itself(registries: Registries, by: str) -> None:
    keys = registries.open()
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
        await registries.open().create("acne", "")


async def test_the_keys_of_a_tenant_who_has_left_open_nothing(registries: Registries) -> None:
    key = await registries.open().create("acme", "")

    with pytest.raises(Unauthenticated):
        registries.open(DeclaredTenants({})).authenticate(key)


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
        registries.open().authenticate(presented)


async def test_a_mistyped_key_is_told_from_an_unknown_one(registries: Registries) -> None:
    keys = registries.open()
    key = await keys.create("acme", "")
    mistyped = key[:10] + ("x" if key[10] != "x" else "y") + key[11:]

    with pytest.raises(Unauthenticated, match="mistyped"):
        keys.authenticate(mistyped)
    elsewhere = Registries(registries.path.with_name("other.sqlite3"), registries.closing).open()
    with pytest.raises(Unauthenticated, match="does not know it"):
        elsewhere.authenticate(key)
