"""The journal against a model that fits on a page, over whatever interleaving hypothesis comes up with."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Awaitable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.errors import BudgetExceeded
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.window import Window
from gateway.ledger.contract import Bought, Claim, ClaimLost, Held, Purchase, Sent, State
from gateway.ledger.sqlite import SqliteLedger
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, MovableClock, caller, request

T = TypeVar("T")

LEASE_SECONDS = 15.0
LIMITS = {
    "acme": (("0.9", Window.DAY), ("1.5", Window.TOTAL)),
    "wing": (("0.7", Window.MONTH),),
    "zoo": (),
}
PRICES = ("0.2", "0.3", "0.416")
OWNERS = ("one", "two", "three")

owners = st.sampled_from(OWNERS)
names = st.sampled_from(("cat", "dog", "emu"))
shares = st.sampled_from((None, 0, 50, 100))
"""What is charged, in hundredths of what was held; None when nobody says."""


@dataclass
class Row:
    """One purchase, as it ought to be."""

    id: PurchaseId
    name: str
    tenant: str
    held: Money
    day: int
    owner: str
    lease_until: float
    state: State = State.QUEUED
    fence: int = 1
    ticket: Ticket | None = None
    cost: Money | None = None

    @property
    def is_adoptable(self) -> bool:
        return self.state.is_open and self.state is not State.UNKNOWN


@dataclass(frozen=True)
class Paper:
    """A claim, in the hands of a process; it stays there when it is worth nothing any more."""

    owner: str
    claim: Held | Sent | Bought


Papers: TypeAlias = "Paper | MultipleResults[Paper]"


def _state_of(claim: Claim) -> State:
    return {Held: State.QUEUED, Sent: State.SENDING, Bought: State.RUNNING}[type(claim)]


class Journal(RuleBasedStateMachine):
    """Three processes, three tenants, four requests, and a clock."""

    holding: Bundle[Paper] = Bundle("holding")
    sending: Bundle[Paper] = Bundle("sending")
    bought: Bundle[Paper] = Bundle("bought")
    adopted: Bundle[Paper] = Bundle("adopted")
    any_paper = st.one_of(holding, sending, bought, adopted)

    @initialize(target=bought, names=st.lists(names, min_size=1, max_size=3, unique=True))
    def open(self, names: list[str]) -> Papers:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="ledger-")
        self.path = Path(self.directory.name) / "ledger.sqlite3"
        self.clock = MovableClock()
        self.lives = dict.fromkeys(OWNERS, 0)
        self.alive: set[str] = set()
        self.databases: dict[str, SqliteDatabase] = {}
        self.ledgers: dict[str, SqliteLedger] = {}
        self.rows: dict[PurchaseId, Row] = {}
        self.tickets = 0
        for owner in OWNERS:
            self._be_born(owner)
        papers = [self.buy("one", "zoo", name) for name in names]
        return multiple(*[paper for paper in papers if isinstance(paper, Paper)])

    def teardown(self) -> None:
        if hasattr(self, "databases"):
            for database in self.databases.values():
                database.close()
            self.runner.close()
            self.directory.cleanup()

    def _be_born(self, owner: str) -> None:
        """A process of a name that nobody has had before."""
        self.lives[owner] += 1
        self.alive.add(self._name(owner))
        self._reopen(owner)

    def _reopen(self, owner: str) -> None:
        database = SqliteDatabase(self.path)
        self.databases[owner] = database
        self.ledgers[owner] = SqliteLedger(
            database,
            clock=self.clock,
            owner=self._name(owner),
            is_alive=self.alive.__contains__,
            lease_seconds=LEASE_SECONDS,
        )

    def _name(self, owner: str) -> str:
        return f"{owner} {self.lives[owner]}"

    def _do(self, work: Awaitable[T]) -> T:
        async def waited() -> T:
            return await work

        return self.runner.run(waited())

    def _ledger(self, paper: Paper) -> SqliteLedger:
        return self.ledgers[paper.owner.partition(" ")[0]]

    def _new_ticket(self) -> Ticket:
        self.tickets += 1
        return Ticket(f"T{self.tickets}")

    # --- The model's own word on what may happen

    def _is_good(self, paper: Paper) -> bool:
        """Whether whoever holds this paper may change the purchase, being the process that was given it."""
        row = self.rows[paper.claim.purchase]
        asking = self._name(paper.owner.partition(" ")[0])
        return row.state is _state_of(paper.claim) and (row.owner, row.fence) == (asking, paper.claim.fence)

    def _newest(self, name: str) -> Row | None:
        found = [row for row in self.rows.values() if row.name == name and row.state is not State.RELEASED]
        return found[-1] if found else None

    def _room(self, tenant: str, price: Money) -> bool:
        for limit, window in LIMITS[tenant]:
            span = window.span(self.clock())
            first_day = int(span.begins_at.timestamp() // DAY_SECONDS) if span else 0
            taken = sum(
                (row.cost or row.held).micros if row.cost != Money.ZERO else 0
                for row in self.rows.values()
                if row.tenant == tenant and row.day >= first_day and row.state is not State.RELEASED
            )
            if taken + price.micros > Money.exactly(limit).micros:
                return False
        return True

    def _is_free(self, row: Row, owner: str) -> bool:
        dead = row.owner not in self.alive
        return row.is_adoptable and (row.owner == owner or row.lease_until <= self.clock() or dead)

    # --- Buying

    @rule(
        target=holding,
        owner=owners,
        tenant=st.sampled_from(sorted(LIMITS)),
        name=names,
        price=st.sampled_from(PRICES),
        has_looked=st.booleans(),
    )
    def reserve(self, owner: str, tenant: str, name: str, price: str, *, has_looked: bool) -> Papers:
        return self._reserve(owner, tenant, name, price, has_looked=has_looked, sending=False)

    @rule(
        target=sending,
        owner=owners,
        tenant=st.sampled_from(sorted(LIMITS)),
        name=names,
        price=st.sampled_from(PRICES),
        has_looked=st.booleans(),
    )
    def reserve_and_send(self, owner: str, tenant: str, name: str, price: str, *, has_looked: bool) -> Papers:
        return self._reserve(owner, tenant, name, price, has_looked=has_looked, sending=True)

    def _reserve(
        self, owner: str, tenant: str, name: str, price: str, *, has_looked: bool, sending: bool
    ) -> Papers:
        newest = self._newest(name)
        known = newest.id if newest is not None and has_looked else None
        buyer = caller(*LIMITS[tenant], tenant=tenant)
        work = self.ledgers[owner].reserve(buyer, request(name, price), newest_known=known, sending=sending)
        if newest is not None and (known is None or newest.state.is_open):
            answer = self._do(work)
            assert isinstance(answer, Purchase)
            assert (answer.id, answer.state) == (newest.id, newest.state)
            return multiple()
        if not self._room(tenant, Money.exactly(price)):
            with pytest.raises(BudgetExceeded):
                self._do(work)
            return multiple()
        claim = self._do(work)
        assert isinstance(claim, Sent if sending else Held)
        now = self.clock()
        self.rows[claim.purchase] = Row(
            claim.purchase,
            name,
            tenant,
            Money.exactly(price),
            int(now // DAY_SECONDS),
            self._name(owner),
            now + LEASE_SECONDS,
            _state_of(claim),
        )
        return Paper(self._name(owner), claim)

    @rule(target=sending, paper=st.one_of(holding, adopted))
    def send(self, paper: Paper) -> Papers:
        claim, ledger = paper.claim, self._ledger(paper)
        if not isinstance(claim, Held):
            return multiple()
        if not self._is_good(paper):
            return self._refused(ledger.send(claim))
        self.rows[claim.purchase].state = State.SENDING
        return Paper(paper.owner, self._do(ledger.send(claim)))

    @rule(target=bought, paper=st.one_of(sending, adopted))
    def record(self, paper: Paper) -> Papers:
        claim, ledger, ticket = paper.claim, self._ledger(paper), self._new_ticket()
        if not isinstance(claim, Sent):
            return multiple()
        if not self._is_good(paper):
            return self._refused(ledger.record_ticket(claim, ticket))
        row = self.rows[claim.purchase]
        row.state, row.ticket = State.RUNNING, ticket
        return Paper(paper.owner, self._do(ledger.record_ticket(claim, ticket)))

    @rule(target=bought, owner=owners, tenant=st.sampled_from(sorted(LIMITS)), name=names)
    def buy(self, owner: str, tenant: str, name: str) -> Papers:
        """All the way, if nothing is in the way."""
        paper: Papers = self.reserve(owner, tenant, name, "0.3", has_looked=True)
        while isinstance(paper, Paper) and not isinstance(paper.claim, Bought):
            paper = self.send(paper) if isinstance(paper.claim, Held) else self.record(paper)
        return paper

    def _refused(self, work: Awaitable[object]) -> Papers:
        """That nothing has changed is what the invariants see."""
        with pytest.raises(ClaimLost):
            self._do(work)
        return multiple()

    @rule(paper=st.one_of(bought, adopted), share=shares, again=st.booleans())
    def settle(self, paper: Paper, share: int | None, *, again: bool) -> None:
        if not isinstance(paper.claim, Bought):
            return
        row, claim = self.rows[paper.claim.purchase], paper.claim
        cost = self._share(row, share)

        def settled(cost: Money | None) -> Awaitable[object]:
            return self._ledger(paper).settle(claim, cost=cost, blobs=[BLOB], seed=7, seconds=1.0)

        if row.state is not State.SETTLED:
            if not self._is_good(paper):
                self._refused(settled(cost))
                return
            self._do(settled(cost))
            row.state, row.cost = State.SETTLED, row.held if cost is None else cost
        if again:
            self._do(settled(Money.exactly("0.1")))

    @rule(paper=any_paper, again=st.booleans())
    def release(self, paper: Paper, *, again: bool) -> None:
        row = self.rows[paper.claim.purchase]
        if row.state is not State.RELEASED:
            if not self._is_good(paper):
                self._refused(self._ledger(paper).release(paper.claim, "a reason"))
                return
            self._do(self._ledger(paper).release(paper.claim, "a reason"))
            row.state = State.RELEASED
        if again:
            self._do(self._ledger(paper).release(paper.claim, "another reason"))

    @rule(paper=any_paper)
    def mark_unknown(self, paper: Paper) -> None:
        if isinstance(paper.claim, Held):
            return
        row, work = (
            self.rows[paper.claim.purchase],
            self._ledger(paper).mark_unknown(paper.claim, "silence"),
        )
        if row.state is not State.UNKNOWN and not self._is_good(paper):
            self._refused(work)
            return
        self._do(work)
        row.state = State.UNKNOWN

    @rule(paper=st.one_of(bought, adopted), share=shares, again=st.booleans())
    def write_off(self, paper: Paper, share: int | None, *, again: bool) -> None:
        if not isinstance(paper.claim, Bought):
            return
        row, claim, ledger = self.rows[paper.claim.purchase], paper.claim, self._ledger(paper)
        cost = self._share(row, share)
        if row.state is not State.LOST:
            if not self._is_good(paper):
                self._refused(ledger.write_off(claim, cost=cost, reason="broken"))
                return
            self._do(ledger.write_off(claim, cost=cost, reason="broken"))
            row.state, row.cost = State.LOST, row.held if cost is None else cost
        if again:
            self._do(ledger.write_off(claim, cost=cost, reason="broken"))

    @staticmethod
    def _share(row: Row, share: int | None) -> Money | None:
        return None if share is None else Money(row.held.micros * share // 100)

    # --- Resolving

    @precondition(lambda self: self.rows)
    @rule(owner=owners, data=st.data(), how=st.sampled_from(("bought", "not bought", "lost")), share=shares)
    def resolve(self, owner: str, data: st.DataObject, how: str, share: int | None) -> None:
        row = self._any(data)
        ledger, was_unknown = self.ledgers[owner], row.state is State.UNKNOWN
        if how == "bought":
            ticket = row.ticket or self._new_ticket()
            resolved = self._do(ledger.resolve_bought(row.id, ticket))
            if was_unknown:
                row.state, row.ticket, row.lease_until, row.fence = (
                    State.RUNNING,
                    ticket,
                    0.0,
                    row.fence + 1,
                )
        elif how == "not bought":
            resolved = self._do(ledger.resolve_not_bought(row.id, "the history says so"))
            row.state = State.RELEASED if was_unknown else row.state
        else:
            cost = self._share(row, share)
            resolved = self._do(ledger.resolve_lost(row.id, cost, "the history says so"))
            if was_unknown:
                row.state, row.cost = State.LOST, row.held if cost is None else cost
        assert resolved is was_unknown

    # --- Taking over

    @precondition(lambda self: self.rows)
    @rule(target=adopted, owner=owners, data=st.data())
    def adopt(self, owner: str, data: st.DataObject) -> Papers:
        row = self._any(data)
        if self._is_free(row, self._name(owner)):
            return self._adopted(owner, row)
        assert self._do(self.ledgers[owner].adopt(row.id)) is None
        return multiple()

    @precondition(lambda self: self.rows)
    @rule(target=adopted, owner=owners)
    def adopt_the_orphans(self, owner: str) -> Papers:
        orphans = self._do(self.ledgers[owner].orphans())
        free = [row for row in self.rows.values() if self._is_free(row, self._name(owner))]
        assert [orphan.id for orphan in orphans] == [row.id for row in free]
        return multiple(*[self._adopted(owner, row) for row in free])

    def _adopted(self, owner: str, row: Row) -> Paper:
        claim = self._do(self.ledgers[owner].adopt(row.id))
        assert claim is not None
        assert _state_of(claim) is row.state
        assert claim.fence == row.fence + 1
        row.owner, row.fence, row.lease_until = self._name(owner), claim.fence, self.clock() + LEASE_SECONDS
        return Paper(self._name(owner), claim)

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        self._do(self.ledgers[owner].renew())
        for row in self.rows.values():
            if row.owner == self._name(owner) and row.state.is_open:
                row.lease_until = self.clock() + LEASE_SECONDS

    def _any(self, data: st.DataObject) -> Row:
        return self.rows[data.draw(st.sampled_from(list(self.rows)))]

    # --- Time, and death

    @rule(seconds=st.sampled_from((1.0, LEASE_SECONDS, 3 * LEASE_SECONDS, DAY_SECONDS, 31 * DAY_SECONDS)))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(owner=owners)
    def die_and_be_replaced(self, owner: str) -> None:
        self.alive.discard(self._name(owner))
        self.databases[owner].close()
        self._be_born(owner)

    @rule(owner=owners)
    def close_and_open_the_books(self, owner: str) -> None:
        self.databases[owner].close()
        self._reopen(owner)

    @rule(paper=any_paper, has_begun=st.booleans())
    def die_in_the_middle_of_a_write(self, paper: Paper, *, has_begun: bool) -> None:
        """Whoever dies is not told whether it was written: either it was, whole, or it was not."""
        owner, claim = paper.owner.partition(" ")[0], paper.claim
        if not self._is_good(paper):
            return
        ticket = self._new_ticket()
        ledger, row = self.ledgers[owner], self.rows[claim.purchase]

        work: Awaitable[object]
        match claim:
            case Held():
                work = ledger.send(claim)
            case Sent():
                work = ledger.record_ticket(claim, ticket)
            case Bought():
                work = ledger.settle(claim, cost=None, blobs=[BLOB], seed=7, seconds=1.0)
        self.runner.run(self._begin(work, has_begun=has_begun))
        self.die_and_be_replaced(owner)
        written = self._do(self.ledgers[owner].purchase(row.id))
        assert written is not None
        if written.state is not row.state:
            row.state = {
                State.QUEUED: State.SENDING,
                State.SENDING: State.RUNNING,
                State.RUNNING: State.SETTLED,
            }[row.state]
            row.ticket = ticket if row.state is State.RUNNING else row.ticket
            row.cost = row.held if row.state is State.SETTLED else None

    @rule(owner=owners, name=names, has_begun=st.booleans(), sending=st.booleans())
    def die_while_reserving(self, owner: str, name: str, *, has_begun: bool, sending: bool) -> None:
        """Either nothing is held, or what is held says whether the request may have left."""
        newest = self._newest(name)
        if newest is not None and newest.state.is_open:
            return
        now, name_of_the_dead = self.clock(), self._name(owner)
        known = None if newest is None else newest.id
        work = self.ledgers[owner].reserve(
            caller(tenant="zoo"), request(name, "0.2"), newest_known=known, sending=sending
        )

        self.runner.run(self._begin(work, has_begun=has_begun))
        self.die_and_be_replaced(owner)
        written = self._do(self.ledgers[owner].newest(request(name).fingerprint))
        if written is None or written.id == known:
            return
        assert written.state is (State.SENDING if sending else State.QUEUED)
        self.rows[written.id] = Row(
            written.id,
            name,
            "zoo",
            Money.exactly("0.2"),
            int(now // DAY_SECONDS),
            name_of_the_dead,
            now + LEASE_SECONDS,
            written.state,
        )

    @staticmethod
    async def _begin(work: Awaitable[object], *, has_begun: bool) -> None:
        begun = asyncio.ensure_future(work)  # noqa: TID251 -- it is dropped: that is the point
        await asyncio.sleep(0)
        if has_begun:
            await asyncio.sleep(0.0005)
        begun.cancel()
        await asyncio.wait([begun])

    # --- What is true after every step

    @invariant()
    def the_books_are_the_model(self) -> None:
        with closing(sqlite3.connect(self.path)) as books:
            rows = books.execute(
                "SELECT id, state, owner, fence, lease_until, ticket, cost_micros FROM purchases ORDER BY serial"
            ).fetchall()
        assert rows == [
            (
                row.id,
                row.state.value,
                row.owner,
                row.fence,
                row.lease_until,
                row.ticket,
                None if row.cost is None else row.cost.micros,
            )
            for row in self.rows.values()
        ]

    @invariant()
    def they_fit_together_and_no_budget_is_passed(self) -> None:
        ledger = self.ledgers["one"]
        assert self._do(ledger.verify()) == []
        for tenant, limits in LIMITS.items():
            for balance in self._do(ledger.balances_of(caller(*limits, tenant=tenant).holders)):
                assert balance.remaining >= Money.ZERO
        spent = sum(row.cost.micros for row in self.rows.values() if row.cost is not None)
        assert sum(money.micros for money in self._do(ledger.spent()).values()) == spent
        held = [row for row in self.rows.values() if row.state.is_open]
        assert sum(money.micros for money in self._do(ledger.reserved()).values()) == _sum(held)
        unknown = [row for row in held if row.state is State.UNKNOWN]
        assert self._do(ledger.unknown()).micros == _sum(unknown)
        lost = sum(row.cost.micros for row in self.rows.values() if row.state is State.LOST and row.cost)
        assert self._do(ledger.lost()).micros == lost

    @invariant()
    def no_request_has_two_open_purchases(self) -> None:
        names = [row.name for row in self.rows.values() if row.state.is_open]
        assert len(names) == len(set(names))


def _sum(rows: Sequence[Row]) -> int:
    return sum(row.held.micros for row in rows)


TestJournal = Journal.TestCase
TestJournal.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
