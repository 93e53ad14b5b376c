"""Tenants and their keys in SQLite: the one truth about who may spend what."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from gateway.database.json_text import to_text
from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.documents.yaml_files import DocumentInvalid, Mistake
from gateway.domain.clock import Clock
from gateway.domain.errors import (
    BudgetUnknown,
    KeyEnded,
    KeyUnknown,
    StorageUnavailable,
    Unauthenticated,
)
from gateway.domain.generation import Json
from gateway.domain.json_forms import utc
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, KeyTerms, Tenant, TopUp
from gateway.tenants import key_format
from gateway.tenants.contract import (
    KEYS_MARK,
    AuditEntry,
    Change,
    Declared,
    Key,
)
from gateway.tenants.declarations import (
    changes,
    declared_to_json,
    mistakes_in_keys,
    mistakes_in_tree,
    terms_to_json,
)
from gateway.tenants.sqlite_tables import (
    NOBODY,
    SCHEMA,
    amend_key,
    amendable_key,
    declare_keys,
    declared_in,
    find_declared,
    insert_key,
    key_in_force,
    keys_in,
    load,
    mistakes_in_made_keys,
    revision_of,
    tenant_unknown,
)

_SECONDS_BETWEEN_LOOKS = 1.0
_BUSY_TIMEOUT_SECONDS = 0.1
"""The event loop waits for it. Whoever reads is in nobody's way here, but for the moment in which a database is opened."""

T = TypeVar("T")

_ALL_TERMS = KeyTerms()
"""Those of a key of which nothing is said."""


