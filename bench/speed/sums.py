"""What do running totals cost when there are a million purchases? `python -m bench.speed.sums`.

CPU time of what a reservation and a settlement do to the sums, by how many levels of the tree there are and how many
budgets each has: beside an empty ledger, one of 100,000 and one of 1,000,000 purchases of a year.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gateway.domain.window import Per, Window, quarter
from gateway.ledger import sums

_NAME = "sums"
_TIMES_BAR = 2.0
_NOW = 1_795_000_000.0
"""What the clock says at first: some evening; nothing is special about it."""

_YEAR_QUARTERS = 365 * 96
_MODELS = ("ltx", "kling", "flux")
_LEVELS = (1, 3, 5)
_TEAMS, _KEYS = 40, 5
_PURCHASES = 1000
_BETWEEN_SECONDS = 30.0
"""From one purchase to the next: a year of a million has one in so many."""

_WINDOWS = (
    Window(Per.DAY, "Europe/Berlin"),
    Window(Per.MONTH, "Europe/Berlin"),
    Window(Per.ROLLING, rolling_seconds=30 * 86_400),
    Window.TOTAL,
)
_SHAPES = ((1, 2), (3, 2), (5, 4))
"""Levels, and budgets of each."""

_JOURNAL = """
    CREATE TABLE purchases (
        serial INTEGER PRIMARY KEY, path TEXT, key_id TEXT, model TEXT, quarter INTEGER, state TEXT, held_micros INTEGER,
        cost_micros INTEGER, ended_at REAL
    )"""
"""As much of it as the sums are made from."""


def _path(team: int) -> str:
    """Of one, three or five levels: the teams of a root share what is above them."""
    levels = _LEVELS[team % len(_LEVELS)]
    return "/".join([*(f"level-{levels}-{level}" for level in range(1, levels)), f"team-{team}"])


def fill(path: Path, purchases: int) -> None:
    """A ledger of so many settled purchases, evenly over the year before now."""
    chance = random.Random(purchases)  # noqa: S311 -- no secret
    paths = [_path(team) for team in range(_TEAMS)]
    begins = quarter(_NOW) - _YEAR_QUARTERS
    with closing(_opened(path)) as connection:
        connection.execute(_JOURNAL)
        for statement in sums.SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO purchases VALUES (?, ?, ?, ?, ?, 'settled', 416000, 416000, 1.0)",
            (
                (
                    number,
                    chance.choice(paths),
                    f"key-{chance.randrange(_KEYS)}",
                    chance.choice(_MODELS),
                    begins + number * _YEAR_QUARTERS // purchases,
                )
                for number in range(purchases)
            ),
        )
        for statement in sums.FROM_PURCHASES.split(";"):
            connection.execute(statement)
        connection.execute("COMMIT")


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    # CPU is what is measured: a disk would be as busy with an empty ledger.
    connection.execute("PRAGMA synchronous = OFF")
    return connection


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of one purchase, in microseconds of CPU."""

    reserve: float
    settle: float

    @property
    def together(self) -> float:
        return self.reserve + self.settle


