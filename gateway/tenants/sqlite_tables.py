"""The tables of tenants and keys, and what is in them."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gateway.database.json_text import to_text
from gateway.documents.spelling import remedy
from gateway.documents.yaml_files import DocumentInvalid, Mistake
from gateway.domain.errors import KeyUnknown, TenantUnknown
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, KeyTerms, Tenant, TopUp
from gateway.tenants import key_format
from gateway.tenants.contract import Declared, DeclaredKey, Key
from gateway.tenants.declarations import (
    declared_from_json,
    terms_from_json,
    terms_to_json,
    topped_up,
    tree,
)

SCHEMA = (
    """
    CREATE TABLE keys (
        id         TEXT NOT NULL PRIMARY KEY,
        tenant     TEXT NOT NULL,
        name       TEXT NOT NULL,
        hint       TEXT NOT NULL,
        hash       BLOB NOT NULL UNIQUE,
        created_at REAL NOT NULL,
        revoked_at REAL
    ) WITHOUT ROWID;
    CREATE TABLE keys_revision (revision INTEGER NOT NULL);
    INSERT INTO keys_revision VALUES (0);
    CREATE TRIGGER key_created AFTER INSERT ON keys BEGIN UPDATE keys_revision SET revision = revision + 1; END;
    CREATE TRIGGER key_changed AFTER UPDATE ON keys BEGIN UPDATE keys_revision SET revision = revision + 1; END;
    """,
    """
    CREATE TRIGGER key_deleted AFTER DELETE ON keys BEGIN UPDATE keys_revision SET revision = revision + 1; END;
    """,
    # The revision is random and not counted: one that was seen in a transaction which then failed must not come again
    # with other content. When a key was last used is no change of it.
    """
    CREATE TABLE tenants (
        name        TEXT NOT NULL PRIMARY KEY,
        declaration TEXT NOT NULL,
        source      TEXT NOT NULL CHECK (source IN ('file', 'admin')),
        removed_at  REAL
    ) WITHOUT ROWID;
    CREATE TABLE top_ups (
        serial INTEGER PRIMARY KEY,
        tenant TEXT    NOT NULL,
        key_id TEXT    NOT NULL,
        budget TEXT    NOT NULL,
        micros INTEGER NOT NULL CHECK (micros > 0),
        at     REAL    NOT NULL,
        reason TEXT    NOT NULL CHECK (reason != '')
    );
    CREATE TABLE applied_files (digest TEXT NOT NULL);
    CREATE TABLE audit (
        serial INTEGER PRIMARY KEY AUTOINCREMENT,
        at     REAL NOT NULL,
        who    TEXT NOT NULL,
        action TEXT NOT NULL,
        what   TEXT NOT NULL,
        before TEXT,
        after  TEXT
    );
    CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN
        SELECT RAISE(ABORT, 'the audit log is only added to');
    END;
    CREATE TRIGGER audit_remains BEFORE DELETE ON audit BEGIN
        SELECT RAISE(ABORT, 'the audit log is only added to');
    END;
    ALTER TABLE keys ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
    ALTER TABLE keys ADD COLUMN expires_at REAL;
    ALTER TABLE keys ADD COLUMN last_used_at REAL;
    ALTER TABLE keys ADD COLUMN replaced_by TEXT;
    ALTER TABLE keys ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
    DROP TRIGGER key_created;
    DROP TRIGGER key_changed;
    DROP TRIGGER key_deleted;
    CREATE TRIGGER key_created AFTER INSERT ON keys BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER key_changed
        AFTER UPDATE OF id, tenant, name, hash, revoked_at, terms, expires_at, replaced_by, place ON keys
        BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER key_deleted AFTER DELETE ON keys BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER tenant_created AFTER INSERT ON tenants BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER tenant_changed AFTER UPDATE ON tenants BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER tenant_deleted AFTER DELETE ON tenants BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER topped_up AFTER INSERT ON top_ups BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER top_up_changed AFTER UPDATE ON top_ups BEGIN UPDATE keys_revision SET revision = random(); END;
    CREATE TRIGGER top_up_deleted AFTER DELETE ON top_ups BEGIN UPDATE keys_revision SET revision = random(); END;
    """,
    # A key that was made elsewhere is declared with its tenant; it is dropped when it is declared no more.
    """
    ALTER TABLE keys ADD COLUMN source TEXT NOT NULL DEFAULT 'made' CHECK (source IN ('made', 'declared', 'dropped'));
    DROP TRIGGER key_changed;
    CREATE TRIGGER key_changed
        AFTER UPDATE OF id, tenant, name, hash, revoked_at, terms, expires_at, replaced_by, place, source ON keys
        BEGIN UPDATE keys_revision SET revision = random(); END;
    """,
)


_LISTED = ": `gateway tenants list` lists them."


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is in force, as of one revision of the database."""

    revision: int
    tenants: Mapping[str, Tenant]
    callers: Mapping[bytes, Caller]
    """By the hash of the key."""

    by_id: Mapping[str, Caller]
    revoked: frozenset[bytes]
    removed: frozenset[bytes]
    """Keys of tenants that are gone."""


