"""What alerts promise: each is raised once, over all processes and restarts, and sent until it is taken or given up."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import tempfile
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.accounting.budget_watch import BudgetWatch
from gateway.alerts.contract import PROJECTED, Alert, Delivery, State
from gateway.alerts.delivering import PAUSES_SECONDS, Delivering
from gateway.alerts.signing import SigningSecret
from gateway.alerts.sqlite import SqliteAlerts
from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.balance import Balance
from gateway.domain.errors import BudgetExceeded
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, Holder, KeyTerms
from gateway.domain.window import Per, Span, Window
from gateway.ledger.contract import Bought, Sent
from gateway.ledger.sqlite import SqliteLedger
from gateway.telemetry.metrics import Metrics
from gateway.tenants.contract import Declared
from gateway.tenants.sqlite import SqliteDirectory
from tests.contracts.ledger_books import BLOB, NOON, MovableClock, request

DAY_SECONDS = 86_400
TEN_A_DAY = Budget(Money.exactly(10), Window.DAY)
ROLLING = Budget(Money.exactly(10), Window(Per.ROLLING, rolling_seconds=2 * DAY_SECONDS))


def alert(name: str = "msg_1", **changes: Any) -> Alert:
    made = Alert(
        id=name, raised_at=NOON, tenant="film", key_id="", budget="day", threshold="80", window_start=100,
        same_since=100, message='{"type":"budget.threshold_reached"}',
    )  # fmt: skip
    return replace(made, **changes)


@dataclass
class House:
    """A ledger, tenants and alerts in one database, opened again and again, each time as another process would."""

    path: Path
    stack: ExitStack
    clock: MovableClock = field(default_factory=MovableClock)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.marks = self.stack.enter_context(closing(Marks(self.path.with_name("marks"))))

    def database(self) -> SqliteDatabase:
        return self.stack.enter_context(closing(SqliteDatabase(self.path, marks=self.marks)))

    def alerts(self) -> SqliteAlerts:
        return SqliteAlerts(self.database())

    async def process(self, *declared: Declared, **options: Any) -> Process:
        database = self.database()
        directory = self.stack.enter_context(closing(SqliteDirectory(database, clock=self.clock)))
        if declared:
            await directory.apply(declared, who="a test")
        ledger = SqliteLedger(
            database, clock=self.clock, owner="me", is_alive=lambda _: True, lease_seconds=60,
            in_force=directory.in_force,
        )  # fmt: skip
        alerts = SqliteAlerts(database)
        usual: dict[str, Any] = {"thresholds": (50, 80, 100), "projected": False, "to_be_sent": True}
        watch = BudgetWatch(
            tenants=directory, keys=directory, alerts=alerts, metrics=self.metrics, clock=self.clock,
            mark_of=lambda name: self.marks.read(self.marks.place(name)), **usual | {"statements": ledger} | options,
        )  # fmt: skip
        return Process(directory, ledger, alerts, watch)


@dataclass
class Process:
    """One gateway's view of it all."""

    directory: SqliteDirectory
    ledger: SqliteLedger
    alerts: SqliteAlerts
    watch: BudgetWatch

    async def caller(self, tenant: str = "film", **terms: Any) -> Caller:
        return self.directory.authenticate(await self.directory.create(tenant, "x", terms=KeyTerms(**terms)))

    async def hold(self, caller: Caller, usd: str) -> Sent:
        asked = request(f"a cat {uuid.uuid4()}", usd)
        held = await self.ledger.reserve(caller, asked, newest_known=None, sending=True)
        assert isinstance(held, Sent)
        return held

    async def spend(self, caller: Caller, usd: str) -> None:
        sent = await self.hold(caller, usd)
        bought: Bought = await self.ledger.record_ticket(sent, Ticket(f"ticket {sent.purchase}"))
        await self.ledger.settle(bought, cost=Money.exactly(usd), blobs=[BLOB], seed=None, seconds=1)

    async def raised(self) -> list[str]:
        """Of whom, of which budget, at which threshold: in the order in which they were raised."""
        return [
            f"{each.alert.tenant}{'#key' if each.alert.key_id else ''} {each.alert.budget} {each.alert.threshold}"
            for each in reversed(await self.alerts.listed())
        ]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path / "ledger.sqlite3", stack)


