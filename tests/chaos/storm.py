"""A storm: callers, faults of the upstream and signals, all at once, out of one seed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.callers import BudgetSaysNo, Caller, Received, requests, seeded
from tests.chaos.invariants import Figures, examined
from tests.chaos.processes import END_SECONDS, SETTINGS, Process, World, kill, world

Chance = random.Random
_LEASE_SECONDS: float = SETTINGS["ledger.lease_seconds"]
_CALM_SECONDS = 200.0
"""How long it may take until everybody has what they asked for once nothing strikes any more."""

_REQUESTS_A_ROUND = 3


def _some(chance: Chance, most: int) -> dict[str, Any]:
    return {"count": chance.randint(1, most)}


def _often(chance: Chance) -> dict[str, Any]:
    return {"probability": round(chance.uniform(0.1, 0.5), 2)}


FAULTS: Mapping[str, Callable[[Chance], dict[str, Any]]] = {
    "submit_rate_limited": lambda c: _some(c, 5) | {"reset_seconds": 0.5},
    "submit_refused": lambda c: _some(c, 5) | {"status": c.choice((500, 503))},
    "insufficient_credits": lambda c: _some(c, 2),
    "submit_dropped": lambda c: _some(c, 3),
    "submit_error": lambda c: _some(c, 3) | {"status": c.choice((502, 504))},
    "submit_slow": lambda c: _some(c, 2) | {"seconds": round(c.uniform(0.2, 1.5), 2)},
    "poll_rate_limited": lambda c: _some(c, 6) | {"reset_seconds": 0.5},
    "poll_error": lambda c: _often(c) | {"status": c.choice((502, 504))},
    "unknown_status": _often,
    "result_error": lambda c: _some(c, 4) | {"status": c.choice((502, 504))},
    "result_missing": lambda c: _some(c, 2) | {"seconds": round(c.uniform(0.2, 1.5), 2)},
    "record_expired": lambda c: _some(c, 2) | {"seconds": round(c.uniform(0, 0.5), 2)},
    "failed": lambda c: _some(c, 2) | {"status": c.choice((422, 200))},
    "moderation": lambda c: _some(c, 1) | {"status": c.choice((422, 200))},
    "cold_start": lambda c: _some(c, 2) | {"seconds": round(c.uniform(0.5, 2.0), 2)},
    "cost_missing": _often,
    "history_lag": lambda c: _often(c) | {"seconds": round(c.uniform(0.5, 3.0), 2)},
    "hex_request_id": _often,
    "output_as_list": _often,
    "output_as_object": _often,
    "download_slow": lambda c: _some(c, 2) | {"seconds": round(c.uniform(0.2, 1.5), 2)},
    "download_truncated": lambda c: _some(c, 3) | {"fraction": round(c.uniform(0.01, 0.99), 2)},
    "download_corrupted": lambda c: _some(c, 2) | {"at": round(c.random(), 2)},
    "file_gone": lambda c: _some(c, 5) | {"status": c.choice((404, 403))},
}
"""Every fault that passes, with a draw of its knobs. Those that stay with a job for ever are left to tests of their own."""

SIGNALS = {
    "worker killed": 5,
    "worker stalled": 4,
    "gateway killed": 2,
    "supervisor killed": 1,
    "gateway terminated": 2,
    "gateway replaced": 1,
    "sandbox killed": 1,
}
"""What is done to processes, and how often each is done."""

_TRIES_BEFORE_A_BROKEN_RESULT_IS_LOST = 3


@dataclass
class Weather:
    """How hard it blows."""

    seed: str
    callers: int = 20
    rounds: int = 4
    """How many requests each caller makes; three new ones come with each round."""

    seconds: float = 9.0
    """For how long anything strikes."""

    workers: int = 2
    time_scale: float = 0.6
    hang_up: float = 0.15
    longest_lull_seconds: float = 1.0
    faults: Mapping[str, Callable[[Chance], dict[str, Any]]] = field(default_factory=lambda: FAULTS)
    signals: Mapping[str, int] = field(default_factory=lambda: SIGNALS)
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget_usd: str = "1000"


@dataclass
class Report:
    """What happened, and what it came to."""

    seed: str
    received: Received
    signals: Counter[str]
    faults: Counter[str]
    figures: Figures


class Storm:
    def __init__(self, weather: Weather, here: World, session: aiohttp.ClientSession) -> None:
        self._weather = weather
        self._here = here
        self._session = session
        self._received = Received()
        self._requests = requests(weather.rounds * _REQUESTS_A_ROUND + 1)
        self._signals: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._corruptions = 0
        self._over = False
        self._stalled: set[int] = set()
        self._gateway: Process | None = None

    @property
    def _now(self) -> Process:
        assert self._gateway is not None
        return self._gateway

    async def blow(self) -> Report:
        """From the first request to the last look at the books."""
        self._gateway = await self._here.start(workers=self._weather.workers)
        async with asyncio.TaskGroup() as everybody:
            for number in range(self._weather.callers):
                everybody.create_task(self._call(number))
            everybody.create_task(self._trouble())
        return await self._settle()

    async def _call(self, number: int) -> None:
        chance = seeded(self._weather.seed, "caller", number)
        caller = self._caller(chance, hang_up=self._weather.hang_up)
        names = list(self._requests)
        for turn in range(self._weather.rounds):
            await asyncio.sleep(chance.uniform(0, self._weather.longest_lull_seconds))
            first = turn * _REQUESTS_A_ROUND
            known = (
                names[: first + 1] if chance.random() < 0.2 else names[first : first + _REQUESTS_A_ROUND + 1]
            )
            name = chance.choice(known)
            await self._have(caller, self._requests[name], name)

    async def _have(self, caller: Caller, request: Mapping[str, Any], name: str) -> None:
        try:
            await caller.have(request, name)
        except BudgetSaysNo:
            self._received.counts["refused for the budget"] += 1

    def _caller(self, chance: Chance, *, hang_up: float) -> Caller:
        return Caller(
            self._here,
            self._session,
            self._received,
            url=lambda: self._now.url,
            chance=chance,
            hang_up=hang_up,
        )

    # --- Trouble

    async def _trouble(self) -> None:
        """For its time; then nothing strikes any more, and everything that was stalled goes on."""
        try:
            async with asyncio.TaskGroup() as troubles:
                troubles.create_task(self._misbehave())
                troubles.create_task(self._harass(troubles))
                await asyncio.sleep(self._weather.seconds)
                self._over = True
        finally:
            for pid in self._stalled:
                kill(pid, signal.SIGCONT)
        await self._here.calm(self._session)

    async def _misbehave(self) -> None:
        chance = seeded(self._weather.seed, "faults")
        while not self._over:
            names = chance.sample(sorted(self._weather.faults), k=3)
            drawn = {name: self._weather.faults[name](chance) for name in names}
            self._corruptions += drawn.get("download_corrupted", {}).get("count", 0)
            try:
                await self._here.faults(self._session, drawn)
                self._faults.update(names)
                await asyncio.sleep(chance.uniform(0.1, 0.8))
                if chance.random() < 0.3:
                    await self._here.calm(self._session)
            except aiohttp.ClientError:
                # The sandbox is being killed; it comes back without any fault.
                await asyncio.sleep(0.2)

    async def _harass(self, troubles: asyncio.TaskGroup) -> None:
        chance = seeded(self._weather.seed, "signals")
        kinds, weights = zip(*self._weather.signals.items(), strict=True)
        while not self._over:
            await asyncio.sleep(chance.uniform(0.3, 1.5))
            assert self._now.process.returncode is None, "the gateway has ended by itself"
            (kind,) = chance.choices(kinds, weights)
            self._signals[kind] += 1
            match kind:
                case "worker killed" if self._weather.workers > 1:
                    kill(chance.choice(self._now.workers), signal.SIGKILL)
                case "worker stalled":
                    seconds = _LEASE_SECONDS * chance.uniform(0.5, 1.8)
                    troubles.create_task(self._stall(chance.choice(self._now.workers), seconds))
                case "gateway killed" | "worker killed":
                    self._now.kill_all()
                    await self._start()
                case "supervisor killed":
                    # Its workers notice, and leave in their own time, beside those that come.
                    self._now.send(signal.SIGKILL)
                    await self._start()
                case "gateway terminated":
                    self._now.send(signal.SIGTERM)
                    await self._start()
                case "gateway replaced":
                    before = self._now
                    await self._start()
                    before.send(signal.SIGTERM)
                case _:
                    await self._here.restart_sandbox()

    async def _start(self) -> None:
        self._gateway = await self._here.start(workers=self._weather.workers)

    async def _stall(self, pid: int, seconds: float) -> None:
        """Stop a process for a while that may be longer than its lease."""
        self._stalled.add(pid)
        kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        kill(pid, signal.SIGCONT)
        self._stalled.discard(pid)

    # --- Afterwards

    async def _settle(self) -> Report:
        """Everybody is served, everything ends, and the books are looked at."""
        before = self._now
        await self._start()
        before.send(signal.SIGTERM)
        await before.ended()
        async with asyncio.timeout(_CALM_SECONDS):
            caller = self._caller(seeded(self._weather.seed, "last"), hang_up=0.0)
            await self._until_nothing_is_open()
            for name, request in self._requests.items():
                await self._have(caller, request, name)
            outcomes = Counter([await caller.outcome(identity) for identity in sorted(self._received.issued)])
            await self._until_nothing_is_open()
        self._received.counts.update({f"v2 {outcome.lower()}": count for outcome, count in outcomes.items()})
        # Whatever the killed have left is swept by whoever starts next.
        self._now.send(signal.SIGTERM)
        assert await self._now.ended() == 0
        async with asyncio.timeout(END_SECONDS):
            while self._here.left_over():
                await asyncio.sleep(0.1)
        figures = await examined(
            self._here,
            self._session,
            self._received,
            lost_at_most=self._corruptions // _TRIES_BEFORE_A_BROKEN_RESULT_IS_LOST,
        )
        return Report(self._weather.seed, self._received, self._signals, self._faults, figures)

    async def _until_nothing_is_open(self) -> None:
        while (await self._here.books()).held_micros:
            await asyncio.sleep(0.2)


async def blown_over(directory: Path, weather: Weather) -> Report:
    """One storm in a world of its own."""
    print(f"CHAOS_SEED={weather.seed}")  # noqa: T201 -- shown with whatever fails
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        world(
            directory,
            settings=weather.settings,
            budget_usd=weather.budget_usd,
            time_scale=weather.time_scale,
        ) as here,
        aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        return await Storm(weather, here, session).blow()
