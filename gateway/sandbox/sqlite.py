"""The sandbox's memory: accounts and jobs, in SQLite. Every write is on disk when it returns."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.money import Money
from gateway.sandbox.faults import Occurrence
from gateway.sandbox.job import Job, State

T = TypeVar("T")

_SCRIPTS = (
    """
    CREATE TABLE accounts (
        name           TEXT PRIMARY KEY,
        key_digest     TEXT NOT NULL UNIQUE,
        credits_micros INTEGER NOT NULL,
        models         TEXT
    ) STRICT;
    CREATE TABLE jobs (
        number         INTEGER PRIMARY KEY,
        id             TEXT NOT NULL UNIQUE,
        account        TEXT NOT NULL REFERENCES accounts (name),
        model          TEXT NOT NULL,
        api            TEXT NOT NULL,
        body           TEXT NOT NULL,
        parameters     TEXT NOT NULL,
        seed           INTEGER,
        media_type     TEXT NOT NULL,
        price_micros   INTEGER NOT NULL,
        submitted_at   REAL NOT NULL,
        starts_at      REAL NOT NULL,
        due_at         REAL NOT NULL,
        shown_at       REAL NOT NULL,
        doomed         TEXT,
        faults         TEXT NOT NULL,
        state          TEXT NOT NULL,
        finished_at    REAL,
        error          TEXT,
        cost_micros    INTEGER NOT NULL DEFAULT 0,
        credits_left_micros INTEGER,
        file           TEXT,
        output         TEXT NOT NULL DEFAULT '{}'
    ) STRICT;
    CREATE INDEX jobs_by_time ON jobs (submitted_at);
    CREATE INDEX jobs_that_run ON jobs (state) WHERE state IN ('QUEUED', 'PROCESSING');
    """,
)

_RUNNING = "state IN ('QUEUED', 'PROCESSING')"


@dataclass(frozen=True, slots=True)
class StoredAccount:
    name: str
    key_digest: str
    credits: Money
    models: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    jobs: Sequence[Job]
    total: int
    """How many there are on all pages."""


class Books:
    def __init__(self, database: SqliteDatabase) -> None:
        database.migrate("sandbox", _SCRIPTS)
        self._database = database

    async def accounts(self) -> list[StoredAccount]:
        def read(connection: sqlite3.Connection) -> list[StoredAccount]:
            return [
                StoredAccount(name, digest, Money(micros), frozenset(json.loads(models)) if models else None)
                for name, digest, micros, models in connection.execute(
                    "SELECT name, key_digest, credits_micros, models FROM accounts"
                )
            ]

        return await self._database.read(read)

    async def put_account(self, account: StoredAccount) -> None:
        """Open the account, or set its key, credits and models. Raises ValueError when the key is another's."""
        models = None if account.models is None else json.dumps(sorted(account.models))

        def write(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(
                    "INSERT INTO accounts VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                    "key_digest = excluded.key_digest, credits_micros = excluded.credits_micros, "
                    "models = excluded.models",
                    (account.name, account.key_digest, account.credits.micros, models),
                )
            except sqlite3.IntegrityError as error:
                raise ValueError("this key belongs to another account") from error

        await self._database.write(write)

    async def open(self, job: Job) -> None:
        row = _row(job)
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO jobs ({names}) VALUES ({values})", row)

        await self._database.write(write)

    async def complete(self, job: Job) -> Money | None:
        """Charge `job.price` and keep what was made; the account's balance then. None if it had ended before."""
        values = {
            "id": job.id,
            "cost": job.price.micros,
            "finished_at": job.finished_at,
            "file": job.file,
            "output": json.dumps(job.output),
        }

        def write(connection: sqlite3.Connection) -> Money | None:
            ended = connection.execute(
                "UPDATE jobs SET state = 'COMPLETED', cost_micros = :cost, finished_at = :finished_at, file = :file, "
                f"output = :output WHERE id = :id AND {_RUNNING} RETURNING account",
                values,
            ).fetchone()
            if ended is None:
                return None
            (left,) = connection.execute(
                "UPDATE accounts SET credits_micros = credits_micros - ? WHERE name = ? RETURNING credits_micros",
                (job.price.micros, ended[0]),
            ).fetchone()
            connection.execute("UPDATE jobs SET credits_left_micros = ? WHERE id = ?", (left, job.id))
            return Money(left)

        return await self._database.write(write)

    async def fail(self, job: Job) -> None:
        values = (job.error, job.finished_at, job.id)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                f"UPDATE jobs SET state = 'FAILED', error = ?, finished_at = ? WHERE id = ? AND {_RUNNING}",
                values,
            )

        await self._database.write(write)

    async def find(self, request_id: str) -> Job | None:
        jobs = await self._jobs("WHERE id = ?", (request_id,))
        return jobs[0] if jobs else None

    async def unfinished_or_newer(self, submitted_after: float) -> list[Job]:
        return await self._jobs(f"WHERE {_RUNNING} OR submitted_at > ? ORDER BY number", (submitted_after,))

    async def files_in_use(self, finished_after: float) -> frozenset[str]:
        def read(connection: sqlite3.Connection) -> frozenset[str]:
            rows = connection.execute(
                "SELECT DISTINCT file FROM jobs WHERE file IS NOT NULL AND finished_at > ?", (finished_after,)
            )
            return frozenset(file for (file,) in rows)

        return await self._database.read(read)

    async def history(
        self,
        *,
        account: str,
        shown_before: float,
        submitted_from: float,
        submitted_before: float,
        model_part: str,
        states: Sequence[str],
        order: str,
        limit: int,
        offset: int,
    ) -> HistoryPage:
        """One page of an account's requests. `order` is `{submitted_at|model|cost_micros} {ASC|DESC}`."""
        where = (
            "WHERE account = ? AND shown_at <= ? AND submitted_at >= ? AND submitted_at < ? "
            f"AND instr(model, ?) > 0 AND state IN ({', '.join('?' * len(states))})"
        )
        values = (account, shown_before, submitted_from, submitted_before, model_part, *states)

        def read(connection: sqlite3.Connection) -> HistoryPage:
            (total,) = connection.execute(f"SELECT count(*) FROM jobs {where}", values).fetchone()
            # Equal keys keep the order of their submits.
            by = f"{order}, number {order.rsplit(maxsplit=1)[-1]}"
            found = _select(connection, f"{where} ORDER BY {by} LIMIT ? OFFSET ?", (*values, limit, offset))
            return HistoryPage(found, total)

        return await self._database.read(read)

    async def bill(self, show: Callable[[Sequence[Job], Sequence[StoredAccount]], T]) -> T:
        """What `show` makes of every job and every account, read at one moment; it runs in the reader's thread."""

        def read(connection: sqlite3.Connection) -> T:
            connection.execute("BEGIN")
            try:
                jobs = _select(connection, "ORDER BY number", ())
                accounts = [
                    StoredAccount(name, "", Money(micros), None)
                    for name, micros in connection.execute(
                        "SELECT name, credits_micros FROM accounts ORDER BY rowid"
                    )
                ]
            finally:
                connection.execute("COMMIT")
            return show(jobs, accounts)

        return await self._database.read(read)

    async def _jobs(self, where: str, values: Sequence[Any]) -> list[Job]:
        return await self._database.read(lambda connection: _select(connection, where, values))


