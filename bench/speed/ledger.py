"""What does writing money down cost? An empty ledger beside one of a million purchases: `python -m bench.speed.ledger`.

Each purchase is three durable writes, as the gateway makes them where there is nothing to wait for: reserved and marked
as being sent, ticket, settled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.paid_once.programs import DidNotStart
from bench.speed.load import QUIET_CORES
from bench.speed.machine import busy_seconds
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.generation import Blob, CacheStatus, Generation, GenerationRequest, Json
from gateway.domain.identity import Digest, Fingerprint, RequestId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, Tenant
from gateway.domain.window import Window
from gateway.ledger import sums
from gateway.ledger.contract import Sent
from gateway.ledger.sqlite import SqliteLedger
from gateway.requests.contract import Completed, RequestRecord
from gateway.requests.sqlite import SqliteRequestRecords

_NAME = "ledger"
_BOUND_SECONDS = 290.0
_MANY, _MANY_QUICKLY = 1_000_000, 50_000
_TENANTS, _MODELS, _DAYS = 20, 10, 731
_CALLERS = 16
_PURCHASES_EACH, _PURCHASES_ALONE = 100, 200
_LOOKS = 300
_WRITE_BAR_MS, _TIMES_BAR = 0.2, 1.5

_WINDOWS = (Window.DAY, Window.MONTH, Window.TOTAL)
_BUYER = Caller(Tenant("tenant-0", tuple(Budget(Money(10**15), window) for window in _WINDOWS)), "key-1")
_BLOB = Blob(Digest("ab" * 32), 3_145_728, "video/mp4")


@dataclass(frozen=True, slots=True)
class _Books:
    """One ledger file, open."""

    ledger: SqliteLedger
    records: SqliteRequestRecords


@contextmanager
def _opened(path: Path) -> Iterator[_Books]:
    with closing(SqliteDatabase(path)) as database:
        yield _Books(
            SqliteLedger(database, clock=_now, owner="bench", is_alive=lambda _: True, lease_seconds=60.0),
            SqliteRequestRecords(database, clock=_now, owner="bench", is_alive=lambda _: True),
        )


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _request() -> GenerationRequest:
    """One that nobody has made before, of a usual size."""
    name = uuid.uuid4().hex + uuid.uuid4().hex
    parameters: dict[str, Json] = {
        "prompt": f"A lighthouse in a storm, {name} ".ljust(600, "."),
        "width": 1280,
        "height": 704,
        "num_frames": 121,
        "fps": 24,
        "seed": 42,
    }
    shape = '{"height":704,"num_frames":121,"width":1280}'
    return GenerationRequest("model-0", parameters, Fingerprint(name), Money(416_000), seed=42, shape=shape)


# ---- a million purchases


async def fill(path: Path, purchases: int) -> None:
    """Have a new ledger in `path` hold so many settled purchases of two years, each with the request that it was for.

    The gateway's own code makes one, and the others are copies of its rows under other names. What it adds to the running
    totals for each is added up once.
    """
    with _opened(path) as books:
        request = _request()
        record = RequestRecord(RequestId(str(uuid.uuid4())), "tenant-0", "key-1", request, _now())
        await books.records.open(record)
        generation = await _buy(books.ledger, request, _Latencies())
        await books.records.conclude(record.id, Completed(generation, generation.cost, CacheStatus.MISS))
    await asyncio.to_thread(_copy_rows, path, purchases)


def _copy_rows(path: Path, purchases: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        database.execute("BEGIN")
        # Indexes are faster made from all rows at once than row by row.
        put_aside = database.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
        ).fetchall()
        for kind, name, _ in put_aside:
            database.execute(f"DROP {kind} {name}")
        database.execute(
            f"""
            CREATE TEMP TABLE copies AS
            WITH RECURSIVE numbers (number) AS (
                SELECT 2 UNION ALL SELECT number + 1 FROM numbers WHERE number < {purchases}
            )
            SELECT number, printf('%012x', number) || lower(hex(randomblob(10))) AS id,
                lower(hex(randomblob(32))) AS fingerprint, lower(hex(randomblob(16))) AS ticket,
                'tenant-' || (number % {_TENANTS}) AS tenant, 'model-' || (number % {_MODELS}) AS model,
                {_DAYS} - number * {_DAYS} / {purchases} AS days_ago
            FROM numbers
            """
        )
        database.execute("CREATE TEMP TABLE first AS SELECT * FROM purchases")
        own = ("id", "fingerprint", "ticket", "tenant", "model")
        purchase = {"path": "copies.tenant", **{column: f"copies.{column}" for column in own}}
        reserved_at = {"reserved_at": "original.reserved_at - 86400.0 * days_ago"}
        _copy(
            database,
            "purchases",
            {**purchase, **reserved_at, "generation": _renamed("original.generation")},
        )
        _copy(database, "purchase_parameters", {"parameters": _renamed("original.parameters")})
        request = {"id": "copies.id", "tenant": "copies.tenant", "purchase": "copies.id"}
        submitted_at = {"submitted_at": "original.submitted_at - 86400.0 * days_ago"}
        _copy(database, "requests", {**request, **submitted_at, "outcome": _renamed("original.outcome")})
        _copy(database, "requested", {"request": _renamed("original.request")})
        for statement in (
            "DELETE FROM sums",
            "DELETE FROM series",
            *sums.FROM_PURCHASES.split(";\n")[:-1],
            *(sql for *_, sql in put_aside),
            "COMMIT",
        ):
            database.execute(statement)


def _copy(database: sqlite3.Connection, table: str, others: Mapping[str, str]) -> None:
    """As many copies of the one row of `table` as there are `copies`, with `others` for what is theirs alone."""
    values = {"serial": "number", **others}
    columns = [column for _, column, *_ in database.execute(f"PRAGMA table_info({table})")]
    chosen = ", ".join(values.get(column, f"original.{column}") for column in columns)
    database.execute(
        f"INSERT INTO {table} SELECT {chosen} FROM copies JOIN first JOIN {table} AS original ON original.serial = 1 "
        "ORDER BY number"
    )


def _renamed(text: str) -> str:
    for name in ("fingerprint", "id", "ticket"):
        text = f"replace({text}, first.{name}, copies.{name})"
    return text


# ---- what it costs


@dataclass(frozen=True, slots=True)
class _Latencies:
    """Of single writes, in seconds."""

    reserve: list[float] = field(default_factory=list)
    settle: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Round:
    """So many purchases by so many callers at once."""

    each_ms: float
    """The time that went by for each reservation and each settlement; the tickets between them are paid for, too."""

    latencies: _Latencies
    quiet: bool


async def _buy(ledger: SqliteLedger, request: GenerationRequest, latencies: _Latencies) -> Generation:
    began = time.perf_counter()
    sent = await ledger.reserve(_BUYER, request, newest_known=None, sending=True)
    latencies.reserve.append(time.perf_counter() - began)
    assert isinstance(sent, Sent)  # noqa: S101 -- nobody has asked for it before
    bought = await ledger.record_ticket(sent, Ticket(uuid.uuid4().hex))
    began = time.perf_counter()
    generation = await ledger.settle(bought, cost=request.price, blobs=[_BLOB], seed=None, seconds=102.69)
    latencies.settle.append(time.perf_counter() - began)
    return generation


async def _round(ledger: SqliteLedger, *, callers: int, purchases_each: int) -> _Round:
    latencies = _Latencies()
    requests = iter([_request() for _ in range(callers * purchases_each)])

    async def buy() -> None:
        for _ in range(purchases_each):
            await _buy(ledger, next(requests), latencies)

    busy, ours, began = busy_seconds(), time.process_time(), time.perf_counter()
    await asyncio.gather(*(buy() for _ in range(callers)))
    seconds = time.perf_counter() - began
    others = (busy_seconds() - busy) - (time.process_time() - ours)
    return _Round(
        seconds * 1000 / (2 * callers * purchases_each), latencies, quiet=others <= QUIET_CORES * seconds
    )


class _Bench:
    def __init__(self, root: Path, *, repetitions: int) -> None:
        self._root = root
        self._repetitions = repetitions
        self.rows: list[dict[str, object]] = []
        self.notes: list[str] = []

    async def run(self, many: int) -> None:
        began = time.perf_counter()
        await fill(self._root / "many.sqlite3", many)
        filled = time.perf_counter()
        with _opened(self._root / "empty.sqlite3") as empty, _opened(self._root / "many.sqlite3") as full:
            discrepancies = await full.ledger.verify()
            if discrepancies:
                raise DidNotStart(f"the ledger of {many:,} purchases is not in order: {discrepancies[:3]}")
            verified = time.perf_counter()
            self.notes += [
                f"{many:,} settled purchases of {_TENANTS} tenants and {_MODELS} models over {_DAYS} days are copies of one.",
                f"They were made in {filled - began:.0f} s; `verify` found them in order in {verified - filled:.0f} s.",
                f"A durable write of one page alone, without a database: {self._sync_ms():.2f} ms (median of {_LOOKS}).",
            ]
            await self._write(empty.ledger, full.ledger, many)
            await self._look(empty, full, many)
            discrepancies = await full.ledger.verify()
            if discrepancies:
                raise DidNotStart(f"the books are not in order afterwards: {discrepancies[:3]}")

    def _sync_ms(self) -> float:
        took = []
        with (self._root / "page").open("wb", buffering=0) as file:
            for _ in range(_LOOKS):
                began = time.perf_counter()
                file.write(bytes(4096))
                os.fdatasync(file.fileno())
                took.append((time.perf_counter() - began) * 1000)
        return statistics.median(took)

    async def _write(self, empty: SqliteLedger, full: SqliteLedger, many: int) -> None:
        for ledger in (empty, full):  # what is written for the first time
            await _round(ledger, callers=_CALLERS, purchases_each=_PURCHASES_EACH)
        together: dict[SqliteLedger, list[_Round]] = {empty: [], full: []}
        alone: list[_Round] = []
        for _ in range(self._repetitions):
            # One after the other, so that what disturbs the one disturbs the other, too.
            for ledger, rounds in together.items():
                rounds.append(await _round(ledger, callers=_CALLERS, purchases_each=_PURCHASES_EACH))
            alone.append(await _round(empty, callers=1, purchases_each=_PURCHASES_ALONE))
            _say(
                f"{_CALLERS} callers: {together[empty][-1].each_ms:.3f} ms each, at {many:,}: "
                f"{together[full][-1].each_ms:.3f} ms; one caller: {alone[-1].each_ms:.3f} ms"
            )
        few, lots = ([each.each_ms for each in together[ledger]] for ledger in (empty, full))
        noise = _noise([*together[empty], *together[full]])
        self._row(
            f"ledger: reserve + settle, durable, {_CALLERS} callers, each", few, "ms", _WRITE_BAR_MS,
            f"elapsed time by reservations and settlements; the tickets between them are in it; {noise}",
        )  # fmt: skip
        self._row(
            f"ledger: the same at {many:,} settled purchases, times that of an empty one",
            [more / less for more, less in zip(lots, few, strict=True)], "x", _TIMES_BAR,
            f"{statistics.median(few):.3f} ms, {statistics.median(lots):.3f} ms at {many:,}; {noise}",
        )  # fmt: skip
        for step in ("reserve", "settle"):
            for who, rounds in ((f"{_CALLERS} callers", together[empty]), ("one caller", alone)):
                latencies = [sorted(getattr(each.latencies, step)) for each in rounds]
                for share in (50, 99):
                    values = [values[len(values) * share // 100] * 1000 for values in latencies]
                    self._row(f"ledger: p{share} of one {step}, {who}", values, "ms", None, _noise(rounds))

    async def _look(self, empty: _Books, full: _Books, many: int) -> None:
        known = [purchase.request.fingerprint for purchase in await full.ledger.purchases(limit=_LOOKS)]
        few = {purchase.request.fingerprint for purchase in await empty.ledger.purchases(limit=_LOOKS)}
        small = iter([*few] * 2)
        large = iter(known * 2)

        def newest(books: _Books) -> Callable[[], Awaitable[object]]:
            names = small if books is empty else large
            return lambda: books.ledger.newest(next(names))

        def balances(books: _Books) -> Callable[[], Awaitable[object]]:
            return lambda: books.ledger.balances_of(_BUYER.holders)

        def orphans(books: _Books) -> Callable[[], Awaitable[object]]:
            return books.ledger.orphans

        def adopt_pending(books: _Books) -> Callable[[], Awaitable[object]]:
            return lambda: books.records.adopt_pending(followed=frozenset())

        for ask in (newest, balances, orphans, adopt_pending):
            values, usual = await _latencies(ask(full)), statistics.median(await _latencies(ask(empty)))
            note = f"{usual:.3f} ms when it is empty; median of {_LOOKS}, lowest and highest quarter left out"
            self._row(f"ledger: {ask.__name__} at {many:,} settled purchases", values, "ms", None, note)

    def _row(self, what: str, values: Sequence[float], unit: str, bar: float | None, note: str) -> None:
        value = statistics.median(values)
        self.rows.append(
            {
                "what": what,
                "bar": "" if bar is None else f"<= {bar:g} {unit}",
                "value": round(value, 3),
                "unit": unit,
                "low": round(min(values), 3),
                "high": round(max(values), 3),
                "met": None if bar is None else value <= bar,
                "note": note,
            }
        )


async def _latencies(ask: Callable[[], Awaitable[object]]) -> Sequence[float]:
    """The middle half of so many answers, in milliseconds."""
    took = []
    for _ in range(_LOOKS):
        began = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)[_LOOKS // 4 : -_LOOKS // 4]


def _noise(rounds: Sequence[_Round]) -> str:
    quiet = sum(each.quiet for each in rounds)
    return "quiet" if quiet == len(rounds) else f"noisy: {quiet} of {len(rounds)} rounds were quiet"


async def _run(options: argparse.Namespace) -> dict[str, object]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- this is a coroutine
    # Told to stop, it puts away what it has made first.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="ledger-", dir=options.directory) as name:
        bench = _Bench(Path(name), repetitions=options.repetitions)
        async with asyncio.timeout(_BOUND_SECONDS):
            await bench.run(options.purchases)
    return {"name": _NAME, "rows": bench.rows, "notes": bench.notes}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- progress


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"with {_MANY_QUICKLY:,} purchases")
    parser.add_argument("--purchases", type=int, help="how many are many")
    parser.add_argument("--repetitions", type=int, help="of each measurement (default: 7; quick: 3)")
    parser.add_argument("--directory", type=Path, help="on whose disk the ledger lies")
    options = parser.parse_args()
    options.purchases = options.purchases or (_MANY_QUICKLY if options.quick else _MANY)
    options.repetitions = options.repetitions or (3 if options.quick else 7)
    return options


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        print(json.dumps(asyncio.run(_run(_options()))))  # noqa: T201 -- a command prints