# --- Raised once


async def test_an_alert_is_raised_once_by_however_many_processes_at_the_same_time(house: House) -> None:
    processes = [house.alerts() for _ in range(4)]
    raised = await asyncio.gather(
        *(
            process.raise_once(
                [alert(f"msg_{number} {n}", budget=f"budget {n}") for n in range(20)], to_be_sent=True
            )
            for number, process in enumerate(processes)
        )
    )

    new = [each for some in raised for each in some]
    assert sorted(each.budget for each in new) == sorted(f"budget {n}" for n in range(20))
    assert {each.alert.id for each in await house.alerts().listed()} == {each.id for each in new}


@pytest.mark.parametrize(
    "other",
    [{"tenant": "paint"}, {"key_id": "1f2e"}, {"budget": "month"}, {"threshold": "100"},
     {"window_start": 196, "same_since": 196}],
    ids=str,
)  # fmt: skip
async def test_another_holder_budget_threshold_or_window_is_another_alert(
    house: House, other: Mapping[str, Any]
) -> None:
    alerts = house.alerts()
    first = await alerts.raise_once([alert()], to_be_sent=True)
    again = await alerts.raise_once([alert("msg_2")], to_be_sent=True)
    different = await alerts.raise_once([alert("msg_3", **other)], to_be_sent=True)

    assert [len(first), len(again), len(different)] == [1, 0, 1]


async def test_what_an_alert_says_and_every_try_survives_a_restart(house: House) -> None:
    before = house.alerts()
    await before.raise_once([alert()], to_be_sent=True)
    tries = [
        Delivery(NOON, 0.5, 500, "answered 500"),
        Delivery(NOON + 5, 15.0, None, "no answer"),
        Delivery(NOON + 9, 0.1, 200),
    ]
    states = [
        await before.write_down("msg_1", each, again_at=again_at)
        for each, again_at in zip(tries, (NOON + 5, NOON + 9, None), strict=True)
    ]
    (after,) = await house.alerts().listed()

    assert states == [State.PENDING, State.PENDING, State.DELIVERED]
    assert (after.alert, after.state, after.due_at, after.deliveries) == (
        alert(),
        State.DELIVERED,
        None,
        tries,
    )


async def test_what_is_raised_while_nobody_listens_is_kept_and_never_due(house: House) -> None:
    alerts = house.alerts()
    await alerts.raise_once([alert()], to_be_sent=False)

    assert await alerts.due(NOON + 10**9, limit=9) == []
    assert [each.state for each in await alerts.listed()] == [State.UNSENT]


async def test_the_log_is_shown_newest_first_and_by_tenant(house: House) -> None:
    alerts = house.alerts()
    await alerts.raise_once(
        [
            alert(f"msg_{n}", tenant=tenant, window_start=n, same_since=n)
            for n, tenant in enumerate(["a", "b", "a"])
        ],
        to_be_sent=True,
    )

    assert [each.alert.id for each in await alerts.listed(limit=2)] == ["msg_2", "msg_1"]
    assert [each.alert.id for each in await alerts.listed(tenant="a")] == ["msg_2", "msg_0"]


# --- The watch


