"""Reports against purchases, answers and transfers added up one by one: over random histories, groupings, zones and days."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gateway.accounting.asking import Asked, By, asked
from gateway.accounting.focus import COLUMNS, focused, to_focus
from gateway.accounting.usage import AMOUNTS, COUNTS, Figures, Usage
from gateway.database.sqlite import SqliteDatabase, Work
from gateway.domain.errors import TenantUnknown
from gateway.domain.generation import CacheStatus
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Party, Tenant
from gateway.domain.window import Span, quarter
from gateway.ledger.contract import Bought, Sent
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_reports import SqliteReports
from gateway.ledger.sqlite_transfers import SqliteTransfers
from gateway.requests.sqlite import SqliteTallies
from gateway.tenants.contract import Declared
from gateway.tenants.sqlite import SqliteDirectory
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock, request

T = TypeVar("T")
Group = tuple[str, ...]

HIT_PRICE = Decimal("0.37")
BEGINNING = NOON - 60 * DAY_SECONDS
"""In September: summer time ends in between."""

PARENTS = {
    "acme": ("",),
    "zenith": ("",),
    "film": ("acme", "zenith", "acme", ""),
    "cut": ("film", "acme", ""),
}
"""Below whom each may be moved; the first is where it begins."""

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe")

tenants, keys, models = (
    st.sampled_from([*PARENTS]),
    st.sampled_from(("k1", "k2")),
    st.sampled_from(("m", "n")),
)
groupings = st.lists(st.sampled_from(By), unique=True).map(tuple)
numbers = st.integers(0, 1000)


@dataclass
class Row:
    """One purchase, as it ought to be reported."""

    party: Party
    model: str
    at: float
    held: int
    spent: int = 0
    state: str = "running"
    joined: dict[str, Party] = field(default_factory=dict)
    """Who owes a share, by tenant."""


@dataclass(frozen=True)
class Fact:
    """A figure, and where it belongs."""

    column: str
    party: Party
    model: str
    at: float
    amount: int


class Histories(RuleBasedStateMachine):
    """Four tenants who move about, two keys each, two models, a clock that leaps, and reports in between."""

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="reports-")
        self.clock = MovableClock(BEGINNING)
        self.database = SqliteDatabase(Path(self.directory.name) / "ledger.sqlite3")
        self.ledger = SqliteLedger(
            self.database, clock=self.clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0
        )
        self.tallies = SqliteTallies(self.database)
        self.transfers = SqliteTransfers(self.database, split=True, hit_price=HIT_PRICE)
        self.register = SqliteDirectory(self.database, clock=self.clock)
        self.usage = Usage(
            reports=SqliteReports(self.database),
            transfers=self.transfers,
            tallies=self.tallies,
            statements=self.ledger,
            tenants=self.register,
            keys=self.register,
            clock=self.clock,
        )
        self.parents = {tenant: parents[0] for tenant, parents in PARENTS.items()}
        self.rows: dict[PurchaseId, Row] = {}
        self.claims: list[Bought] = []
        self.settled: list[PurchaseId] = []
        self.unknown: list[PurchaseId] = []
        self.answers: list[Fact] = []
        self.hits: list[Fact] = []

    def run(self, coroutine: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await coroutine

        return self.runner.run(awaited())

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        for count in range(len(By) + 1):
            for by in itertools.combinations(By, count):
                self.compare(by, "Europe/Berlin", None, date(2026, 1, 1), date(2027, 12, 31))
        self.compare_focus()
        assert self.run(self.ledger.verify()) == []
        self.register.close()
        self.database.close()
        self.runner.close()
        self.directory.cleanup()

    # --- What happens

    def tenant(self, name: str) -> Tenant:
        above = self.parents[name]
        return Tenant(name, (), parent=self.tenant(above) if above else None)

    def caller(self, name: str, key: str) -> Caller:
        return Caller(self.tenant(name), f"{name}-{key}")

    @rule(tenant=tenants, to=numbers)
    def move(self, tenant: str, to: int) -> None:
        self.parents[tenant] = PARENTS[tenant][to % len(PARENTS[tenant])]

    @rule(seconds=st.sampled_from((1.0, 899.0, 3600.0, DAY_SECONDS, 9.7 * DAY_SECONDS)))
    def pass_by(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(tenant=tenants, key=keys, model=models, micros=st.integers(0, 50))
    def buy(self, tenant: str, key: str, model: str, micros: int) -> None:
        async def bought() -> Bought:
            caller = self.caller(tenant, key)
            wanted = request(f"a cat {len(self.rows)}", price=str(Money(micros).usd), model=model)
            sent = await self.ledger.reserve(caller, wanted, newest_known=None, sending=True)
            assert isinstance(sent, Sent)
            return await self.ledger.record_ticket(sent, Ticket(f"ticket {len(self.rows)}"))

        claim, party = self.run(bought()), self.caller(tenant, key).party
        self.claims.append(claim)
        self.rows[claim.purchase] = Row(party, model, self.clock.now, micros)
        self.tallies.count(party, model, CacheStatus.MISS, Money.ZERO, at=self.clock.now)
        self.answers.append(Fact("misses", party, model, self.clock.now, 1))

    @precondition(lambda self: self.claims)
    @rule(which=numbers, cost=st.integers(0, 70))
    def settle(self, which: int, cost: int) -> None:
        claim = self.claims.pop(which % len(self.claims))
        self.run(self.ledger.settle(claim, cost=Money(cost), blobs=[BLOB], seed=1, seconds=1.0))
        self.settled.append(claim.purchase)
        self.end(claim.purchase, "settled", cost)

    @precondition(lambda self: self.claims)
    @rule(which=numbers, cost=st.integers(0, 70))
    def lose(self, which: int, cost: int) -> None:
        claim = self.claims.pop(which % len(self.claims))
        self.run(self.ledger.write_off(claim, cost=Money(cost), reason="broken"))
        self.end(claim.purchase, "lost", cost)

    @precondition(lambda self: self.claims)
    @rule(which=numbers)
    def release(self, which: int) -> None:
        claim = self.claims.pop(which % len(self.claims))
        self.run(self.ledger.release(claim, "failed"))
        self.end(claim.purchase, "released", 0)

    @precondition(lambda self: self.claims)
    @rule(which=numbers)
    def lose_sight_of(self, which: int) -> None:
        claim = self.claims.pop(which % len(self.claims))
        self.run(self.ledger.mark_unknown(claim, "silence"))
        self.unknown.append(claim.purchase)
        self.rows[claim.purchase].state = "unknown"

    @precondition(lambda self: self.unknown)
    @rule(which=numbers, cost=st.none() | st.integers(0, 70))
    def resolve(self, which: int, cost: int | None) -> None:
        purchase = self.unknown.pop(which % len(self.unknown))
        if cost is None:
            assert self.run(self.ledger.resolve_not_bought(purchase, "was not"))
        else:
            assert self.run(self.ledger.resolve_lost(purchase, Money(cost), "was"))
        self.end(purchase, "released" if cost is None else "lost", cost or 0)

    def end(self, purchase: PurchaseId, state: str, cost: int) -> None:
        row = self.rows[purchase]
        row.state, row.spent = state, cost

    @precondition(lambda self: self.settled)
    @rule(which=numbers, tenant=tenants, key=keys, times=st.integers(1, 2))
    def join(self, which: int, tenant: str, key: str, times: int) -> None:
        purchase, party = self.settled[which % len(self.settled)], self.caller(tenant, key).party
        row = self.rows[purchase]
        for _ in range(times):  # a crash has it said again
            self.run(self.transfers.joined(purchase, party))
        self.tallies.count(party, row.model, CacheStatus.COLLAPSED, Money(row.spent), at=self.clock.now)
        self.answers += [
            Fact("collapsed", party, row.model, self.clock.now, 1),
            Fact("saved_by_joining", party, row.model, self.clock.now, row.spent),
        ]
        if tenant != row.party.tenant:
            row.joined.setdefault(tenant, party)

    @precondition(lambda self: self.settled)
    @rule(which=numbers, tenant=tenants, key=keys, times=st.integers(1, 3))
    def hit(self, which: int, tenant: str, key: str, times: int) -> None:
        purchase, party = self.settled[which % len(self.settled)], self.caller(tenant, key).party
        row, now = self.rows[purchase], self.clock.now
        self.transfers.used(purchase, party, now, times)
        for _ in range(times):
            self.tallies.count(party, row.model, CacheStatus.HIT, Money(row.spent), at=now)
        self.answers += [
            Fact("hits", party, row.model, now, times),
            Fact("saved_by_hits", party, row.model, now, row.spent * times),
        ]
        if tenant != row.party.tenant:
            owed = int(Fraction(HIT_PRICE) * row.spent) * times
            self.hits.append(Fact("charged", party, row.model, now, owed))
            self.hits.append(Fact("credited", row.party, row.model, now, owed))

    @rule()
    def write_down(self) -> None:
        self.run(self.tallies.flush())
        self.run(self.transfers.flush())

    # --- What is reported

    @rule(
        by=groupings,
        zone=st.sampled_from(ZONES),
        tenant=st.none() | tenants,
        first=st.integers(0, 90),
        days=st.integers(0, 60),
    )
    def look(self, by: tuple[By, ...], zone: str, tenant: str | None, first: int, days: int) -> None:
        day = datetime.fromtimestamp(BEGINNING, UTC).date() + timedelta(days=first - 20)
        self.compare(by, zone, tenant, day, day + timedelta(days=days))

    def facts(self) -> Sequence[Fact]:
        facts = [*self.answers, *self.hits]
        for row in self.rows.values():
            amounts = {"spent": row.spent}
            if row.state in {"running", "unknown"}:
                amounts["reserved"] = row.held
            if row.state == "unknown":
                amounts["unknown"] = row.held
            if row.state == "lost":
                amounts["lost"] = row.spent
            share = row.spent // (len(row.joined) + 1)
            amounts["credited"] = share * len(row.joined)
            facts += [
                Fact(column, row.party, row.model, row.at, amount) for column, amount in amounts.items()
            ]
            facts += [Fact("charged", party, row.model, row.at, share) for party in row.joined.values()]
        net = {"spent": 1, "charged": 1, "credited": -1}
        facts += [
            Fact("net", fact.party, fact.model, fact.at, fact.amount * net[fact.column])
            for fact in facts
            if fact.column in net
        ]
        return facts

    def compare(self, by: tuple[By, ...], zone: str, tenant: str | None, first: date, last: date) -> None:
        about = Asked(first, last, zone, by, tenant)
        expected: dict[Group, Counter[str]] = {}
        total: Counter[str] = Counter()
        for fact in self.facts():
            path, day = fact.party.path, datetime.fromtimestamp(fact.at, ZoneInfo(zone)).date()
            if not first <= day <= last or (tenant is not None and tenant not in path.split("/")):
                continue
            names = {
                By.ORGANISATION: path.split("/")[0],
                By.TEAM: path,
                By.KEY: fact.party.key_id,
                By.MODEL: fact.model,
                By.DAY: str(day),
            }
            group = expected.setdefault(tuple(names[each] for each in by), Counter())
            group[fact.column] += fact.amount
            total[fact.column] += fact.amount
        try:
            report = self.run(self.usage.report(about))
        except TenantUnknown:
            assert not any(total.values())
            return
        told = {line.group: _worth_telling(line.figures) for line in report.lines}
        owed = {group: _without_nothing(figures) for group, figures in expected.items()}
        assert {group: figures for group, figures in told.items() if figures} == (
            {group: figures for group, figures in owed.items() if figures} if by else {}
        )
        assert _worth_telling(report.total) == _without_nothing(total)
        if tenant is None:
            assert report.total.moved.charged == report.total.moved.credited
            assert report.total.net == report.total.booked.spent

    def compare_focus(self) -> None:
        about = focused(Asked(date(2026, 1, 1), date(2027, 12, 31)))
        rows = [
            *csv.DictReader(io.StringIO(to_focus(self.run(self.usage.report(about)), upstream="Segmind")))
        ]
        for column in ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"):
            billed = sum((Decimal(row[column]) for row in rows), start=Decimal(0))
            assert Money.exactly(billed) == Money(sum(row.spent for row in self.rows.values()))
        assert all(set(row) == set(COLUMNS) for row in rows)
        spent = self.run(self.ledger.spent()).values()
        assert sum(spent, start=Money.ZERO).micros == sum(row.spent for row in self.rows.values())


def _without_nothing(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _worth_telling(figures: Figures) -> dict[str, int]:
    amounts = {name: of(figures).micros for name, of in AMOUNTS.items()}
    return _without_nothing(amounts | {name: of(figures) for name, of in COUNTS.items()})


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[*HealthCheck]
)


class _Watched(SqliteDatabase):
    """Remembers what surveys ask."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []

    async def survey(self, work: Work[T]) -> T:
        def watched(connection: sqlite3.Connection) -> T:
            connection.set_trace_callback(self.asked.append)
            return work(connection)

        return await super().survey(watched)


