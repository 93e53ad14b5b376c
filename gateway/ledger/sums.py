"""Running totals of what was spent and is held: any stretch of time is the difference of two rows, however much was bought.

A purchase has a path: where its tenant stood in the tree when it was reserved, from the root to the tenant itself
(`acme/film`). It counts there for ever, in the quarter of an hour in which it was reserved, for the tenant and everyone
above it (`film`, `acme`) and for its key; for all models together and for its own. Each of these is a series. What a tenant
spent is the sum over all places where it ever stood: who is moved keeps its history, and leaves it behind as well.

The functions work on a connection in the caller's transaction, and see and change nothing else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Literal

from gateway.domain.window import SECONDS_PER_QUARTER, Span
from gateway.ledger.contract import Discrepancy

SCHEMA = """
    CREATE TABLE series (
        id     INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        key_id TEXT NOT NULL,
        model  TEXT NOT NULL,
        path   TEXT NOT NULL,
        UNIQUE (tenant, key_id, model, path)
    );
    CREATE TABLE sums (
        series       INTEGER NOT NULL REFERENCES series (id),
        quarter      INTEGER NOT NULL,
        spent_micros INTEGER NOT NULL CHECK (spent_micros >= 0),
        held_micros  INTEGER NOT NULL CHECK (held_micros >= 0),
        PRIMARY KEY (series, quarter)
    ) WITHOUT ROWID;
"""
"""A series is a tenant's (with all below it, at that path) or, with `key_id`, one key's; of all models where none is named.
A row of sums counts everything that was reserved up to the end of its quarter."""

_PLACES = """
    RECURSIVE places (path, place) AS (
        SELECT DISTINCT path, path FROM purchases
        UNION
        SELECT path, rtrim(rtrim(place, replace(place, '/', '')), '/') FROM places WHERE instr(place, '/')
    )"""
"""Each path of a purchase with itself and all that it is below."""

_LAST_NAME = "substr(place, length(rtrim(place, replace(place, '/', ''))) + 1)"

_INCREMENTS = f"""
    booked AS (
        SELECT path, key_id, model, quarter, SUM(COALESCE(cost_micros, 0)) AS spent,
            SUM(IIF(ended_at IS NULL, held_micros, 0)) AS held
        FROM purchases WHERE state != 'released' GROUP BY path, key_id, model, quarter
    ),
    increments AS (
        SELECT series.id AS series, booked.quarter AS quarter, SUM(booked.spent) AS spent, SUM(booked.held) AS held
        FROM booked
        JOIN places ON places.path = booked.path
        JOIN series ON series.tenant = {_LAST_NAME} AND series.path = place
            AND series.key_id IN ('', IIF(place = places.path, booked.key_id, '')) AND series.model IN ('', booked.model)
        GROUP BY series.id, booked.quarter
    )"""
"""What the purchases come to, by series and quarter: the second account of what the sums say."""

FROM_PURCHASES = f"""
    WITH {_PLACES}
    INSERT INTO series (tenant, key_id, model, path)
        SELECT DISTINCT {_LAST_NAME}, IIF(own, key_id, ''), IIF(one, model, ''), place
        FROM (SELECT DISTINCT path, key_id, model FROM purchases) AS bought
        JOIN places ON places.path = bought.path
        JOIN (SELECT 0 AS own UNION SELECT 1) ON own <= (place = places.path)
        JOIN (SELECT 0 AS one UNION SELECT 1);
    WITH {_PLACES}, {_INCREMENTS}
    INSERT INTO sums
        SELECT series, quarter, SUM(spent) OVER run, SUM(held) OVER run FROM increments
        WINDOW run AS (PARTITION BY series ORDER BY quarter);