async def test_each_threshold_is_raised_when_it_is_reached_to_the_micro_dollar(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    caller = await process.caller()
    raised: list[int] = []
    for usd in ("4.999999", "0.000001", "2.999999", "0.000001", "1.999999", "0.000001"):
        await process.spend(caller, usd)
        await process.watch.look()
        raised.append(len(await process.raised()))

    assert raised == [0, 1, 1, 2, 2, 3]
    assert await process.raised() == ["film day 50", "film day 80", "film day 100"]


async def test_one_look_after_a_leap_raises_every_threshold_and_no_look_any_again(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    await process.spend(await process.caller(), "9")
    other = await house.process()
    await asyncio.gather(process.watch.look(), other.watch.look())
    await (await house.process()).watch.look()

    assert sorted(await process.raised()) == ["film day 50", "film day 80"]
    assert house.metrics.registry.get_sample_value(
        "gateway_alerts_total", {"tenant": "film", "window": "day", "threshold": "80"}
    ) == 1  # fmt: skip


async def test_a_hold_that_is_released_and_taken_again_raises_nothing_a_second_time(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    caller = await process.caller()
    for _ in range(3):
        held = await process.hold(caller, "6")
        await process.watch.look()
        await process.ledger.release(held, "a test")
        await process.watch.look()

    assert await process.raised() == ["film day 50"]


async def test_the_next_window_raises_it_again(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    caller = await process.caller()
    for _ in range(2):
        await process.spend(caller, "6")
        await process.watch.look()
        house.clock.now += DAY_SECONDS

    assert await process.raised() == ["film day 50", "film day 50"]


async def test_a_rolling_window_raises_nothing_while_it_holds_the_moment_of_the_last_alert(
    house: House,
) -> None:
    process = await house.process(Declared("film", budgets=(ROLLING,)))
    caller = await process.caller()
    counts = []
    for _ in range(4):
        await process.spend(caller, "2.5")
        for _ in range(4):
            await process.watch.look()
            house.clock.now += DAY_SECONDS / 4 + 300
        counts.append(len(await process.raised()))

    # $5 of $10 from the second purchase on; the alert of that time is more than two days old at the fourth.
    assert counts == [0, 1, 1, 2]


async def test_every_tenant_above_and_every_key_with_budgets_is_looked_at(house: House) -> None:
    process = await house.process(
        Declared("acme", budgets=(replace(TEN_A_DAY, limit=Money.exactly(20)),)),
        Declared(
            "film", parent="acme", budgets=(TEN_A_DAY, Budget(Money.exactly(12), Window.MONTH, name="films"))
        ),
    )
    await process.spend(await process.caller(budgets=(replace(TEN_A_DAY, limit=Money.exactly(11)),)), "10")
    await process.watch.look()

    assert sorted(await process.raised()) == sorted(
        ["acme day 50", "film day 50", "film day 80", "film day 100", "film films 50", "film films 80",
         "film#key day 50", "film#key day 80"]
    )  # fmt: skip
    messages = [json.loads(each.alert.message)["data"] for each in await process.alerts.listed()]
    assert {(each["tenant"], each["path"]) for each in messages} == {("acme", "acme"), ("film", "acme/film")}


class Asked:
    """A ledger's statements, and whose balances were asked for."""

    def __init__(self) -> None:
        self.ledger: SqliteLedger | None = None
        self.holders: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """What happens between the reading and the answer, once."""

    async def balances_of(self, holders: Sequence[Holder], *, with_pace: bool = False) -> Sequence[Balance]:
        assert self.ledger is not None
        self.holders = [holder.name for holder in holders]
        balances = await self.ledger.balances_of(holders, with_pace=with_pace)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return balances


async def test_only_those_are_looked_at_of_whom_something_has_changed(house: House) -> None:
    asked = Asked()
    process = await house.process(
        Declared("acme", budgets=(TEN_A_DAY,)),
        Declared("film", parent="acme", budgets=(TEN_A_DAY,)),
        Declared("zenith", budgets=(TEN_A_DAY,)),
        statements=asked,
    )
    asked.ledger = process.ledger
    caller = await process.caller(budgets=(TEN_A_DAY,))

    async def looked_at() -> list[str]:
        await process.watch.look()
        return sorted(asked.holders)

    everybody = ["acme", "film", f"film#{caller.key_id}", "zenith"]
    assert await looked_at() == everybody
    assert await looked_at() == []
    await process.spend(caller, "1")
    assert await looked_at() == everybody[:-1]
    await process.directory.top_up("zenith", Money.exactly(1), reason="a test", who="a test")
    assert await looked_at() == everybody
    assert await looked_at() == []


async def test_a_limit_that_is_lowered_raises_what_it_reaches_though_nothing_was_bought(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    await process.spend(await process.caller(), "4")
    await process.watch.look()
    before = await process.raised()
    lower = Declared("film", budgets=(replace(TEN_A_DAY, limit=Money.exactly(5)),))
    await process.directory.put(lower, who="a test")
    await process.watch.look()

    assert (before, await process.raised()) == ([], ["film day 50", "film day 80"])


async def test_a_look_that_fails_is_made_up_for_by_the_next(house: House) -> None:
    asked = Asked()
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)), statements=asked)
    await process.spend(await process.caller(), "5")
    with pytest.raises(AssertionError):
        await process.watch.look()
    asked.ledger = process.ledger
    await process.watch.look()

    assert await process.raised() == ["film day 50"]


async def test_what_is_bought_while_the_books_are_read_is_seen_by_the_next_look(house: House) -> None:
    asked = Asked()
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)), statements=asked)
    asked.ledger = process.ledger
    caller = await process.caller()
    asked.meanwhile = lambda: process.spend(caller, "5")
    await process.watch.look()
    before = await process.raised()
    await process.watch.look()

    assert (before, await process.raised()) == ([], ["film day 50"])


