"""Tenants' keys in SQLite."""

from __future__ import annotations

import hashlib
import math
import secrets
import sqlite3
import uuid
import zlib
from collections.abc import Sequence

from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import StorageUnavailable, Unauthenticated
from gateway.domain.tenant import Caller
from gateway.tenants.contract import KEYS_MARK, Key, KeyUnknown, Tenants, TenantUnknown

_PREFIX = "gwk_"
_RANDOM_BYTES = 24
_BODY_LENGTH = 33
_CHECKSUM_LENGTH = 6
_HINT_LENGTH = len(_PREFIX) + 8
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_SECONDS_BETWEEN_LOOKS = 1.0
_BUSY_TIMEOUT_SECONDS = 0.1
"""The event loop waits for it. Whoever reads is in nobody's way here, but for the moment in which a database is opened."""

_SCHEMA = (
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
)


class SqliteKeys:
    """Keeps the contract Keys.

    The valid keys are held in memory by their hashes, for as long as the mark of the keys is what it was. Once a second,
    and on each call where there are no marks, the database is asked besides, without reading it: SQLite's `data_version`
    says whether anybody has committed since.
    """

    def __init__(self, database: SqliteDatabase, *, tenants: Tenants, clock: Clock) -> None:
        database.migrate("tenants", _SCHEMA)
        self._database = database
        self._tenants = tenants
        self._clock = clock
        self._watch = sqlite3.connect(database.path, isolation_level=None, timeout=_BUSY_TIMEOUT_SECONDS)
        self._marks = database.marks
        self._place = Marks.place(KEYS_MARK)
        self._mark = 0
        self._looked_at = -math.inf
        self._data_version = -1
        self._revision = -1
        self._callers: dict[bytes, Caller] = {}
        self._revoked: set[bytes] = set()

    def close(self) -> None:
        self._watch.close()

    async def create(self, tenant: str, name: str) -> str:
        self._tenants.find(tenant)
        body = _base62(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _BODY_LENGTH)
        key = f"{_PREFIX}{body}{_checksum(body)}"
        row = (uuid.uuid4().hex[:12], tenant, name, key[:_HINT_LENGTH], _hash(key), self._clock())
        await self._write("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        return key

    async def revoke(self, key: str) -> Key:
        matches = [
            known
            for known in await self._select("id = ? OR hint = ? OR hash = ?", key, key, _hash(key))
            if known.revoked_at is None
        ]
        if len(matches) != 1:
            raise KeyUnknown(
                "No key in force has the id, the hint or the text given; see `gateway keys list`."
                if not matches
                else "More than one key has this hint: name the key by its id; see `gateway keys list`."
            )
        (match,) = matches
        await self._write("UPDATE keys SET revoked_at = ? WHERE id = ?", (self._clock(), match.id))
        return match

    async def _write(self, statement: str, values: Sequence[object]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)
            self._database.changes(KEYS_MARK)

        await self._database.write(work)

    async def listed(self, tenant: str | None) -> Sequence[Key]:
        return await self._select("? IS NULL OR tenant = ?", tenant, tenant)

    def authenticate(self, presented: str | None) -> Caller:
        if not presented:
            raise Unauthenticated(
                "Missing x-api-key in header: send your tenant key as `x-api-key: gwk_...`; "
                "whoever runs this gateway makes one with `gateway keys create TENANT`."
            )
        self._look()
        digest = _hash(presented)
        caller = self._callers.get(digest)
        if caller is None:
            raise Unauthenticated(self._why_not(presented, digest))
        return caller

    def _why_not(self, presented: str, digest: bytes) -> str:
        if digest in self._revoked:
            return "Unauthorized. This API key has been revoked: ask for a new one."
        if not presented.startswith(_PREFIX):
            return (
                "Unauthorized. API key is invalid: the gateway takes its tenants' keys, which begin with "
                f"`{_PREFIX}`, and not the upstream's own."
            )
        if not _is_well_formed(presented):
            return (
                "Unauthorized. API key is invalid: it is cut short or mistyped (its checksum does not fit)."
            )
        return "Unauthorized. API key is invalid: it is well formed, but this gateway does not know it."

    @property
    def revision(self) -> int:
        self._look()
        return self._revision

    def _look(self) -> None:
        """Know what is known by now."""
        now = self._clock()
        if self._marks is not None:
            # Before anything is read: what changes after that is another mark.
            mark = self._marks.read(self._place)
            if mark == self._mark and 0.0 <= now - self._looked_at < _SECONDS_BETWEEN_LOOKS:
                return
            self._mark = mark
        try:
            self._refresh()
        except sqlite3.OperationalError as error:
            self._looked_at = -math.inf
            raise StorageUnavailable(
                f"The keys cannot be read right now ({error}); try again shortly."
            ) from error
        self._looked_at = now

    def _refresh(self) -> None:
        (data_version,) = self._watch.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return
        (revision,) = self._watch.execute("SELECT revision FROM keys_revision").fetchone()
        if revision != self._revision:
            self._load()
        self._data_version, self._revision = data_version, revision

    def _load(self) -> None:
        callers: dict[bytes, Caller] = {}
        revoked: set[bytes] = set()
        for identity, tenant, digest, revoked_at in self._watch.execute(
            "SELECT id, tenant, hash, revoked_at FROM keys"
        ):
            if revoked_at is not None:
                revoked.add(digest)
                continue
            try:
                callers[digest] = Caller(self._tenants.find(tenant), identity)
            except TenantUnknown:
                # The tenant has left the configuration: its keys open nothing until it is back.
                continue
        self._callers, self._revoked = callers, revoked

    async def _select(self, condition: str, *values: object) -> Sequence[Key]:
        query = (
            "SELECT id, tenant, name, hint, created_at, revoked_at FROM keys "
            f"WHERE {condition} ORDER BY created_at, id"
        )
        return await self._database.read(
            lambda connection: [Key(*row) for row in connection.execute(query, values)]
        )


def _hash(key: str) -> bytes:
    # 192 random bits cannot be guessed, so a fast hash keeps them: a slow one would only slow us.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _is_well_formed(key: str) -> bool:
    body, checksum = key[len(_PREFIX) : -_CHECKSUM_LENGTH], key[-_CHECKSUM_LENGTH:]
    return len(body) == _BODY_LENGTH and checksum == _checksum(body)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(f"{_PREFIX}{body}".encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits.rjust(length, _ALPHABET[0])