class SqliteDirectory:
    """Keeps the contracts Tenants, Keys and Register.

    What is in force is held in memory, for as long as the mark of the keys is what it was. Once a second, and on each
    call where there are no marks, the database is asked besides, without reading it: SQLite's `data_version` says
    whether anybody has committed since.
    """

    def __init__(self, database: SqliteDatabase, *, clock: Clock) -> None:
        database.migrate("tenants", SCHEMA)
        self._database = database
        self._clock = clock
        self._watch = sqlite3.connect(database.path, isolation_level=None, timeout=_BUSY_TIMEOUT_SECONDS)
        self._marks = database.marks
        self._place = Marks.place(KEYS_MARK)
        self._mark = 0
        self._looked_at = -math.inf
        self._data_version = -1
        self._snapshot = NOBODY
        self._turns = 0
        """How often `authenticate` has begun to answer otherwise."""

        self._next_end = math.inf
        """When the next key expires."""

        self._writers = NOBODY
        """What the thread that writes saw last. Nobody else looks at it: its transaction may yet fail to commit."""

        self._uses: dict[str, float] = {}

    def close(self) -> None:
        self._watch.close()

    # --- Tenants

    def find(self, name: str) -> Tenant:
        self._look()
        return _named(name, self._snapshot.tenants)

    def __iter__(self) -> Iterator[Tenant]:
        self._look()
        return iter(self._snapshot.tenants.values())

    # --- Keys

    def authenticate(self, presented: str | None) -> Caller:
        if not presented:
            raise Unauthenticated(
                "Missing x-api-key in header: send your tenant key as `x-api-key: gwk_...`; "
                "whoever runs this gateway makes one with `gateway keys create TENANT`."
            )
        now = self._look()
        digest = key_format.hashed(presented)
        caller = self._snapshot.callers.get(digest)
        if caller is None:
            raise Unauthenticated(self._why_not(presented, digest))
        if _has_ended(caller, now):
            raise Unauthenticated("Unauthorized. This API key has expired: ask for a new one.")
        self._uses[caller.key_id] = now
        return caller

    def _why_not(self, presented: str, digest: bytes) -> str:
        if digest in self._snapshot.revoked:
            return "Unauthorized. This API key has been revoked: ask for a new one."
        if digest in self._snapshot.removed:
            return "Unauthorized. The tenant of this API key is not one of this gateway's any more."
        if not presented.startswith(key_format.PREFIX):
            return (
                "Unauthorized. API key is invalid: the gateway takes its tenants' keys, which begin with "
                f"`{key_format.PREFIX}`, and not the upstream's own."
            )
        if not key_format.is_well_formed(presented):
            return (
                "Unauthorized. API key is invalid: it is cut short or mistyped (its checksum does not fit)."
            )
        return "Unauthorized. API key is invalid: it is well formed, but this gateway does not know it."

    def caller(self, key_id: str) -> Caller | None:
        now = self._look()
        caller = self._snapshot.by_id.get(key_id)
        return None if caller is None or _has_ended(caller, now) else caller

    def callers(self) -> Iterator[Caller]:
        now = self._look()
        return (caller for caller in self._snapshot.by_id.values() if not _has_ended(caller, now))

    @property
    def revision(self) -> int:
        if self._look() >= self._next_end:
            self._turn()
        return self._turns

    def in_force(self, connection: sqlite3.Connection, caller: Caller) -> Caller:
        """The caller as the transaction on `connection` has it: for the thread that writes. Raises KeyEnded."""
        revision = revision_of(connection)
        snapshot = self._snapshot if self._snapshot.revision == revision else self._writers
        if snapshot.revision != revision:
            snapshot = self._writers = load(connection, revision)
        known = snapshot.by_id.get(caller.key_id)
        if known is None:
            raise KeyEnded(
                "This API key was revoked, or its tenant removed, before anything was bought for it.",
                key_id=caller.key_id,
            )
        if _has_ended(known, self._clock()):
            raise KeyEnded("This API key expired before anything was bought for it.", key_id=caller.key_id)
        return known

    def _look(self) -> float:
        """Know what is known by now; the time."""
        now = self._clock()
        if self._marks is not None:
            # Before anything is read: what changes after that is another mark.
            mark = self._marks.read(self._place)
            if mark == self._mark and 0.0 <= now - self._looked_at < _SECONDS_BETWEEN_LOOKS:
                return now
            self._mark = mark
        self._looked_at = -math.inf
        try:
            self._refresh()
        except sqlite3.OperationalError as error:
            raise StorageUnavailable(
                f"The keys cannot be read right now ({error}); try again shortly."
            ) from error
        self._looked_at = now
        return now

    def _refresh(self) -> None:
        (data_version,) = self._watch.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return
        self._watch.execute("BEGIN")
        try:
            revision = revision_of(self._watch)
            if revision != self._snapshot.revision:
                self._snapshot = load(self._watch, revision)
                self._turn()
        finally:
            self._watch.execute("ROLLBACK")
        self._data_version = data_version

    def _turn(self) -> None:
        now = self._clock()
        self._turns += 1
        ends = (caller.terms.expires_at for caller in self._snapshot.by_id.values())
        self._next_end = min((end for end in ends if end is not None and end > now), default=math.inf)

    async def create(self, tenant: str, name: str, *, terms: KeyTerms = _ALL_TERMS, who: str = "") -> str:
        key = key_format.made()
        if terms.expires_at is not None and terms.expires_at <= self._clock():
            over = f"{utc(terms.expires_at)} is over: say a later moment, or leave it out"
            raise DocumentInvalid([Mistake("", over, ("expires_at",))])

        def work(connection: sqlite3.Connection) -> str:
            find_declared(connection, tenant)
            self._insert(connection, key, tenant, name, terms, who, "key created")
            return key

        return await self._change(work)

    def _insert(
        self,
        connection: sqlite3.Connection,
        key: str,
        tenant: str,
        name: str,
        terms: KeyTerms,
        who: str,
        action: str,
    ) -> str:
        identity = insert_key(
            connection,
            tenant=tenant,
            name=name,
            hint=key_format.hint(key),
            digest=key_format.hashed(key),
            terms=terms,
            source="made",
            now=self._clock(),
        )
        self._note(
            connection, who, action, f"{tenant}#{identity}", None, {"name": name, **terms_to_json(terms)}
        )
        return identity

    async def rotate(self, key: str, *, overlap_seconds: float, who: str = "") -> str:
        following = key_format.made()

        def work(connection: sqlite3.Connection) -> str:
            old = amendable_key(connection, key)
            if old.replaced_by is not None:
                # A line of keys spends one budget: it has no branches.
                already = f"was rotated already: rotate {old.replaced_by}, which was made in its place"
                raise DocumentInvalid([Mistake("", already, (old.id,))])
            find_declared(connection, old.tenant)
            terms = old.terms
            identity = self._insert(connection, following, old.tenant, old.name, terms, who, "key rotated")
            ends = self._clock() + overlap_seconds
            ends = ends if terms.expires_at is None else min(ends, terms.expires_at)
            connection.execute(
                "UPDATE keys SET expires_at = ?, replaced_by = ? WHERE id = ?", (ends, identity, old.id)
            )
            after = {**terms_to_json(replace(terms, expires_at=ends)), "replaced_by": identity}
            self._note(connection, who, "key rotated", f"{old.tenant}#{old.id}", terms_to_json(terms), after)
            return following

        return await self._change(work)

    async def amend(
        self,
        key: str,
        *,
        name: str | None = None,
        change: Callable[[KeyTerms], KeyTerms] = lambda terms: terms,
        who: str = "",
    ) -> Key:
        def work(connection: sqlite3.Connection) -> Key:
            old = amendable_key(connection, key)
            new = replace(old, name=old.name if name is None else name, terms=change(old.terms))
            amend_key(connection, old.id, new.name, new.terms)
            before, after = ({"name": each.name, **terms_to_json(each.terms)} for each in (old, new))
            self._note(connection, who, "key amended", f"{old.tenant}#{old.id}", before, after)
            return new

        return await self._change(work)

    async def revoke(self, key: str, *, who: str = "") -> Key:
        def work(connection: sqlite3.Connection) -> Key:
            ended = replace(key_in_force(connection, key), revoked_at=self._clock())
            connection.execute("UPDATE keys SET revoked_at = ? WHERE id = ?", (ended.revoked_at, ended.id))
            self._note(
                connection, who, "key revoked", f"{ended.tenant}#{ended.id}", {"name": ended.name}, None
            )
            return ended

        return await self._change(work)

    async def listed(self, tenant: str | None) -> Sequence[Key]:
        return await self._database.read(
            lambda connection: keys_in(connection, "? IS NULL OR tenant = ?", tenant, tenant)
        )

    async def find_key(self, key: str) -> Key:
        return await self._database.read(lambda connection: key_in_force(connection, key))

    def note_use(self, key_id: str) -> None:
        self._uses[key_id] = self._clock()

    async def write_down_uses(self) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        rows = [(at, key_id, at) for key_id, at in uses.items()]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE keys SET last_used_at = ? WHERE id = ? AND COALESCE(last_used_at, 0) < ?", rows
            )

        try:
            await self._database.write(work)
        except StorageUnavailable:
            self._uses = uses | self._uses
            raise

    # --- Register

    async def apply(
        self, declared: Sequence[Declared], *, who: str, dry_run: bool = False, if_other: bool = False
    ) -> Sequence[Change]:
        digest = _digest(declared)

        def work(connection: sqlite3.Connection) -> Sequence[Change]:
            applied = connection.execute("SELECT digest FROM applied_files").fetchone() == (digest,)
            if applied and if_other:
                return ()
            by_admin = {
                name for (name,) in connection.execute("SELECT name FROM tenants WHERE source = 'admin'")
            }
            before = {each.name: each for each in declared_in(connection)}
            after = {name: before[name] for name in by_admin & before.keys()}
            after |= {each.name: each for each in declared}
            made = self._make(connection, before, after, who=who, source="file", dry_run=dry_run)
            if dry_run:
                return made
            connection.executemany(
                "UPDATE tenants SET source = 'file' WHERE name = ? AND source != 'file'",
                [(each.name,) for each in declared],
            )
            if not applied:
                connection.execute("DELETE FROM applied_files")
                connection.execute("INSERT INTO applied_files VALUES (?)", (digest,))
                self._note(connection, who, "file applied", "", None, {"sha256": digest})
            return made

        if dry_run:
            return await self._database.read(work)
        return await self._change(work)

    async def was_applied(self) -> bool:
        return await self._database.read(
            lambda connection: connection.execute("SELECT 1 FROM applied_files").fetchone() is not None
        )

    async def put(self, declared: Declared, *, who: str, dry_run: bool = False) -> Sequence[Change]:
        return await self._edit(lambda said: {**said, declared.name: declared}, who=who, dry_run=dry_run)

    async def move(
        self, name: str, *, parent: str | None, who: str, dry_run: bool = False
    ) -> Sequence[Change]:
        def moved(said: Mapping[str, Declared]) -> Mapping[str, Declared]:
            if parent is not None:
                _named(parent, said)
            return {**said, name: replace(_named(name, said), parent=parent)}

        return await self._edit(moved, who=who, dry_run=dry_run)

    async def remove(self, name: str, *, who: str, dry_run: bool = False) -> Sequence[Change]:
        def without(said: Mapping[str, Declared]) -> Mapping[str, Declared]:
            _named(name, said)
            return {each: declared for each, declared in said.items() if each != name}

        return await self._edit(without, who=who, dry_run=dry_run)

    async def _edit(
        self,
        edited: Callable[[Mapping[str, Declared]], Mapping[str, Declared]],
        *,
        who: str,
        dry_run: bool,
    ) -> Sequence[Change]:
        def work(connection: sqlite3.Connection) -> Sequence[Change]:
            before = {each.name: each for each in declared_in(connection)}
            return self._make(connection, before, edited(before), who=who, source="admin", dry_run=dry_run)

        return await (self._database.read(work) if dry_run else self._change(work))

    def _make(
        self,
        connection: sqlite3.Connection,
        before: Mapping[str, Declared],
        after: Mapping[str, Declared],
        *,
        who: str,
        source: str,
        dry_run: bool,
    ) -> Sequence[Change]:
        """Let `after` be what is said, and say what is different."""
        _check(before, after)
        changed = [now for name, now in after.items() if before.get(name) != now]
        strange = [*mistakes_in_keys(after), *mistakes_in_made_keys(connection, changed)]
        if strange:
            raise DocumentInvalid(
                [Mistake("", problem, (name, "keys", index, "hash")) for name, index, problem in strange]
            )
        made = changes(before, after)
        if dry_run or not made:
            return made
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if was == now:
                continue
            if now is None:
                connection.execute("UPDATE tenants SET removed_at = ? WHERE name = ?", (self._clock(), name))
            else:
                connection.execute(
                    "INSERT INTO tenants VALUES (?, ?, ?, NULL) ON CONFLICT (name) DO UPDATE SET "
                    # Whose tenant it is stays, unless it comes back from where it was gone.
                    "source = IIF(removed_at IS NULL, source, excluded.source), "
                    "declaration = excluded.declaration, removed_at = NULL",
                    (name, to_text(declared_to_json(now)), source),
                )
                declare_keys(connection, name, now.keys, self._clock())
            action = "tenant made" if was is None else "tenant removed" if now is None else "tenant changed"
            self._note(
                connection, who, action, name,
                None if was is None else declared_to_json(was),
                None if now is None else declared_to_json(now),
            )  # fmt: skip
        return made

    async def declared(self) -> Sequence[Declared]:
        return await self._database.read(declared_in)

    async def top_up(
        self,
        tenant: str,
        amount: Money,
        *,
        reason: str,
        who: str,
        budget: str | None = None,
        key: str | None = None,
    ) -> TopUp:
        added = TopUp(amount, self._clock(), reason)

        def work(connection: sqlite3.Connection) -> TopUp:
            said = find_declared(connection, tenant)
            topped = None if key is None else key_in_force(connection, key)
            if topped is not None and topped.tenant != tenant:
                raise KeyUnknown(f"This key is not one of {tenant}'s.")
            budgets = said.limits if topped is None else topped.terms.budgets
            name = _budget(budgets, budget)
            key_id = "" if topped is None else topped.id
            connection.execute(
                "INSERT INTO top_ups (tenant, key_id, budget, micros, at, reason) VALUES (?, ?, ?, ?, ?, ?)",
                (tenant, key_id, name, amount.micros, added.at, reason),
            )
            self._note(
                connection, who, "topped up", f"{tenant}#{key_id}" if key_id else tenant, None,
                {"budget": name, "usd": str(amount.usd), "reason": reason},
            )  # fmt: skip
            return added

        return await self._change(work)

    async def audit(self, *, limit: int = 100, before: int | None = None) -> Sequence[AuditEntry]:
        query = "SELECT * FROM audit WHERE ? IS NULL OR serial < ? ORDER BY serial DESC LIMIT ?"
        return await self._database.read(
            lambda connection: [
                AuditEntry(serial, at, who, action, what, _parsed(was), _parsed(now))
                for serial, at, who, action, what, was, now in connection.execute(
                    query, (before, before, limit)
                )
            ]
        )

    def _note(
        self, connection: sqlite3.Connection, who: str, action: str, what: str, before: Json, after: Json
    ) -> None:
        texts = (None if value is None else to_text(value) for value in (before, after))
        connection.execute(
            "INSERT INTO audit (at, who, action, what, before, after) VALUES (?, ?, ?, ?, ?, ?)",
            (self._clock(), who, action, what, *texts),
        )

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def and_tell(connection: sqlite3.Connection) -> T:
            self._database.changes(KEYS_MARK)
            return work(connection)

        return await self._database.write(and_tell)