async def test_a_budget_has_thresholds_of_its_own_or_none(house: House) -> None:
    budgets = (
        replace(TEN_A_DAY, alert_at=(30, 95)),
        Budget(Money.exactly(10), Window.MONTH, alert_at=()),
        Budget(Money.ZERO, Window.DAY, name="nothing", models=frozenset({"other"})),
    )
    process = await house.process(Declared("film", budgets=budgets), projected=True)
    await process.spend(await process.caller(), "9")
    await process.watch.look()

    assert [each for each in await process.raised() if PROJECTED not in each] == ["film day 30"]
    assert not [each for each in await process.raised() if "month" in each or "nothing" in each]


@pytest.mark.parametrize(
    ("day", "usd", "expected"),
    [(2, "1", True), (2, "0.999999", False), (30, "1", False), (2, "10", False)],
    ids=["runs out this month", "less than a tenth is used", "lasts until its end", "is used up"],
)
async def test_a_budget_is_projected_to_run_out_before_its_window_ends(
    house: House, day: int, usd: str, expected: bool
) -> None:
    process = await house.process(
        Declared("film", budgets=(replace(TEN_A_DAY, per=Window.MONTH),)), projected=True
    )
    house.clock.now = datetime(2026, 12, day, tzinfo=UTC).timestamp()
    await process.spend(await process.caller(), usd)
    await process.watch.look()
    await process.watch.look()

    found = [each.alert for each in await process.alerts.listed() if each.alert.threshold == PROJECTED]
    assert len(found) == expected
    for each in found:
        message = json.loads(each.message)
        assert message["type"] == "budget.projected_to_run_out"
        assert message["data"]["threshold_percent"] is None
        assert message["data"]["runs_out_at"] < message["data"]["resets_at"] == "2027-01-01T00:00:00Z"


async def test_what_never_ends_is_never_projected_to_run_out_before_its_end(house: House) -> None:
    budgets = (replace(ROLLING, alert_at=(100,)), Budget(Money.exactly(10), Window.TOTAL, alert_at=(100,)))
    process = await house.process(Declared("film", budgets=budgets), projected=True)
    await process.spend(await process.caller(), "9")
    await process.watch.look()

    assert await process.raised() == []


async def refused(process: Process, caller: Caller, usd: str) -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as refusal:
        await process.hold(caller, usd)
    return refusal.value


