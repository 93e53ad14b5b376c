"""What the directory of tenants promises: one truth in the database, every change written down, in force at once."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.documents.yaml_files import DocumentInvalid
from gateway.domain.errors import (
    BudgetUnknown,
    KeyEnded,
    KeyUnknown,
    StorageUnavailable,
    TenantUnknown,
    Unauthenticated,
)
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, KeyTerms, Rate, Role, TopUp
from gateway.domain.window import Window
from gateway.tenants import key_format
from gateway.tenants.contract import Declared, DeclaredKey
from gateway.tenants.sqlite import SqliteDirectory
from tests.contracts.ledger_books import NOON, MovableClock

DAY = Budget(Money.exactly(20), Window.DAY)
MONTH = Budget(Money.exactly(300), Window.MONTH)
FILE = [
    Declared("acme", budgets=(MONTH,), private_cache=True),
    Declared("film", parent="acme", budgets=(DAY,), models=frozenset({"flux-schnell"})),
    Declared("zenith", budgets=()),
]


class House:
    """The same database, opened again and again, each time as another process would."""

    def __init__(self, directory: Path, stack: ExitStack, *, marked: bool) -> None:
        self.path = directory / "ledger.sqlite3"
        self.stack = stack
        self.marked = marked
        self.clock = MovableClock()
        self.marks = stack.enter_context(closing(Marks(directory / "marks")))

    def database(self) -> SqliteDatabase:
        marks = self.marks if self.marked else None
        return self.stack.enter_context(closing(SqliteDatabase(self.path, marks=marks)))

    def open(self, database: SqliteDatabase | None = None) -> SqliteDirectory:
        directory = SqliteDirectory(database or self.database(), clock=self.clock)
        return self.stack.enter_context(closing(directory))


@pytest.fixture(params=["marked", "not marked"])
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    with ExitStack() as stack:
        made = House(tmp_path, stack, marked=request.param == "marked")
        await made.open().apply(FILE, who="a file")
        yield made


async def test_a_caller_has_everybody_above_it_and_its_keys_own_terms(house: House) -> None:
    directory = house.open()
    terms = KeyTerms(models=frozenset({"x"}), budgets=(DAY,), rate=Rate(60, 60, 10), expires_at=NOON + 9)
    key = await directory.create("film", "ci", terms=terms)

    caller = directory.authenticate(key)

    assert caller.terms == terms
    assert (caller.tenant.path, caller.tenant.cache_scope) == ("acme/film", "acme")
    assert [holder.name for holder in caller.holders] == [f"film#{caller.key_id}", "film", "acme"]
    assert directory.caller(caller.key_id) is caller


async def test_what_was_applied_twice_is_no_change(house: House) -> None:
    directory = house.open()
    before = await directory.audit()

    assert list(await directory.apply(FILE[::-1], who="again")) == []
    assert await directory.audit() == before


async def test_a_file_with_mistakes_changes_nothing(house: House) -> None:
    directory = house.open()
    before = await directory.declared(), await directory.audit(), directory.revision
    ring = [Declared("acme", parent="film", budgets=()), Declared("film", parent="acme")]

    with pytest.raises(DocumentInvalid, match="acme < film < acme"):
        await directory.apply(ring, who="a test")
    with pytest.raises(DocumentInvalid, match="budgets: is missing"):
        await directory.apply([Declared("acme")], who="a test")

    assert (await directory.declared(), await directory.audit(), directory.revision) == before


async def test_a_dry_run_tells_the_changes_and_makes_none(house: House) -> None:
    directory = house.open()
    before = await directory.audit()
    lower = [FILE[0], replace(FILE[1], budgets=(replace(DAY, limit=Money.exactly(10)),))]

    told = await directory.apply(lower, who="a test", dry_run=True)

    assert [(change.what, change.after) for change in told] == [
        ("film.budgets.day.limit_usd", "10"),
        ("zenith", None),
    ]
    assert await directory.audit() == before
    assert await directory.apply(lower, who="a test") == told
    assert [tenant.name for tenant in directory] == ["acme", "film"]


async def test_a_file_applied_at_a_start_does_not_undo_what_was_changed_since(house: House) -> None:
    directory = house.open()
    stopped = replace(FILE[1], budgets=(Budget(Money.ZERO, Window.TOTAL),))
    await directory.put(stopped, who="an emergency")

    assert list(await house.open().apply(FILE, who="start", if_other=True)) == []
    assert directory.find("film").budgets == stopped.budgets

    await house.open().apply(FILE, who="SIGHUP")
    assert directory.find("film").budgets == (DAY,)

    await directory.put(stopped, who="an emergency")
    await house.open().apply([*FILE, Declared("new", budgets=())], who="start", if_other=True)
    assert directory.find("film").budgets == (DAY,)


async def test_whom_no_file_has_named_survives_a_file_that_does_not_know_it(house: House) -> None:
    directory = house.open()
    await directory.put(Declared("pilot", parent="film"), who="key:1")

    await directory.apply([*FILE, Declared("new", budgets=())], who="a file")
    assert directory.find("pilot").path == "acme/film/pilot"

    with pytest.raises(DocumentInvalid, match="film, which it stands below, would be removed"):
        await directory.apply([FILE[0]], who="a file")
    await directory.apply([*FILE, Declared("pilot", parent="acme")], who="a file takes it over")
    await directory.apply(FILE, who="a file lets it go")
    with pytest.raises(TenantUnknown, match="pilot"):
        directory.find("pilot")


async def test_a_tenant_is_moved_with_all_below_it_and_not_below_itself(house: House) -> None:
    directory = house.open()
    await directory.put(Declared("pilot", parent="film"), who="a test")
    key = await directory.create("pilot", "")

    (change,) = await directory.move("film", parent="zenith", who="a test")

    assert (change.what, change.before, change.after) == ("film.parent", "acme", "zenith")
    assert directory.authenticate(key).tenant.path == "zenith/film/pilot"
    with pytest.raises(DocumentInvalid, match="film < pilot < film"):
        await directory.move("film", parent="pilot", who="a test")
    with pytest.raises(TenantUnknown, match="did you mean zenith"):
        await directory.move("film", parent="zenit", who="a test")
    with pytest.raises(DocumentInvalid, match="budgets: is missing"):
        await directory.move("pilot", parent=None, who="a test")


async def test_who_has_others_below_is_not_removed_and_who_is_removed_opens_nothing(house: House) -> None:
    directory = house.open()
    key = await directory.create("film", "")

    with pytest.raises(DocumentInvalid, match="move it first"):
        await directory.remove("acme", who="a test")
    await directory.remove("film", who="a test")

    with pytest.raises(Unauthenticated, match="tenant"):
        directory.authenticate(key)
    with pytest.raises(TenantUnknown):
        await directory.create("film", "")
    await directory.put(FILE[1], who="a test")
    assert directory.authenticate(key).tenant.budgets == (DAY,)


async def test_every_change_is_written_down_with_who_and_what_was_before_and_after(house: House) -> None:
    directory = house.open()
    (last, *_) = await directory.audit(limit=1)
    house.clock.now += 60
    key = await directory.create("film", "ci", who="ann")
    caller = directory.authenticate(key)
    await directory.move("film", parent="zenith", who="bob")
    await directory.top_up("film", Money.exactly(5), reason="launch", who="carol")
    await directory.amend(caller.key_id, name="lab", who="dan")
    new = await directory.rotate(key, overlap_seconds=10, who="eve")
    following = directory.authenticate(new).key_id
    await directory.revoke(new, who="fay")

    entries = [entry for entry in await directory.audit() if entry.serial > last.serial]

    of_old, of_new = f"film#{caller.key_id}", f"film#{following}"
    assert [(entry.who, entry.action, entry.what) for entry in reversed(entries)] == [
        ("ann", "key created", of_old),
        ("bob", "tenant changed", "film"),
        ("carol", "topped up", "film"),
        ("dan", "key amended", of_old),
        ("eve", "key rotated", of_new),
        ("eve", "key rotated", of_old),
        ("fay", "key revoked", of_new),
    ]
    assert {entry.at for entry in entries} == {NOON + 60}
    said = {"budgets": [{"limit_usd": "20", "per": "day"}], "models": ["flux-schnell"]}
    moved = entries[-2]
    assert (moved.before, moved.after) == ({"parent": "acme", **said}, {"parent": "zenith", **said})
    assert (entries[3].before, entries[3].after) == ({"name": "ci"}, {"name": "lab"})
    assert [entry.serial for entry in await directory.audit(limit=2, before=entries[1].serial)] == [
        entry.serial for entry in entries[2:4]
    ]
    assert key not in str(entries)
    assert new not in str(entries)


@pytest.mark.parametrize("statement", ["DELETE FROM audit", "UPDATE audit SET who = 'nobody'"])
async def test_the_audit_log_is_only_added_to(house: House, statement: str) -> None:
    with (
        closing(sqlite3.connect(house.path)) as somebody,
        pytest.raises(sqlite3.IntegrityError, match="only added to"),
    ):
        somebody.execute(statement)


CHANGES: dict[str, Callable[[SqliteDirectory, str], Awaitable[object]]] = {
    "put": lambda directory, _: directory.put(replace(FILE[1], budgets=()), who=""),
    "move": lambda directory, _: directory.move("film", parent="zenith", who=""),
    "remove": lambda directory, _: directory.remove("film", who=""),
    "apply": lambda directory, _: directory.apply([FILE[0], replace(FILE[1], budgets=())], who=""),
    "top up": lambda directory, _: directory.top_up("film", Money(1), reason="x", who=""),
    "top up above": lambda directory, _: directory.top_up("acme", Money(1), reason="x", who=""),
    "amend": lambda directory, key: directory.amend(
        key, change=lambda terms: replace(terms, role=Role.READER)
    ),
    "rotate": lambda directory, key: directory.rotate(key, overlap_seconds=60),
    "revoke": lambda directory, key: directory.revoke(key),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_is_in_force_at_once_in_every_process_and_for_every_reservation(
    house: House, change: str
) -> None:
    database = house.database()
    gateway, command = house.open(database), house.open()
    key = await command.create("film", "")
    before, revision = gateway.authenticate(key), gateway.revision
    place = Marks.place("keys")
    mark = house.marks.read(place)

    await CHANGES[change](command, key)

    if house.marked:
        assert house.marks.read(place) != mark
    # The transaction sees it first: whatever this process has in its memory.
    try:
        seen: Caller | str | None = await database.write(
            lambda connection: gateway.in_force(connection, before)
        )
    except KeyEnded as ended:
        seen = {before.key_id: None}.get(ended.key_id, "somebody else's")
    assert seen != before
    assert gateway.caller(before.key_id) == seen
    assert gateway.revision != revision


async def test_a_change_that_fails_to_commit_leaves_no_terms_behind(house: House) -> None:
    database = house.database()
    gateway = house.open(database)
    caller = gateway.authenticate(await gateway.create("film", ""))
    seen: list[Caller | str] = []

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE keys SET revoked_at = 1")
        try:
            gateway.in_force(connection, caller)
        except KeyEnded:
            seen.append("ended")
        raise ValueError("after all not")

    with pytest.raises(ValueError, match="after all not"):
        await database.write(fail)

    assert seen == ["ended"]
    assert gateway.caller(caller.key_id) is caller
    assert await database.write(lambda connection: gateway.in_force(connection, caller)) is caller


async def test_what_is_in_force_costs_nothing_to_ask_while_nothing_changes(house: House) -> None:
    database = house.database()
    gateway = house.open(database)
    caller = gateway.authenticate(await gateway.create("film", ""))
    statements: list[str] = []

    def ask(connection: sqlite3.Connection) -> Caller:
        connection.set_trace_callback(statements.append)
        try:
            return gateway.in_force(connection, caller)
        finally:
            connection.set_trace_callback(None)

    assert await database.write(ask) is caller
    assert len(statements) == 1


async def test_the_callers_are_those_whose_keys_are_in_force(house: House) -> None:
    directory = house.open()
    stays = directory.authenticate(await directory.create("film", "stays", terms=KeyTerms(budgets=(DAY,))))
    await directory.revoke(await directory.create("film", "is revoked"))
    await directory.create("film", "expires", terms=KeyTerms(expires_at=NOON + 60))
    before = {caller.key_id for caller in directory.callers()}
    house.clock.now += 60

    assert (len(before), list(directory.callers())) == (2, [stays])


async def test_a_key_ends_by_the_clock_and_the_revision_with_it(house: House) -> None:
    database = house.database()
    directory = house.open(database)
    key = await directory.create("film", "", terms=KeyTerms(expires_at=NOON + 60))
    lasting = await directory.create("film", "")
    caller, revision = directory.authenticate(key), directory.revision

    house.clock.now = NOON + 59.9
    assert directory.authenticate(key) is caller
    assert directory.revision == revision

    house.clock.now = NOON + 60
    assert directory.revision != revision
    with pytest.raises(Unauthenticated, match="expired"):
        directory.authenticate(key)
    assert directory.caller(caller.key_id) is None
    with pytest.raises(KeyEnded, match="expired"):
        await database.write(lambda connection: directory.in_force(connection, caller))
    assert directory.authenticate(lasting).tenant.name == "film"
    assert directory.revision == directory.revision


async def test_a_rotated_key_is_good_for_the_overlap_and_its_successor_has_its_terms(house: House) -> None:
    directory = house.open()
    terms = KeyTerms(role=Role.ADMIN, budgets=(DAY,), expires_at=NOON + 3600)
    old = await directory.create("film", "ci", terms=terms)

    new = await directory.rotate(old, overlap_seconds=60)

    assert directory.authenticate(new).terms == terms
    assert directory.authenticate(old).terms == replace(terms, expires_at=NOON + 60)
    known = {key.hint: key for key in await directory.listed("film")}
    first, second = known[old[:12]], known[new[:12]]
    assert (first.replaced_by, second.replaced_by, second.name) == (second.id, None, "ci")
    house.clock.now += 60
    with pytest.raises(Unauthenticated, match="expired"):
        directory.authenticate(old)
    assert directory.authenticate(new).terms == terms
    await directory.rotate(new, overlap_seconds=1e9)
    assert directory.authenticate(new).terms.expires_at == NOON + 3600


async def test_a_top_up_counts_in_its_window_for_the_budget_it_names(house: House) -> None:
    directory = house.open()
    await directory.put(replace(FILE[1], budgets=(DAY, MONTH)), who="")
    with pytest.raises(BudgetUnknown, match="day, month"):
        await directory.top_up("film", Money(1), reason="x", who="")
    with pytest.raises(BudgetUnknown, match="There is no budget wek"):
        await directory.top_up("film", Money(1), reason="x", budget="wek", who="")

    added = await directory.top_up("film", Money.exactly(5), reason="launch", budget="day", who="")

    assert added == TopUp(Money.exactly(5), NOON, "launch")
    day, month = directory.find("film").budgets
    assert (day.top_ups, month.top_ups) == ((added,), ())
    span, tomorrow = DAY.per.span(NOON), DAY.per.span(NOON + 86_400)
    assert span is not None
    assert tomorrow is not None
    assert (day.limit_in(span), day.limit_in(tomorrow)) == (Money.exactly(25), Money.exactly(20))


async def test_a_keys_budget_is_topped_up_apart_from_its_tenants(house: House) -> None:
    directory = house.open()
    key = await directory.create("film", "", terms=KeyTerms(budgets=(DAY,)))

    await directory.top_up("film", Money.exactly(5), reason="launch", key=key, who="")

    caller = directory.authenticate(key)
    assert [len(holder.budgets[0].top_ups) for holder in caller.holders] == [1, 0, 0]
    with pytest.raises(KeyUnknown):
        await directory.top_up("acme", Money.exactly(5), reason="launch", key=key, who="")


async def test_when_a_key_was_last_used_is_written_down_and_is_no_change_of_it(house: House) -> None:
    directory = house.open()
    key = await directory.create("film", "")
    caller = directory.authenticate(key)
    house.clock.now += 30
    directory.authenticate(key)
    before = directory.revision, await directory.audit()

    await directory.write_down_uses()
    await directory.write_down_uses()

    (listed,) = await directory.listed("film")
    assert listed.last_used_at == NOON + 30
    assert (directory.revision, await directory.audit()) == before
    assert directory.authenticate(key) is caller


async def test_no_two_keys_with_a_rate_have_one_place(house: House) -> None:
    first, second = house.open(), house.open()
    rated = KeyTerms(rate=Rate(1, 1, 1))
    made = await asyncio.gather(
        *(directory.create("film", "", terms=rated) for directory in (first, second) for _ in range(5))
    )
    plain = await first.create("film", "")
    assert first.authenticate(plain).place == 0
    await first.amend(plain, change=lambda _: rated)
    made.append(await second.rotate(plain, overlap_seconds=60))

    places = [second.authenticate(key).place for key in (*made, plain)]

    assert len(set(places)) == len(places)
    assert 0 not in places


async def test_keys_of_before_are_there_after_the_tables_have_changed(tmp_path: Path) -> None:
    before = _as_it_was_before(tmp_path / "ledger.sqlite3")
    with ExitStack() as stack:
        directory = House(tmp_path, stack, marked=True).open()
        assert not await directory.was_applied()
        await directory.apply([Declared("demo", budgets=())], who="start", if_other=True)

        assert await directory.was_applied()
        assert directory.authenticate(before).tenant.name == "demo"
        (listed,) = await directory.listed("demo")
        assert (listed.name, listed.terms) == ("old", KeyTerms())
        await directory.revoke(before)
        with pytest.raises(Unauthenticated, match="revoked"):
            directory.authenticate(before)


def _as_it_was_before(path: Path) -> str:
    """A database of two versions ago, with a key in it."""
    key = "gwk_a key of before"
    with closing(sqlite3.connect(path)) as books, books:
        books.executescript(
            """
            CREATE TABLE schema_versions (room TEXT PRIMARY KEY, version INTEGER NOT NULL);
            INSERT INTO schema_versions VALUES ('tenants', 1);
            CREATE TABLE keys (
                id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, hint TEXT NOT NULL,
                hash BLOB NOT NULL UNIQUE, created_at REAL NOT NULL, revoked_at REAL
            ) WITHOUT ROWID;
            CREATE TABLE keys_revision (revision INTEGER NOT NULL);
            INSERT INTO keys_revision VALUES (0);
            CREATE TRIGGER key_created AFTER INSERT ON keys
                BEGIN UPDATE keys_revision SET revision = revision + 1; END;
            CREATE TRIGGER key_changed AFTER UPDATE ON keys
                BEGIN UPDATE keys_revision SET revision = revision + 1; END;
            """
        )
        row = ("k1", "demo", "old", key[:12], hashlib.sha256(key.encode()).digest(), NOON)
        books.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
    return key


async def test_uses_that_could_not_be_written_down_are_written_down_later(house: House) -> None:
    directory = house.open()
    directory.authenticate(await directory.create("film", ""))
    with closing(sqlite3.connect(house.path)) as somebody, somebody:
        somebody.execute("ALTER TABLE keys RENAME COLUMN last_used_at TO elsewhere")
    with pytest.raises(StorageUnavailable):
        await directory.write_down_uses()
    with closing(sqlite3.connect(house.path)) as somebody, somebody:
        somebody.execute("ALTER TABLE keys RENAME COLUMN elsewhere TO last_used_at")

    await directory.write_down_uses()

    assert [key.last_used_at for key in await directory.listed(None)] == [NOON]


async def test_what_is_said_comes_out_as_it_went_in(house: House) -> None:
    assert await house.open().declared() == FILE


ELSEWHERE = key_format.made()
"""A key that no gateway has made."""


def _with(*keys: DeclaredKey, name: str = "film") -> list[Declared]:
    return [replace(each, keys=keys) if each.name == name else each for each in FILE]


def _declared(key: str = ELSEWHERE, **terms: Any) -> DeclaredKey:
    return DeclaredKey(key_format.hash_text(key), "ci", KeyTerms(**terms))


async def test_a_key_that_was_made_elsewhere_opens_what_its_declaration_says(house: House) -> None:
    directory, other = house.open(), house.open()
    with pytest.raises(Unauthenticated):
        other.authenticate(ELSEWHERE)

    made = await directory.apply(_with(_declared(rate=Rate(60, 60, 10))), who="a file")

    caller = other.authenticate(ELSEWHERE)
    assert (caller.tenant.name, caller.terms.rate) == ("film", Rate(60, 60, 10))
    assert caller.place > 0
    (change,) = made
    assert change.what == f"film.keys.{key_format.hash_text(ELSEWHERE)[:15]}"
    assert ELSEWHERE not in str(made)
    (known,) = await directory.listed("film")
    assert (known.name, known.id) == ("ci", caller.key_id)
    assert known.is_declared is True

    await directory.apply(_with(_declared(role=Role.READER)), who="a file")
    amended = other.authenticate(ELSEWHERE)
    assert (amended.key_id, amended.terms) == (caller.key_id, KeyTerms(role=Role.READER))
    assert list(await directory.apply(_with(_declared(role=Role.READER)), who="a file")) == []


async def test_a_key_that_is_declared_no_more_opens_nothing_until_it_is_again(house: House) -> None:
    directory, other = house.open(), house.open()
    await directory.apply(_with(_declared()), who="a file")
    caller = other.authenticate(ELSEWHERE)

    await directory.apply(FILE, who="a file")
    with pytest.raises(Unauthenticated):
        other.authenticate(ELSEWHERE)
    with pytest.raises(KeyUnknown):
        await directory.revoke(caller.key_id)

    await directory.apply(_with(_declared()), who="a file")
    assert other.authenticate(ELSEWHERE).key_id == caller.key_id
    await directory.apply([each for each in FILE if each.name != "film"], who="a file")
    with pytest.raises(Unauthenticated):
        other.authenticate(ELSEWHERE)
    # The tenant is back, and its key is not.
    await directory.apply(FILE, who="a file")
    with pytest.raises(Unauthenticated):
        other.authenticate(ELSEWHERE)


async def test_a_declared_key_goes_with_the_tenant_that_declares_it(house: House) -> None:
    directory = house.open()
    for name in ("zenith", "acme", "film"):
        await directory.apply(_with(_declared(), name=name), who="a file")
        assert directory.authenticate(ELSEWHERE).tenant.name == name


async def test_a_declared_key_that_was_revoked_stays_so_whatever_is_applied(house: House) -> None:
    directory = house.open()
    await directory.apply(_with(_declared()), who="a file")
    await directory.revoke(directory.authenticate(ELSEWHERE).key_id)

    for file in (_with(_declared(role=Role.READER)), FILE, _with(_declared())):
        await directory.apply(file, who="a file")
        with pytest.raises(Unauthenticated, match="revoked"):
            directory.authenticate(ELSEWHERE)


async def test_what_a_declared_key_may_is_said_with_its_tenant_alone(house: House) -> None:
    directory = house.open()
    await directory.apply(_with(_declared()), who="a file")
    identity = directory.authenticate(ELSEWHERE).key_id

    with pytest.raises(DocumentInvalid, match="declared with film"):
        await directory.rotate(identity, overlap_seconds=0)
    with pytest.raises(DocumentInvalid, match="declared with film"):
        await directory.amend(identity, name="another")


async def test_a_key_is_one_tenants_and_declared_or_made_and_not_both(house: House) -> None:
    directory = house.open()
    made = await directory.create("film", "laptop")
    await directory.apply(_with(_declared()), who="a file")
    before = await directory.audit()

    with pytest.raises(DocumentInvalid, match="made by this gateway"):
        await directory.apply(_with(_declared(made)), who="a file", dry_run=True)
    with pytest.raises(DocumentInvalid, match="key of film already"):
        await directory.put(replace(FILE[2], keys=(_declared(),)), who="somebody")

    assert await directory.audit() == before
    assert directory.authenticate(made).tenant.name == "film"


async def test_a_tenant_that_is_moved_keeps_the_keys_that_it_declares(house: House) -> None:
    directory = house.open()
    await directory.apply(_with(_declared()), who="a file")

    await directory.move("film", parent="zenith", who="somebody")

    assert directory.authenticate(ELSEWHERE).tenant.path == "zenith/film"