"""
"""The sums of purchases that were booked without them; for empty tables."""

_FROM_TO = """
    FROM series
    JOIN sums AS upto ON upto.series = series.id
        AND upto.quarter = (SELECT MAX(quarter) FROM sums WHERE series = series.id AND quarter < ?)
    LEFT JOIN sums AS before ON before.series = series.id
        AND before.quarter = (SELECT MAX(quarter) FROM sums WHERE series = series.id AND quarter < ?)"""
"""Each series with its rows at the end of a span and before its beginning, which are to be given in this order."""

_FOREVER = 1 << 60


def series_of(connection: sqlite3.Connection, path: str, key_id: str, model: str) -> Sequence[int]:
    """The series in which a purchase counts: found, or made."""
    wanted = [*_series(path, key_id, model)]
    rows = ", ".join(["(?, ?, ?, ?)"] * len(wanted))
    values = [value for names in wanted for value in names]
    # From the names to the series, never the other way round: as a condition they would be a walk through all series.
    query = (
        f"WITH wanted (tenant, key_id, model, path) AS (VALUES {rows}) SELECT id FROM wanted "
        "CROSS JOIN series USING (tenant, key_id, model, path)"
    )
    found = connection.execute(query, values).fetchall()
    if len(found) < len(wanted):
        connection.execute(
            f"INSERT INTO series (tenant, key_id, model, path) VALUES {rows} ON CONFLICT DO NOTHING", values
        )
        found = connection.execute(query, values).fetchall()
    return [identity for (identity,) in found]


def hold(connection: sqlite3.Connection, series: Sequence[int], quarter: int, micros: int) -> None:
    """Count `micros` as held from `quarter` on: a purchase is reserved."""
    (rows,) = connection.execute(
        f"SELECT COUNT(*) FROM sums WHERE quarter = ? AND series IN ({', '.join('?' * len(series))})",
        (quarter, *series),
    ).fetchone()
    if rows < len(series):
        connection.executemany(
            "INSERT INTO sums SELECT ?1, ?2, COALESCE(MAX(spent_micros), 0), COALESCE(MAX(held_micros), 0) FROM "
            "(SELECT spent_micros, held_micros FROM sums WHERE series = ?1 AND quarter <= ?2 "
            "ORDER BY quarter DESC LIMIT 1) WHERE TRUE ON CONFLICT (series, quarter) DO NOTHING",
            [(each, quarter) for each in series],
        )
    _add(connection, series, quarter, spent_micros=0, held_micros=micros)


def end(
    connection: sqlite3.Connection,
    series: Sequence[int],
    quarter: int,
    *,
    held_micros: int,
    spent_micros: int,
) -> None:
    """What was held from `quarter` on is held no more, and `spent_micros` (perhaps nothing) are spent.

    `quarter` is that in which the purchase was reserved, however long ago it was.
    """
    _add(connection, series, quarter, spent_micros=spent_micros, held_micros=-held_micros)


def _add(
    connection: sqlite3.Connection,
    series: Sequence[int],
    quarter: int,
    *,
    spent_micros: int,
    held_micros: int,
) -> None:
    connection.executemany(
        "UPDATE sums SET spent_micros = spent_micros + ?, held_micros = held_micros + ? "
        "WHERE series = ? AND quarter >= ?",
        [(spent_micros, held_micros, each, quarter) for each in series],
    )


def within(
    connection: sqlite3.Connection,
    tenant: str,
    key_ids: Sequence[str],
    models: Collection[str] | None,
    span: Span,
) -> tuple[int, int]:
    """Micro-dollars spent and held in `span`: by a tenant with all below it, or by its keys, where some are named.

    By those `models` alone, if some are named. What is held counts in the quarter in which it was reserved, as well.
    """
    if span.end is not None and span.end <= span.start:
        return 0, 0
    chosen, keys = ("",) if models is None else tuple(models), key_ids or ("",)
    spent, held = connection.execute(
        f"""
        SELECT COALESCE(SUM(upto.spent_micros - COALESCE(before.spent_micros, 0)), 0),
            COALESCE(SUM(upto.held_micros - COALESCE(before.held_micros, 0)), 0)
        {_FROM_TO}
        WHERE tenant = ? AND key_id IN ({", ".join("?" * len(keys))}) AND model IN ({", ".join("?" * len(chosen))})
        """,
        (_end(span), span.start, tenant, *keys, *chosen),
    ).fetchone()
    return spent, held


def by_tenant_and_model(
    connection: sqlite3.Connection, which: Literal["spent_micros", "held_micros"], tenant: str | None
) -> Iterator[tuple[str, str, int]]:
    """What was ever spent, or is held, with a tenant's own keys, by tenant and model; one tenant's, if one is named."""
    condition, values = ("", ()) if tenant is None else ("AND tenant = ?", (tenant,))
    yield from connection.execute(
        f"""
        SELECT tenant, model, SUM({which}) FROM series
        JOIN sums ON sums.series = series.id AND quarter = (SELECT MAX(quarter) FROM sums WHERE series = series.id)
        WHERE key_id != '' AND model != '' {condition} GROUP BY tenant, model HAVING SUM({which}) > 0
        """,
        values,
    )


def by_key(connection: sqlite3.Connection, span: Span) -> Iterator[tuple[str, str, str, int, int]]:
    """Path, key and model of everything that was spent or is held in `span`, with the micro-dollars of either."""
    yield from connection.execute(
        f"""
        SELECT path, key_id, model, upto.spent_micros - COALESCE(before.spent_micros, 0) AS spent,
            upto.held_micros - COALESCE(before.held_micros, 0) AS held
        {_FROM_TO}
        WHERE key_id != '' AND model != '' AND (spent OR held)
        """,
        (_end(span), span.start),
    )


def frees_at(
    connection: sqlite3.Connection,
    tenant: str,
    key_ids: Sequence[str],
    models: Collection[str] | None,
    span: Span,
    *,
    shortfall_micros: int,
    rolling_seconds: int,
) -> int | None:
    """The first quarter in which a rolling window has forgotten `shortfall_micros` of what `span` holds now.

    Everything that is held is taken for spent. None where that never comes: there is less than that to forget, or the
    window is in force no longer then.
    """
    taken, last = _taken(connection, tenant, key_ids, models, span), _last(connection, tenant, key_ids)
    if taken < shortfall_micros or last is None:
        return None
    low, high = span.start, last
    while low < high:
        middle = (low + high) // 2
        if _taken(connection, tenant, key_ids, models, Span(span.start, middle + 1)) >= shortfall_micros:
            high = middle
        else:
            low = middle + 1
    frees = low + 1 + rolling_seconds // SECONDS_PER_QUARTER
    return frees if span.end is None or frees < span.end else None


def _taken(
    connection: sqlite3.Connection,
    tenant: str,
    key_ids: Sequence[str],
    models: Collection[str] | None,
    span: Span,
) -> int:
    return sum(within(connection, tenant, key_ids, models, span))


def _end(span: Span) -> int:
    return _FOREVER if span.end is None else span.end


def _last(connection: sqlite3.Connection, tenant: str, key_ids: Sequence[str]) -> int | None:
    """The last quarter in which anything was reserved."""
    keys = key_ids or ("",)
    (last,) = connection.execute(
        "SELECT MAX((SELECT MAX(quarter) FROM sums WHERE series = series.id)) FROM series "
        f"WHERE tenant = ? AND key_id IN ({', '.join('?' * len(keys))}) AND model = ''",
        (tenant, *keys),
    ).fetchone()
    return None if last is None else int(last)


def discrepancies(connection: sqlite3.Connection) -> Iterator[Discrepancy]:
    """Where the sums are not what the purchases come to, or one is there without the other."""
    kept = {*connection.execute("SELECT tenant, key_id, model, path FROM series")}
    bought = connection.execute(
        "SELECT DISTINCT path, key_id, model FROM purchases WHERE state != 'released'"
    )
    for names in sorted({names for each in bought for names in _series(*each)} - kept):
        yield Discrepancy(_called(*names), "there are purchases, and no sums of them")
    for names in sorted(kept):
        if names[3].rpartition("/")[2] != names[0]:
            yield Discrepancy(_called(*names), "the path is another tenant's")
    for *names, quarter, spent, held, owed_spent, owed_held in connection.execute(
        f"""
        WITH {_PLACES}, {_INCREMENTS},
        kept AS (
            SELECT series, quarter, spent_micros - LAG(spent_micros, 1, 0) OVER run AS spent,
                held_micros - LAG(held_micros, 1, 0) OVER run AS held
            FROM sums WINDOW run AS (PARTITION BY series ORDER BY quarter)
        ),
        unequal AS (
            SELECT series, quarter, SUM(spent) AS spent, SUM(held) AS held, SUM(owed_spent) AS owed_spent,
                SUM(owed_held) AS owed_held
            FROM (SELECT series, quarter, spent, held, 0 AS owed_spent, 0 AS owed_held FROM kept
                UNION ALL SELECT series, quarter, 0, 0, spent, held FROM increments)
            GROUP BY series, quarter HAVING SUM(spent) != SUM(owed_spent) OR SUM(held) != SUM(owed_held)
        )
        SELECT tenant, key_id, model, series.path, quarter, spent, held, owed_spent, owed_held
        FROM unequal JOIN series ON series.id = unequal.series ORDER BY series.id, quarter
        """
    ):
        when = datetime.fromtimestamp(quarter * SECONDS_PER_QUARTER, UTC)
        yield Discrepancy(
            _called(*names),
            f"booked in the quarter of an hour of {when:%Y-%m-%d %H:%M} UTC are {spent} micro-dollars spent and {held} "
            f"held, and the purchases come to {owed_spent} and {owed_held}",
        )


def _series(path: str, key_id: str, model: str) -> Iterator[tuple[str, str, str, str]]:
    """The names of the series in which a purchase counts: tenant, key, model and path."""
    tenants = path.split("/")
    for depth, tenant in enumerate(tenants, start=1):
        place = "/".join(tenants[:depth])
        yield tenant, "", "", place
        yield tenant, "", model, place
    yield tenants[-1], key_id, "", path
    yield tenants[-1], key_id, model, path


def _called(tenant: str, key_id: str, model: str, path: str) -> str:
    of = f"{tenant}#{key_id}" if key_id else tenant
    return f"sums of {of} {f'(model {model}) ' if model else ''}at {path}"