NOBODY = Snapshot(-1, {}, {}, {}, frozenset(), frozenset())


def load(connection: sqlite3.Connection, revision: int) -> Snapshot:
    added: dict[tuple[str, str, str], list[TopUp]] = {}
    for tenant, key_id, budget, micros, at, reason in connection.execute(
        "SELECT tenant, key_id, budget, micros, at, reason FROM top_ups ORDER BY serial"
    ):
        added.setdefault((tenant, key_id, budget), []).append(TopUp(Money(micros), at, reason))
    tenants = tree(declared_in(connection), added)
    callers: dict[bytes, Caller] = {}
    revoked: set[bytes] = set()
    removed: set[bytes] = set()
    others = _rotated(connection)
    for identity, tenant, digest, is_ended, said, expires_at, place in connection.execute(
        "SELECT id, tenant, hash, revoked_at IS NOT NULL OR source = 'dropped', terms, expires_at, place FROM keys"
    ):
        if is_ended:
            revoked.add(digest)
        elif tenant not in tenants:
            removed.add(digest)
        else:
            terms = _terms(said, expires_at)
            rotated_with = others.get(identity, ())
            together = [identity, *rotated_with]
            terms = replace(terms, budgets=topped_up(terms.budgets, tenant, together, added))
            callers[digest] = Caller(tenants[tenant], identity, terms, place, rotated_with)
    by_id = {caller.key_id: caller for caller in callers.values()}
    return Snapshot(revision, tenants, callers, by_id, frozenset(revoked), frozenset(removed))


def _rotated(connection: sqlite3.Connection) -> Mapping[str, tuple[str, ...]]:
    """Of each key that was rotated, or made by that: the others before and after it."""
    following = dict(connection.execute("SELECT id, replaced_by FROM keys WHERE replaced_by IS NOT NULL"))
    others: dict[str, tuple[str, ...]] = {}
    for first in following.keys() - following.values():
        line = [first]
        while line[-1] in following:
            line.append(following[line[-1]])
        others |= {each: tuple(other for other in line if other != each) for each in line}
    return others


def revision_of(connection: sqlite3.Connection) -> int:
    (revision,) = connection.execute("SELECT revision FROM keys_revision").fetchone()
    return int(revision)


def declared_in(connection: sqlite3.Connection) -> Sequence[Declared]:
    return [
        declared_from_json(name, json.loads(text))
        for name, text in connection.execute(
            "SELECT name, declaration FROM tenants WHERE removed_at IS NULL ORDER BY name"
        )
    ]


def find_declared(connection: sqlite3.Connection, name: str) -> Declared:
    """One of them, without a look at the others: there may be thousands, and everybody who writes waits meanwhile.

    Raises TenantUnknown.
    """
    found = connection.execute(
        "SELECT declaration FROM tenants WHERE name = ? AND removed_at IS NULL", (name,)
    ).fetchone()
    if found is None:
        raise tenant_unknown(
            name,
            [each for (each,) in connection.execute("SELECT name FROM tenants WHERE removed_at IS NULL")],
        )
    return declared_from_json(name, json.loads(found[0]))


def tenant_unknown(name: str, known: Iterable[str]) -> TenantUnknown:
    """The error that names the nearest of those that are known."""
    return TenantUnknown(f"There is no tenant {name[:70]}{remedy(name, known, otherwise=_LISTED)}")


def keys_in(connection: sqlite3.Connection, condition: str, *values: object) -> Sequence[Key]:
    query = (
        "SELECT id, tenant, name, hint, created_at, revoked_at, terms, expires_at, last_used_at, replaced_by, "
        f"source = 'declared' FROM keys WHERE {condition} ORDER BY created_at, id"
    )
    return [
        Key(
            identity,
            tenant,
            name,
            hint,
            made_at,
            revoked_at,
            _terms(said, ends),
            used_at,
            next_id,
            bool(declared),
        )
        for identity, tenant, name, hint, made_at, revoked_at, said, ends, used_at, next_id, declared in (
            connection.execute(query, values)
        )
    ]