async def test_the_first_refusal_says_that_all_is_used_whichever_process_it_was_in(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    caller = await process.caller()
    await process.spend(caller, "9.9")
    await process.watch.look()
    other = await house.process()
    for _ in range(3):
        other.watch.note(await refused(other, caller, "0.2"))
    await other.watch.tell_refused()
    process.watch.note(await refused(process, caller, "0.2"))
    await process.watch.tell_refused()
    await process.watch.look()

    assert await process.raised() == ["film day 50", "film day 80", "film day 100"]
    data = json.loads((await process.alerts.listed())[0].alert.message)["data"]
    assert (data["threshold_percent"], data["remaining_usd"], data["remaining_micros"]) == (100, 0.1, 100_000)


async def test_a_refusal_says_nothing_of_a_budget_that_it_could_never_have_fitted(house: House) -> None:
    process = await house.process(
        Declared("film", budgets=(TEN_A_DAY,)),
        Declared("paint", budgets=(), most_per_request=Money.exactly(1)),
    )
    process.watch.note(await refused(process, await process.caller(), "10.000001"))
    process.watch.note(await refused(process, await process.caller("paint"), "2"))
    await process.watch.tell_refused()

    assert await process.raised() == []


async def test_a_budget_of_nothing_tells_of_the_first_that_would_have_spent(house: House) -> None:
    process = await house.process(Declared("film", budgets=(Budget(Money.ZERO, Window.DAY),)))
    await process.watch.look()
    before = await process.raised()
    process.watch.note(await refused(process, await process.caller(), "0.2"))
    await process.watch.tell_refused()

    assert (before, await process.raised()) == ([], ["film day 100"])


async def test_what_a_threshold_says_is_in_the_log(house: House) -> None:
    process = await house.process(Declared("film", budgets=(TEN_A_DAY,)))
    await process.spend(await process.caller(), "5")
    with structlog.testing.capture_logs() as lines:
        await process.watch.look()
        await process.watch.look()

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("budget threshold reached", "warning")
    assert (line["tenant"], line["budget"], line["threshold"]) == ("film", "day", "50")
    assert (line["limit_usd"], line["spent_usd"], line["reserved_usd"]) == ("10", "5", "0")


HOURS = st.sampled_from([0, 1, 5, 11, 30, 100])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.integers(1, 60)),
        st.tuples(st.just("hold"), st.integers(1, 60)),
        st.tuples(st.just("let go"), st.just(0)),
        st.tuples(st.just("wait"), HOURS),
        st.tuples(st.just("look"), st.integers(0, 1)),
        st.tuples(st.just("restart"), st.integers(0, 1)),
    ),
    max_size=25,
)
WINDOWS = [
    Window.DAY,
    Window(Per.WEEK, zone="America/Havana", week_starts=6),
    Window(Per.DAY, zone="Asia/Kathmandu"),
    Window(Per.TOTAL, last_day=date(2026, 11, 27)),
]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    steps=STEPS,
    window=st.sampled_from(WINDOWS),
    thresholds=st.sets(st.integers(1, 100), min_size=1, max_size=4),
)
def test_whatever_happens_each_alert_is_raised_by_the_first_look_that_finds_it_and_by_no_other(
    steps: Sequence[tuple[str, int]], window: Window, thresholds: set[int]
) -> None:
    async def play() -> None:
        with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
            house = House(Path(directory) / "ledger.sqlite3", stack)
            budget = Budget(Money(100), window, alert_at=tuple(sorted(thresholds)))
            roomy = Declared("film", budgets=(budget, Budget(Money(10**9), Window.YEAR, alert_at=())))
            processes = [await house.process(roomy), await house.process()]
            caller = await processes[0].caller()
            expected: list[tuple[int, str]] = []
            held: list[tuple[Sent, Span, int]] = []
            used: Counter[Span] = Counter()
            for what, number in steps:
                process, span = processes[0], window.span(house.clock.now)
                match what:
                    case "spend" | "hold" if span is not None and used[span] + number <= 100:
                        used[span] += number
                        if what == "spend":
                            await process.spend(caller, str(Money(number).usd))
                        else:
                            held.append((await process.hold(caller, str(Money(number).usd)), span, number))
                    case "let go" if held:
                        claim, its, amount = held.pop()
                        used[its] -= amount
                        await process.ledger.release(claim, "a test")
                    case "wait":
                        house.clock.now += 3600 * number
                    case "restart":
                        processes[number] = await house.process()
                    case "look":
                        await processes[number].watch.look()
                        reached = [each for each in sorted(thresholds) if span and used[span] >= each]
                        news = [(span.start, str(each)) for each in reached if span]
                        expected += [each for each in news if each not in expected]
                        listed = await processes[number].alerts.listed(limit=1000)
                        told = [(each.alert.window_start, each.alert.threshold) for each in listed]
                        assert told[::-1] == expected

    asyncio.run(play())


