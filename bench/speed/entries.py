"""Does it matter how much is remembered? A thousand entries against a million: `python -m bench.speed.entries [--quick]`.

Each entry has a blob. First the cache alone is asked, by a process that was just started, for what it has not asked for
before; then a whole gateway is started on as much. Both with the files in the system's memory, and both after they were
dropped from there.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.paid_once.ours import PROJECT
from bench.paid_once.programs import DidNotStart
from bench.speed import servers
from bench.speed.machine import Cores, cores, pinned, stop_when_told
from bench.speed.servers import Asked, Server
from bench.speed.stub import stub, write_models
from gateway.blobs.disk import DiskBlobStore
from gateway.cache.disk import DiskGenerationCache
from gateway.domain.generation import Artifact, Blob, Generation
from gateway.domain.identity import Digest, Fingerprint, PurchaseId, Ticket
from gateway.domain.money import Money

_NAME = "entries"
_BOUND_SECONDS = 1500.0
_FEW, _MANY, _MANY_QUICKLY = 1000, 1_000_000, 50_000
_ROOMY = 1 << 42
_LOOKS = 500
_TIMES_BAR, _START_BAR_SECONDS = 3.0, 1.0
_BLOB_BYTES = 835_000
_QUESTION = Asked("bench-text-v1", b'{"prompt": "A lighthouse in a storm"}')


# ---- what is remembered


async def fill(storage: Path, entries: int) -> None:
    """Have the two stores in `storage` hold so many entries more, each with a blob of its own.

    The stores put one of each themselves, and the others are copies of its rows under other names. Their files are
    empty: that they are there is what a start looks at, and nobody asks for what is in them.
    """
    await _put_first(storage)
    await asyncio.to_thread(_copy_rows, storage / "cache", entries, _fingerprint, _entry)
    await asyncio.to_thread(_copy_rows, storage / "blobs" / "index", entries, _digest, _same)
    await asyncio.to_thread(_touch_files, storage / "blobs" / "sha256", entries)


def _fingerprint(number: int) -> Fingerprint:
    return Fingerprint(hashlib.sha256(b"entry %d" % number).hexdigest())


def _digest(number: int) -> Digest:
    return Digest(hashlib.sha256(b"blob %d" % number).hexdigest())


async def _put_first(storage: Path) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"blob 0"

    def no_objection(_path: Path, _media_type: str) -> None:
        """Nobody looks at it."""

    generation = Generation(
        fingerprint=_fingerprint(0),
        model="ltx-2-19b-t2v",
        blobs=(Blob(_digest(0), _BLOB_BYTES, "video/mp4"),),
        cost=Money(416_000),
        purchase=PurchaseId("0123456789abcdef0123456789abcdef"),
        ticket=Ticket("0123456789abcdef0123456789abcdef"),
        made_at=1_795_000_000.123457,
        seconds=102.69,
        seed=42,
    )
    with (
        closing(DiskBlobStore(storage / "blobs", max_bytes=_ROOMY)) as blobs,
        closing(DiskGenerationCache(storage / "cache", max_bytes=_ROOMY)) as cache,
    ):
        await blobs.put(Artifact("video/mp4", content()), no_objection)
        await cache.put(generation)


def _entry(value: object, number: int) -> object:
    assert isinstance(value, bytes)  # noqa: S101 -- what the cache has just put
    value = value.replace(_fingerprint(0).encode(), _fingerprint(number).encode())
    return value.replace(_digest(0).encode(), _digest(number).encode())


def _same(value: object, _number: int) -> object:
    return value


def _copy_rows(
    index: Path, entries: int, name: Callable[[int], str], content: Callable[[object, int], object]
) -> None:
    """What diskcache counts with a trigger for each row is counted once here: it would take minutes."""
    with closing(sqlite3.connect(index / "cache.db", isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        database.execute("BEGIN")
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            database.execute(f"DROP TRIGGER {trigger}")
        ((used_at, size, value),) = database.execute(
            "SELECT access_time, size, value FROM Cache WHERE key = ?", (name(0),)
        )
        database.executemany(
            "INSERT INTO Cache (key, raw, store_time, access_time, size, mode, value) VALUES (?, 1, ?, ?, ?, 1, ?)",
            (
                (name(number), used_at - number, used_at - number, size, content(value, number))
                for number in range(1, entries)
            ),
        )
        for setting, sum_ in (("count", "count(*)"), ("size", "sum(size)")):
            database.execute(
                f"UPDATE Settings SET value = (SELECT {sum_} FROM Cache) WHERE key = ?", (setting,)
            )
        for _, sql in triggers:
            database.execute(sql)
        database.execute("COMMIT")


def _touch_files(blobs: Path, entries: int) -> None:
    for folder in range(256):
        (blobs / f"{folder:02x}").mkdir(exist_ok=True)
    for number in range(1, entries):
        digest = _digest(number)
        os.close(os.open(blobs / digest[:2] / digest, os.O_CREAT | os.O_WRONLY, 0o600))


def _drop_from_memory(storage: Path) -> None:
    """Have the databases' pages read from the disk again. The names of a million files stay known."""
    for path in (storage / "cache" / "cache.db", storage / "blobs" / "index" / "cache.db"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


# ---- what it costs


@dataclass(frozen=True, slots=True)
class _Looks:
    """Of one process that was just started."""

    open_seconds: float
    get_seconds: float
    """The median over what it had not asked for before."""


async def _look(storage: Path, entries: int, where: Cores) -> _Looks:
    words = ("-m", "bench.speed.entries", "--look", str(storage), "--entries", str(entries))
    child = await asyncio.create_subprocess_exec(
        *map(str, pinned([sys.executable, *words], where.server)), cwd=PROJECT, stdin=DEVNULL, stdout=PIPE
    )
    said, _ = await child.communicate()
    if child.returncode != 0:
        raise DidNotStart(f"what looks entries up ended with status {child.returncode}")
    return _Looks(**json.loads(said))


async def _look_here(storage: Path, entries: int) -> _Looks:
    choose = random.Random(entries)  # noqa: S311 -- not for secrets
    began = time.perf_counter()
    with closing(DiskGenerationCache(storage / "cache", max_bytes=_ROOMY)) as cache:
        opened = time.perf_counter()
        looks = []
        for number in choose.sample(range(entries), _LOOKS):
            name = _fingerprint(number)
            asked = time.perf_counter()
            found = await cache.get(name)
            looks.append(time.perf_counter() - asked)
            if found is None:
                raise DidNotStart(f"entry {number} of {entries} is not there")
        return _Looks(opened - began, statistics.median(looks))


class _Bench:
    def __init__(self, root: Path, where: Cores, *, repetitions: int) -> None:
        self._root = root
        self._cores = where
        self._repetitions = repetitions
        self.starts: dict[tuple[int, bool], list[float]] = {}
        self.looks: dict[tuple[int, bool], list[_Looks]] = {}

    async def run(self, sizes: Sequence[int]) -> None:
        await asyncio.to_thread(write_models, self._root / "models")
        roots = {entries: self._root / str(entries) for entries in sizes}
        for entries, root in roots.items():
            root.mkdir()
            await self._run(root, entries)

    async def _run(self, root: Path, entries: int) -> None:
        storage = root / "gateway-1" / "var"
        settings = (
            f"models={self._root / 'models'}",
            *("storage.max_bytes=4TiB", "storage.entries_max_bytes=4TiB"),
        )
        async with (
            stub(root, self._cores) as upstream,
            servers.gateway(root, upstream, self._cores, settings=settings) as gateway,
        ):
            await gateway.program.stop()
            began = time.monotonic()
            await fill(storage, entries)
            _say(f"{entries:,} entries: made in {time.monotonic() - began:.0f} s")
            await gateway.start()
            await gateway.warm([_QUESTION])
            for dropped in (False, True):
                for _ in range(self._repetitions):
                    await self._measure(gateway, storage, entries, dropped=dropped)

    async def _measure(self, gateway: Server, storage: Path, entries: int, *, dropped: bool) -> None:
        await gateway.program.stop()
        if dropped:
            await asyncio.to_thread(_drop_from_memory, storage)
        looks = await _look(storage, entries, self._cores)
        self.looks.setdefault((entries, dropped), []).append(looks)
        if dropped:
            await asyncio.to_thread(_drop_from_memory, storage)
        start_seconds = await gateway.restart(_QUESTION)
        self.starts.setdefault((entries, dropped), []).append(start_seconds)
        _say(
            f"{entries:,} entries{', dropped from memory' * dropped}: first hit {start_seconds:.3f} s after the start; "
            f"cache open in {looks.open_seconds * 1000:.1f} ms, "
            f"look-up {looks.get_seconds * 1e6:.0f} µs"
        )

    def rows(self, few: int, many: int) -> list[dict[str, object]]:
        return [row for dropped in (False, True) for row in self._rows(few, many, dropped=dropped)]

    def _rows(self, few: int, many: int, *, dropped: bool) -> list[dict[str, object]]:
        how = ", files not in the system's memory" if dropped else ""
        usual = statistics.median(look.get_seconds for look in self.looks[few, dropped])
        looks = [look.get_seconds for look in self.looks[many, dropped]]
        opened = [look.open_seconds * 1000 for look in self.looks[many, dropped]]
        starts = self.starts[many, dropped]
        small = statistics.median(self.starts[few, dropped])
        return [
            _row(
                f"cold look-up in the cache at {many:,} entries, times that at {few:,}{how}",
                [look / usual for look in looks],
                "x",
                bar=None if dropped else _TIMES_BAR,
                note=f"{usual * 1e6:.0f} µs at {few:,}, {statistics.median(looks) * 1e6:.0f} µs at {many:,}; median of "
                f"{_LOOKS} entries that a process which was just started asks for",
            ),
            _row(
                f"start with {many:,} entries and blobs, to the first hit{how}",
                starts,
                "s",
                bar=None if dropped else _START_BAR_SECONDS,
                note=f"{small:.3f} s with {few:,}",
            ),
            _row(f"opening the cache at {many:,} entries{how}", opened, "ms", bar=None, note=""),
        ]


def _row(what: str, values: Sequence[float], unit: str, *, bar: float | None, note: str) -> dict[str, object]:
    value = statistics.median(values)
    return {
        "what": what,
        "bar": "" if bar is None else f"<= {bar:g} {unit}",
        "value": round(value, 3),
        "unit": unit,
        "low": round(min(values), 3),
        "high": round(max(values), 3),
        "met": None if bar is None else value <= bar,
        "note": note,
    }


async def _run(options: argparse.Namespace) -> dict[str, object]:
    stop_when_told()
    where = cores()
    if where.load:
        os.sched_setaffinity(0, where.load)
    many = options.entries or (_MANY_QUICKLY if options.quick else _MANY)
    with tempfile.TemporaryDirectory(prefix="entries-", dir=options.directory) as name:
        bench = _Bench(Path(name), where, repetitions=options.repetitions)
        async with asyncio.timeout(_BOUND_SECONDS):
            await bench.run([_FEW, many])
    notes = [
        f"{many:,} rows in either index, copies of one that the gateway wrote; files of blobs that nobody asks for are empty.",
        "What a start looks at behind callers' backs begins two seconds after it, and is not in these numbers.",
        str(where),
    ]
    return {"name": _NAME, "rows": bench.rows(_FEW, many), "notes": notes}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 -- progress


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.speed.entries", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"with {_MANY_QUICKLY:,} entries")
    parser.add_argument("--entries", type=int, help="how many are many")
    parser.add_argument("--repetitions", type=int, help="of each measurement (default: 5; quick: 3)")
    parser.add_argument("--directory", type=Path, help="on whose disk the gateway stores")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.repetitions = options.repetitions or (3 if options.quick else 5)
    return options


if __name__ == "__main__":
    asked = _options()
    with suppress(KeyboardInterrupt):
        if asked.look:
            found = asyncio.run(_look_here(asked.look, asked.entries))
            told: object = {"open_seconds": found.open_seconds, "get_seconds": found.get_seconds}
        else:
            told = asyncio.run(_run(asked))
        print(json.dumps(told))  # noqa: T201 -- a command prints