def key_in_force(connection: sqlite3.Connection, key: str) -> Key:
    """The one key that is named so and was not revoked. Raises KeyUnknown."""
    matches = keys_in(
        connection,
        "(id = ? OR hint = ? OR hash = ?) AND revoked_at IS NULL AND source != 'dropped'",
        key,
        key,
        key_format.hashed(key),
    )
    if len(matches) != 1:
        raise KeyUnknown(
            "No key in force has the id, the hint or the text given; see `gateway keys list`."
            if not matches
            else "More than one key has this hint: name the key by its id; see `gateway keys list`."
        )
    return matches[0]


def amendable_key(connection: sqlite3.Connection, key: str) -> Key:
    """The same, if what it may is not said with its tenant. Raises KeyUnknown and DocumentInvalid."""
    found = key_in_force(connection, key)
    if found.is_declared:
        raise DocumentInvalid(
            [Mistake("", f"is declared with {found.tenant}: say it there, or revoke the key", (found.id,))]
        )
    return found


def insert_key(
    connection: sqlite3.Connection,
    *,
    tenant: str,
    name: str,
    hint: str,
    digest: bytes,
    terms: KeyTerms,
    source: str,
    now: float,
) -> str:
    """The id of a new key."""
    identity = uuid.uuid4().hex[:12]
    connection.execute(
        "INSERT INTO keys (id, tenant, name, hint, hash, created_at, terms, expires_at, place, source) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity,
            tenant,
            name,
            hint,
            digest,
            now,
            terms_text(terms),
            terms.expires_at,
            next_place(connection) if terms.rate else 0,
            source,
        ),
    )
    return identity


def amend_key(connection: sqlite3.Connection, identity: str, name: str, terms: KeyTerms) -> None:
    connection.execute(
        "UPDATE keys SET name = ?, terms = ?, expires_at = ? WHERE id = ?",
        (name, terms_text(terms), terms.expires_at, identity),
    )
    if terms.rate:
        connection.execute(
            "UPDATE keys SET place = ? WHERE id = ? AND place = 0", (next_place(connection), identity)
        )


def mistakes_in_made_keys(
    connection: sqlite3.Connection, declared: Iterable[Declared]
) -> Iterator[tuple[str, int, str]]:
    """Which of a tenant's declared keys, by its number, was made here."""
    for tenant in declared:
        for index, key in enumerate(tenant.keys):
            found = connection.execute("SELECT source FROM keys WHERE hash = ?", (_digest(key),)).fetchone()
            if found == ("made",):
                yield tenant.name, index, "was made by this gateway, which knows it: leave it out"


def declare_keys(
    connection: sqlite3.Connection, tenant: str, keys: Sequence[DeclaredKey], now: float
) -> None:
    """Let these be the keys that are declared with a tenant. One that was revoked stays so."""
    for (digest,) in connection.execute(
        "SELECT hash FROM keys WHERE tenant = ? AND source = 'declared'", (tenant,)
    ).fetchall():
        if digest not in map(_digest, keys):
            connection.execute("UPDATE keys SET source = 'dropped' WHERE hash = ?", (digest,))
    for key in keys:
        digest = _digest(key)
        (identity,) = connection.execute("SELECT MAX(id) FROM keys WHERE hash = ?", (digest,)).fetchone()
        if identity is None:
            insert_key(
                connection,
                tenant=tenant,
                name=key.name,
                hint=key.hash[:15],
                digest=digest,
                terms=key.terms,
                source="declared",
                now=now,
            )
        else:
            connection.execute(
                "UPDATE keys SET tenant = ?, source = 'declared' WHERE id = ?", (tenant, identity)
            )
            amend_key(connection, identity, key.name, key.terms)


def _digest(key: DeclaredKey) -> bytes:
    return bytes.fromhex(key.hash.removeprefix("sha256:"))


def terms_text(terms: KeyTerms) -> str:
    # When it expires has a column: to the fraction of a second, and for whoever looks into the database.
    return to_text(terms_to_json(replace(terms, expires_at=None)))


def _terms(text: str, expires_at: float | None) -> KeyTerms:
    return replace(terms_from_json(json.loads(text)), expires_at=expires_at)


def next_place(connection: sqlite3.Connection) -> int:
    """A place for a key's rate that no other key has."""
    (highest,) = connection.execute("SELECT COALESCE(MAX(place), 0) FROM keys").fetchone()
    return int(highest) + 1