class _Buyer:
    """Buys one thing after the other while time goes on."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._now = _NOW

    def buy(self, levels: int, budgets: int, *, purchases: int) -> _Cost:
        """So many by a team so deep in the tree; a key of its own has no budget, and each level above so many."""
        path = _path(_LEVELS.index(levels))
        reserve = settle = 0.0
        for number in range(purchases):
            self._now += _BETWEEN_SECONDS
            began = time.process_time()
            self._connection.execute("BEGIN IMMEDIATE")
            for tenant in path.split("/"):
                for window in _WINDOWS[:budgets]:
                    span = window.span(self._now)
                    assert span is not None  # noqa: S101 -- none of them has dates
                    sums.within(self._connection, tenant, (), None, span)
            series = sums.series_of(self._connection, path, f"key-{number % _KEYS}", _MODELS[number % 3])
            sums.hold(self._connection, series, quarter(self._now), 416_000)
            self._connection.execute("COMMIT")
            reserved = time.process_time()
            self._connection.execute("BEGIN IMMEDIATE")
            series = sums.series_of(self._connection, path, f"key-{number % _KEYS}", _MODELS[number % 3])
            sums.end(self._connection, series, quarter(self._now), held_micros=416_000, spent_micros=400_000)
            self._connection.execute("COMMIT")
            reserve += reserved - began
            settle += time.process_time() - reserved
        return _Cost(reserve / purchases * 1e6, settle / purchases * 1e6)


def _measure(root: Path, sizes: Sequence[int], repetitions: int) -> tuple[list[dict[str, object]], list[str]]:
    notes, buyers = [], {}
    connections = []
    for size in sizes:
        path = root / f"{size}.sqlite3"
        began = time.process_time()
        fill(path, size)
        _say(f"{size:,} purchases are there")
        connection = _opened(path)
        connections.append(connection)
        rows, series = (
            connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("sums", "series")
        )
        filled = time.process_time()
        wrong = list(sums.discrepancies(connection))
        if wrong:
            raise ValueError(f"the sums of {size:,} purchases are not in order: {wrong[:3]}")
        notes.append(
            f"{size:,} purchases: {rows:,} rows of sums of {series:,} series, {path.stat().st_size / 1e6:,.0f} MB with as "
            f"much of the journal as they are made from; made in {filled - began:.0f} s of CPU, examined in "
            f"{time.process_time() - filled:.0f} s."
        )
        buyers[size] = _Buyer(connection)
    told = []
    for levels, budgets in _SHAPES:
        for buyer in buyers.values():  # series are made, and pages read for the first time
            buyer.buy(levels, budgets, purchases=_PURCHASES // 10)
        costs: dict[int, list[_Cost]] = {size: [] for size in sizes}
        for _ in range(repetitions):
            for size, buyer in buyers.items():
                costs[size].append(buyer.buy(levels, budgets, purchases=_PURCHASES))
        _say(
            f"{levels} levels of {budgets} budgets: {[round(costs[size][-1].together) for size in sizes]} us"
        )
        empty = costs[sizes[0]]
        for size in sizes:
            what = f"sums: reserve + settle at {size:,} purchases, {levels} level{'s' * (levels > 1)} of {budgets} budgets"
            middle = sorted(costs[size], key=lambda cost: cost.together)[repetitions // 2]
            note = f"CPU: reserve {middle.reserve:.0f} us, settle {middle.settle:.0f} us"
            told.append(_row(what, "us", [cost.together for cost in costs[size]], None, note))
        times = [many.together / few.together for many, few in zip(costs[sizes[-1]], empty, strict=True)]
        told.append(_row(f"{what}, times that of an empty ledger", "x", times, _TIMES_BAR, ""))
    for connection in connections:
        connection.close()
    return told, notes


def _row(what: str, unit: str, values: Sequence[float], bar: float | None, note: str) -> dict[str, object]:
    value = statistics.median(values)
    return {
        "what": what,
        "bar": "" if bar is None else f"<= {bar:g} {unit}",
        "value": round(value, 2),
        "unit": unit,
        "low": round(min(values), 2),
        "high": round(max(values), 2),
        "met": None if bar is None else value <= bar,
        "note": note,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- progress


def main() -> None:
    """Print one JSON object as the last line."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed.sums", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="with at most 50,000 purchases")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement")
    parser.add_argument("--directory", type=Path, help="where the ledgers lie meanwhile")
    options = parser.parse_args()
    sizes = (0, 5000, 50_000) if options.quick else (0, 100_000, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="sums-", dir=options.directory) as root:
        rows, notes = _measure(Path(root), sizes, options.repetitions)
    print(json.dumps({"name": _NAME, "rows": rows, "notes": notes}))  # noqa: T201 -- a command prints


if __name__ == "__main__":
    main()