async def test_what_is_old_is_forgotten_with_its_tries_but_for_the_newest_and_what_is_pending(
    house: House,
) -> None:
    alerts = house.alerts()
    days = [NOON + n * DAY_SECONDS for n in range(5)]
    old = [alert(f"msg_{n}", window_start=n, same_since=n, raised_at=at) for n, at in enumerate(days)]
    of_a_key = alert("msg_key", key_id="k", window_start=0, same_since=0)
    await alerts.raise_once([*old, of_a_key], to_be_sent=True)
    for each in ("msg_0", "msg_1", "msg_3", "msg_4", "msg_key"):
        await alerts.write_down(each, TAKEN, again_at=None)

    # msg_2 is pending, msg_3 is not old enough, and of the key's there is no newer one.
    assert await alerts.forget_before(days[3]) == 2
    assert {each.alert.id for each in await alerts.listed()} == {"msg_2", "msg_3", "msg_4", "msg_key"}
    assert await alerts.forget_before(days[4] + 1) == 1
    assert {each.alert.id for each in await alerts.listed()} == {"msg_2", "msg_4", "msg_key"}
    assert [len(each.deliveries) for each in await alerts.listed()] == [1, 1, 0]


async def test_what_was_forgotten_is_not_told_a_second_time(house: House) -> None:
    process = await house.process(Declared("film", budgets=(Budget(Money.exactly(10), Window.TOTAL),)))
    await process.spend(await process.caller(), "9")
    await process.watch.look()
    told = await process.raised()
    house.clock.now += 1000 * DAY_SECONDS
    await process.alerts.forget_before(house.clock.now)
    # As after a restart, which knows only what is written down.
    later = await house.process()
    await later.watch.look()

    assert await later.raised() == told == ["film total 50", "film total 80"]


async def test_forgetting_takes_everything_however_much_it_is(house: House) -> None:
    alerts = house.alerts()
    many = [alert(f"msg_{n}", window_start=n, same_since=n) for n in range(1201)]
    await alerts.raise_once(many, to_be_sent=False)

    assert await alerts.forget_before(NOON + 1) == 1200
    assert [each.alert.id for each in await alerts.listed()] == ["msg_1200"]


# --- Sending


class Scripted:
    """Keeps the contract Messenger: answers as it is told to, and remembers what it was given."""

    def __init__(self, clock: MovableClock, answer: Callable[[], Delivery]) -> None:
        self.clock = clock
        self.answer = answer
        self.sent: list[tuple[float, str, str]] = []

    async def send(self, message_id: str, message: str) -> Delivery:
        self.sent.append((self.clock(), message_id, message))
        return replace(self.answer(), at=self.clock())


def delivering(house: House, messenger: Scripted, chance: float = 0.5) -> Delivering:
    return Delivering(
        alerts=house.alerts(),
        messenger=messenger,
        metrics=house.metrics,
        clock=house.clock,
        chance=lambda: chance,
    )


NOT_TAKEN = Delivery(0, 0.1, 500, "answered 500")
GONE = Delivery(0, 0.1, 410, "answered 410")
TAKEN = Delivery(0, 0.1, 204)


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 0.9), (0.5, 1.0), (1.0, 1.1)])
async def test_what_is_not_taken_is_sent_again_at_growing_pauses_and_then_given_up(
    house: House, chance: float, factor: float
) -> None:
    await house.alerts().raise_once([alert()], to_be_sent=True)
    messenger = Scripted(house.clock, lambda: NOT_TAKEN)
    for _ in range(20):
        # Each time as after a restart.
        await delivering(house, messenger, chance).send_due()
        pending = [each.due_at for each in await house.alerts().listed() if each.due_at is not None]
        house.clock.now = pending[0] - 0.001 if pending else house.clock.now + 10**6
        await delivering(house, messenger, chance).send_due()
        house.clock.now += 0.001

    times = [at for at, _, _ in messenger.sent]
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert pauses == pytest.approx([seconds * factor for seconds in PAUSES_SECONDS], abs=0.01)
    assert {(name, message) for _, name, message in messenger.sent} == {("msg_1", alert().message)}
    (ended,) = await house.alerts().listed()
    assert (ended.state, ended.due_at, len(ended.deliveries)) == (State.GIVEN_UP, None, 10)
    assert (
        house.metrics.registry.get_sample_value("gateway_webhook_deliveries_total", {"outcome": "given_up"})
        == 1
    )
    assert (
        house.metrics.registry.get_sample_value("gateway_webhook_deliveries_total", {"outcome": "failed"})
        == 9
    )