def _has_ended(caller: Caller, now: float) -> bool:
    ends = caller.terms.expires_at
    return ends is not None and ends <= now


def _named(name: str, tenants: Mapping[str, T]) -> T:
    tenant = tenants.get(name)
    if tenant is None:
        raise tenant_unknown(name, tenants)
    return tenant


def _budget(budgets: Sequence[Budget], name: str | None) -> str:
    labels = [budget.label for budget in budgets]
    if name is None and len(labels) == 1:
        return labels[0]
    if name is None or name not in labels:
        known = ", ".join(labels) or "none"
        problem = "Say which budget" if name is None else f"There is no budget {name[:100]}"
        raise BudgetUnknown(f"{problem}: there are {known}.")
    return name


def _check(before: Mapping[str, Declared], after: Mapping[str, Declared]) -> None:
    """Raise DocumentInvalid if `after` is no tree of tenants."""
    mistakes = []
    for name, problem in mistakes_in_tree(after):
        parent = after[name].parent
        is_left_behind = parent in before and parent not in after
        said = f"{parent}, which it stands below, would be removed: move it first"
        mistakes.append(Mistake("", said if is_left_behind else problem, (name, "parent")))
    mistakes += [
        Mistake("", "is missing (write `budgets: []` for no limit)", (tenant.name, "budgets"))
        for tenant in after.values()
        if tenant.parent is None and tenant.budgets is None
    ]
    if mistakes:
        raise DocumentInvalid(mistakes)


def _digest(declared: Iterable[Declared]) -> str:
    said: Json = {each.name: declared_to_json(each) for each in sorted(declared, key=lambda each: each.name)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _parsed(text: str | None) -> Json:
    parsed: Json = None if text is None else json.loads(text)
    return parsed