async def test_a_report_walks_through_nothing_that_grows_with_what_was_bought_before(
    tmp_path: Path,
) -> None:
    clock, span = MovableClock(), [Span(quarter(NOON), quarter(NOON) + 4)]
    with closing(_Watched(tmp_path / "ledger.sqlite3")) as database:
        SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0)
        await SqliteReports(database).booked(span)
        await SqliteTallies(database).by_key(span)
        await SqliteTransfers(database, split=True, hit_price=HIT_PRICE).moved(span)
        queries = [query for query in database.asked if query.lstrip().startswith("SELECT")]
        plans = await database.read(
            lambda connection: [
                step for query in queries for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {query}")
            ]
        )

    assert len(queries) == 4
    growing = (
        "SCAN purchases",
        "SCAN paid",
        "SCAN sums",
        "SCAN upto",
        "SCAN before",
        "SCAN owing",
        "SCAN tallies",
    )
    of_few = ("unknown_purchases", "lost_purchases")
    walks = [step for step in plans if step.startswith(growing) and not step.endswith(of_few)]
    assert walks == [], plans


async def test_a_report_of_a_tenant_that_nobody_knows_names_the_nearest(tmp_path: Path) -> None:
    clock = MovableClock()
    with (
        closing(SqliteDatabase(tmp_path / "ledger.sqlite3")) as database,
        closing(SqliteDirectory(database, clock=clock)) as register,
    ):
        ledger = SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0)
        await register.apply([Declared("film", budgets=())], who="a test")
        usage = Usage(
            reports=SqliteReports(database),
            transfers=SqliteTransfers(database, split=False, hit_price=Decimal(0)),
            tallies=SqliteTallies(database),
            statements=ledger,
            tenants=register,
            keys=register,
            clock=clock,
        )

        with pytest.raises(TenantUnknown, match="film"):
            await usage.report(asked({"tenant": "flim"}, NOON))
        assert (await usage.report(asked({"tenant": "film", "by": "day"}, NOON))).lines == []