def _select(connection: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[Job]:
    cursor = connection.execute(f"SELECT * FROM jobs {where}", tuple(values))
    names = [column[0] for column in cursor.description]
    return [_job(dict(zip(names, row, strict=True))) for row in cursor]


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "account": job.account,
        "model": job.model,
        "api": job.api,
        "body": json.dumps(job.body),
        "parameters": json.dumps(job.parameters),
        # SQLite's integers have 64 bits, a caller's seed may have more: it is also in the parameters.
        "seed": job.seed if job.seed is not None and abs(job.seed) < 2**63 else None,
        "media_type": job.media_type,
        "price_micros": job.price.micros,
        "submitted_at": job.submitted_at,
        "starts_at": job.starts_at,
        "due_at": job.due_at,
        "shown_at": job.shown_at,
        "doomed": job.doomed,
        "faults": json.dumps({name: dict(occurrence.knobs) for name, occurrence in job.faults.items()}),
        "state": State.QUEUED.value,
    }


def _job(row: Mapping[str, Any]) -> Job:
    job = Job(
        id=row["id"],
        account=row["account"],
        model=row["model"],
        api=row["api"],
        body=json.loads(row["body"]),
        parameters=json.loads(row["parameters"]),
        seed=row["seed"],
        media_type=row["media_type"],
        price=Money(row["price_micros"]),
        submitted_at=row["submitted_at"],
        starts_at=row["starts_at"],
        due_at=row["due_at"],
        doomed=row["doomed"],
        faults={name: Occurrence(knobs) for name, knobs in json.loads(row["faults"]).items()},
        state=State(row["state"]),
        finished_at=row["finished_at"],
        error=row["error"],
        cost=Money(row["cost_micros"]),
        credits_left=None if row["credits_left_micros"] is None else Money(row["credits_left_micros"]),
        file=row["file"],
        output=json.loads(row["output"]),
    )
    if job.ended:
        job.done.set()
    return job