@pytest.mark.parametrize(
    ("asked_seconds", "pause_seconds"),
    [(2.0, 5.0), (60.0, 60 * 1.05), (10**9, 24 * 3600 * 1.05), (None, 5.0)],
)
async def test_who_asks_for_a_longer_pause_gets_it_up_to_a_day(
    house: House, asked_seconds: float | None, pause_seconds: float
) -> None:
    await house.alerts().raise_once([alert()], to_be_sent=True)
    busy = replace(NOT_TAKEN, status=503, retry_after_seconds=asked_seconds)
    await delivering(house, Scripted(house.clock, lambda: busy)).send_due()

    (pending,) = await house.alerts().listed()
    assert pending.due_at == pytest.approx(NOON + pause_seconds)


@pytest.mark.parametrize(("answer", "state"), [(TAKEN, State.DELIVERED), (GONE, State.GIVEN_UP)])
async def test_what_is_taken_and_whoever_is_gone_are_never_sent_to_again(
    house: House, answer: Delivery, state: State
) -> None:
    await house.alerts().raise_once([alert()], to_be_sent=True)
    messenger = Scripted(house.clock, lambda: answer)
    for _ in range(3):
        await delivering(house, messenger).send_due()
        house.clock.now += 10**6

    assert len(messenger.sent) == 1
    assert [each.state for each in await house.alerts().listed()] == [state]


async def test_what_was_sent_when_the_process_died_is_sent_once_more_under_the_same_id(house: House) -> None:
    def die() -> Delivery:
        raise asyncio.CancelledError

    await house.alerts().raise_once([alert()], to_be_sent=True)
    dying, living = Scripted(house.clock, die), Scripted(house.clock, lambda: TAKEN)
    with pytest.raises(asyncio.CancelledError):
        await delivering(house, dying).send_due()
    await delivering(house, living).send_due()

    assert [message[1:] for message in dying.sent] == [message[1:] for message in living.sent]
    assert [each.state for each in await house.alerts().listed()] == [State.DELIVERED]


async def test_one_call_sends_all_that_is_due_however_many_there_are(house: House) -> None:
    many = [alert(f"msg_{n}", window_start=n, same_since=n) for n in range(50)]
    await house.alerts().raise_once(many, to_be_sent=True)
    messenger = Scripted(house.clock, lambda: TAKEN)
    await delivering(house, messenger).send_due()

    assert sorted(name for _, name, _ in messenger.sent) == sorted(each.id for each in many)


# --- Signatures


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def test_a_signature_is_the_one_of_the_specifications_example() -> None:
    secret = SigningSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

    assert secret.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}') == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_while_a_secret_is_changed_both_sign() -> None:
    old, new = b"o" * 24, b"n" * 64
    signed = SigningSecret(f" {whsec(new)} {whsec(old)}\n").signature("msg_1", 7, b"{}")

    expected = [
        base64.b64encode(hmac.digest(key, b"msg_1.7.{}", hashlib.sha256)).decode() for key in (new, old)
    ]
    assert signed.split() == [f"v1,{each}" for each in expected]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "empty"), ("c2VjcmV0", "does not begin with whsec_"), ("whsec_§", "not base64"),
     (whsec(b"x" * 23), "has 23 bytes"), (whsec(b"x" * 65), "has 65 bytes")],
)  # fmt: skip
def test_a_secret_that_cannot_sign_is_refused_and_not_shown(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        SigningSecret(text)

    assert not text or text not in str(refusal.value)


def test_a_secret_is_not_shown_by_what_holds_it() -> None:
    secret = SigningSecret(whsec(b"x" * 24))

    assert whsec(b"x" * 24) not in f"{secret} {secret!r}"
    with pytest.raises(TypeError):
        secret.__reduce__()
