"""What a round decides, on a real ledger and a history that shows what no upstream can be made to show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.errors import GatewayError, ResultGone, UpstreamUnreachable
from gateway.domain.generation import GenerationRequest, Json
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Tenant
from gateway.generation.drift import BalanceWatch, ForeignSpend
from gateway.generation.fingerprint import fingerprint_of
from gateway.generation.reconciliation import Decision, Reconciliation, Verdict
from gateway.ledger.contract import Bought, Held, Sent, State
from gateway.ledger.sqlite import SqliteLedger
from gateway.upstream.contract import PastCall, Standing
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock

MODEL = "ltx-2-19b-t2v"
CAT: dict[str, Json] = {"prompt": "a confidential cat", "fps": 24, "seed": 7}
PRICE = Money(416_000)
LAG_SECONDS = 3600.0
HOUR = 3600.0


async def nothing_happens() -> None:
    pass


@dataclass
class Archive:
    """A history that keeps its contract, and has what a test puts in."""

    calls: list[PastCall] = field(default_factory=list)
    fault: GatewayError | None = None
    windows: list[tuple[float, float]] = field(default_factory=list)
    unlisted: set[Ticket] = field(default_factory=set)
    """Tickets that are not found when they are asked for, and are in the list all the same."""

    meanwhile: Callable[[], Awaitable[object]] = nothing_happens
    """What goes on elsewhere while the list is being read."""

    async def past_call(self, ticket: Ticket) -> PastCall | None:
        if self.fault:
            raise self.fault
        found = [call for call in self.calls if call.ticket == ticket and ticket not in self.unlisted]
        return found[0] if found else None

    async def past_calls(self, since: float, until: float) -> Sequence[PastCall]:
        self.windows.append((since, until))
        if self.fault:
            raise self.fault
        found = [c for c in self.calls if c.submitted_at is None or since <= c.submitted_at <= until]
        await self.meanwhile()
        return found


def call(
    ticket: str = "t-1",
    standing: Standing = Standing.COMPLETED,
    *,
    at: float | None = NOON,
    inputs: Mapping[str, Json] | None = CAT,
    model: str = MODEL,
    cost: Money | None = PRICE,
) -> PastCall:
    return PastCall(Ticket(ticket), model, standing, cost, inputs, at, None)


@dataclass
class Desk:
    ledger: SqliteLedger
    history: Archive
    clock: MovableClock
    reconciliation: Reconciliation

    async def send(self, scope: str = "acme", parameters: Mapping[str, Json] = CAT) -> Sent:
        asked = GenerationRequest(
            MODEL, parameters, fingerprint_of(MODEL, parameters, scope=scope), PRICE, seed=7
        )
        held = await self.ledger.reserve(Caller(Tenant(scope, ()), "key-1"), asked, newest_known=None)
        assert isinstance(held, Held)
        return await self.ledger.send(held)

    async def lose(self, scope: str = "acme", parameters: Mapping[str, Json] = CAT) -> PurchaseId:
        sent = await self.send(scope, parameters)
        await self.ledger.mark_unknown(sent, "silence")
        return sent.purchase

    async def lose_for(self, *tenants: str) -> list[PurchaseId]:
        """Equal requests of tenants that share nothing, a second after one another."""
        lost = []
        for tenant in tenants:
            lost.append(await self.lose(tenant))
            self.clock.now += 1
        return lost

    async def lose_result(self, ticket: str = "t-1", scope: str = "acme") -> PurchaseId:
        bought = await self.ledger.record_ticket(await self.send(scope), Ticket(ticket))
        await self.ledger.mark_unknown(bought, "forgotten")
        return bought.purchase

    async def fail_to_collect(self, purchase: PurchaseId) -> None:
        claim = await self.ledger.adopt(purchase)
        assert isinstance(claim, Bought)
        await self.ledger.mark_unknown(claim, "its file is gone")

    async def round(self) -> list[Decision]:
        return list(await self.reconciliation.settle_unknowns())

    async def verdict(self) -> Verdict:
        [decision] = await self.round()
        return decision.verdict

    async def ticket_of(self, purchase: PurchaseId) -> str | None:
        found = await self.ledger.purchase(purchase)
        assert found is not None
        return found.ticket

    async def state(self, purchase: PurchaseId) -> State:
        found = await self.ledger.purchase(purchase)
        assert found is not None
        return found.state


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ExitStack() as closing:
        database = SqliteDatabase(tmp_path / "ledger.sqlite3")
        closing.callback(database.close)
        clock, history = MovableClock(), Archive()
        ledger = SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0)
        yield Desk(ledger, history, clock, reconciliation(ledger, history, clock))


def reconciliation(ledger: SqliteLedger, history: Archive, clock: MovableClock) -> Reconciliation:
    return Reconciliation(
        resolution=ledger, statements=ledger, history=history, clock=clock, history_lag_seconds=LAG_SECONDS
    )


# Which call it is


@pytest.mark.parametrize(
    "found",
    [
        call(),
        call(at=NOON - 119),
        call(at=NOON + 119),
        call(at=None),
        call(cost=None),
        call(inputs={**CAT, "guidance_scale": 4, "negative_prompt": ""}),
        call(inputs={**CAT, "fps": 24.0}),
        call(model="LTX 2 19B T2V"),
        call(standing=Standing.PENDING),
    ],
)
async def test_a_call_of_its_time_with_everything_that_was_sent_is_the_one(
    desk: Desk, found: PastCall
) -> None:
    lost = await desk.lose()
    desk.history.calls = [found]

    assert await desk.verdict() is Verdict.BOUGHT
    assert await desk.ticket_of(lost) == "t-1"


@pytest.mark.parametrize(
    "other",
    [
        call(at=NOON - 121),
        call(at=NOON + 3 * HOUR + 121),
        call(inputs={**CAT, "prompt": "a dog"}),
        call(inputs={**CAT, "fps": "25"}),
        call(inputs={**CAT, "seed": True}),
        call(inputs={**CAT, "fps": [24]}),
        call(inputs={**CAT, "fps": 1e400}),
        call(inputs={"prompt": "a dog"}),
        call(model="seedream-4.5", inputs=None),
        call(model="seedream-4.5", inputs={"prompt": "a confidential cat"}),
    ],
)
async def test_a_call_that_cannot_be_the_one_is_as_good_as_none(desk: Desk, other: PastCall) -> None:
    lost = await desk.lose()
    desk.history.calls = [other]
    desk.clock.now += 10 * HOUR

    assert await desk.verdict() is Verdict.NOT_BOUGHT
    assert await desk.state(lost) is State.RELEASED


@pytest.mark.parametrize(
    "doubtful",
    [
        call(inputs=None),
        call(inputs=None, model=""),
        call(inputs={}),
        call(inputs={"prompt": "a confidential cat"}),
        call(inputs={**CAT, "fps": "24"}),
        call(inputs={**CAT, "seed": None}),
        call(inputs={**CAT, "prompt": " A confidential cat\n"}),
        call(model="ltx-video"),
        call(model=""),
    ],
)
async def test_a_call_that_says_too_little_to_tell_keeps_the_money_held_for_good(
    desk: Desk, doubtful: PastCall
) -> None:
    lost = await desk.lose()
    desk.history.calls = [doubtful]
    desk.clock.now += 30 * DAY_SECONDS

    assert await desk.verdict() is Verdict.OPEN
    assert await desk.state(lost) is State.UNKNOWN


async def test_a_switch_is_no_number(desk: Desk) -> None:
    sent: dict[str, Json] = {**CAT, "loop": True, "options": {"hd": False}}
    await desk.lose(parameters=sent)
    desk.history.calls = [
        call("one", inputs={**sent, "loop": 1}),
        call("nought", inputs={**sent, "options": {"hd": 0}}),
    ]
    desk.clock.now += 2 * HOUR

    assert await desk.verdict() is Verdict.NOT_BOUGHT


@pytest.mark.parametrize("kept", [None, "https://elsewhere.example/1.png", "[image]"])
async def test_media_that_were_sent_prove_nothing_by_what_the_upstream_keeps_in_their_place(
    desk: Desk, kept: str | None
) -> None:
    sent: dict[str, Json] = {**CAT, "image": "data:image/png;base64,AAAA"}
    await desk.lose(parameters=sent)
    desk.history.calls = [call(inputs={**sent, "image": kept})]
    desk.clock.now += 30 * DAY_SECONDS

    assert await desk.verdict() is Verdict.OPEN


async def test_media_that_are_kept_as_they_were_sent_are_like_any_other_input(desk: Desk) -> None:
    sent: dict[str, Json] = {**CAT, "images": ["https://pictures.example/1.png"]}
    await desk.lose(parameters=sent)
    desk.history.calls = [call(inputs=sent)]

    assert await desk.verdict() is Verdict.BOUGHT


async def test_the_earliest_that_did_not_fail_is_the_one(desk: Desk) -> None:
    lost = await desk.lose()
    desk.history.calls = [
        call("late", at=NOON + 60),
        call("failed", Standing.FAILED, at=NOON),
        call("early", Standing.PENDING, at=NOON + 30),
    ]

    assert await desk.verdict() is Verdict.BOUGHT
    assert await desk.ticket_of(lost) == "early"


async def test_a_sure_call_comes_before_a_doubtful_one(desk: Desk) -> None:
    lost = await desk.lose()
    desk.history.calls = [call("doubtful", inputs=None, at=NOON - 60), call("sure")]

    await desk.round()

    assert await desk.ticket_of(lost) == "sure"


async def test_what_is_left_over_and_doubtful_keeps_the_next_one_open(desk: Desk) -> None:
    first, second = await desk.lose_for("acme", "globex")
    desk.history.calls = [call("t-1", model="ltx-video"), call("t-2")]
    desk.clock.now += 10 * HOUR

    verdicts = {decision.purchase: decision.verdict for decision in await desk.round()}

    assert verdicts == {first: Verdict.BOUGHT, second: Verdict.OPEN}


# One ticket, one purchase


async def test_a_ticket_is_never_given_to_two_purchases(desk: Desk) -> None:
    lost = await desk.lose_for("acme", "globex", "initech")
    desk.history.calls = [call("t-1"), call("t-2", at=NOON + 1)]

    first = await desk.round()
    desk.clock.now += 2 * HOUR
    second = await desk.round()

    assert [d.verdict for d in first] == [Verdict.BOUGHT, Verdict.BOUGHT, Verdict.OPEN]
    assert [(d.purchase, d.verdict) for d in second] == [(lost[2], Verdict.NOT_BOUGHT)]
    assert [await desk.ticket_of(purchase) for purchase in lost] == ["t-1", "t-2", None]
    assert await desk.ledger.verify() == []


async def test_the_call_of_an_equal_request_that_is_being_sent_is_left_to_it(desk: Desk) -> None:
    lost = await desk.lose("acme")
    sent = await desk.send("globex")
    desk.history.calls = [call("t-1")]

    meanwhile = await desk.verdict()
    await desk.ledger.record_ticket(sent, Ticket("t-1"))
    desk.clock.now += 2 * HOUR
    afterwards = await desk.round()

    assert meanwhile is Verdict.OPEN
    assert [(d.purchase, d.verdict) for d in afterwards] == [(lost, Verdict.NOT_BOUGHT)]


async def test_the_call_of_an_equal_request_that_got_its_ticket_meanwhile_is_left_to_it(desk: Desk) -> None:
    await desk.lose("acme")
    sent = await desk.send("globex")
    desk.history.calls = [call("t-1")]
    desk.history.meanwhile = lambda: desk.ledger.record_ticket(sent, Ticket("t-1"))

    assert await desk.verdict() is Verdict.OPEN


async def test_the_call_of_an_equal_request_that_became_unknown_meanwhile_is_left_to_it(desk: Desk) -> None:
    lost = await desk.lose("acme")
    sent = await desk.send("globex")
    desk.history.calls = [call("t-1")]
    desk.history.meanwhile = lambda: desk.ledger.mark_unknown(sent, "silence")

    assert await desk.verdict() is Verdict.OPEN
    assert await desk.ticket_of(lost) is None


async def test_another_process_that_is_at_it_too_ends_the_round(desk: Desk) -> None:
    first, second = await desk.lose_for("acme", "globex")
    desk.history.calls = [call("t-1"), call("t-2", at=NOON + 1)]
    desk.clock.now += 2 * HOUR
    desk.history.meanwhile = lambda: desk.ledger.resolve_bought(first, Ticket("t-1"))

    assert await desk.round() == []

    desk.history.meanwhile = nothing_happens
    assert [d.purchase for d in await desk.round()] == [second]
    assert await desk.ticket_of(second) == "t-2"


async def test_what_was_read_before_somebody_else_resolved_it_gives_no_money_back(desk: Desk) -> None:
    lost = await desk.lose()
    desk.clock.now += 2 * HOUR

    async def elsewhere() -> None:
        await desk.ledger.resolve_bought(lost, Ticket("t-1"))
        await desk.fail_to_collect(lost)

    desk.history.meanwhile = elsewhere

    assert await desk.round() == []
    assert await desk.state(lost) is State.UNKNOWN


async def test_two_processes_in_turn_agree(desk: Desk) -> None:
    lost = await desk.lose_for("acme", "globex")
    desk.history.calls = [call("t-2", at=NOON + 1), call("t-1")]
    other = reconciliation(desk.ledger, Archive(list(desk.history.calls)), desk.clock)
    desk.history.meanwhile = other.settle_unknowns

    await desk.round()

    assert [await desk.ticket_of(purchase) for purchase in lost] == ["t-1", "t-2"]


# What the history does not say


async def test_a_fault_decides_nothing_at_any_age(desk: Desk) -> None:
    await desk.lose("acme")
    await desk.lose_result(scope="globex")
    desk.history.fault = UpstreamUnreachable("The upstream does not answer for its history (timeout).")
    desk.clock.now += 30 * DAY_SECONDS

    decisions = await desk.round()

    assert [(d.verdict, d.reason) for d in decisions] == [(Verdict.OPEN, str(desk.history.fault))] * 2


async def test_the_lag_is_waited_out_to_the_second(desk: Desk) -> None:
    await desk.lose()
    desk.clock.now = NOON + LAG_SECONDS
    assert await desk.verdict() is Verdict.OPEN

    desk.clock.now += 1
    assert await desk.verdict() is Verdict.NOT_BOUGHT


async def test_purchases_of_one_time_share_a_question_and_those_of_another_have_their_own(desk: Desk) -> None:
    await desk.lose("acme")
    desk.clock.now += HOUR
    await desk.lose("globex")
    desk.clock.now += DAY_SECONDS
    await desk.lose("initech")
    desk.clock.now += 10

    await desk.round()

    assert desk.history.windows == [
        (NOON - 120, NOON + 4 * HOUR + 120),
        (NOON + HOUR + DAY_SECONDS - 120, NOON + HOUR + DAY_SECONDS + 130),
    ]


# With a ticket


async def test_a_ticket_is_absent_only_if_the_list_says_so_too(desk: Desk) -> None:
    lost = await desk.lose_result()
    desk.history.calls = [call(inputs=None, at=None)]
    desk.history.unlisted = {Ticket("t-1")}
    desk.clock.now += 2 * HOUR

    assert await desk.verdict() is Verdict.BOUGHT
    assert await desk.ticket_of(lost) == "t-1"


async def test_a_ticket_is_not_exchanged_for_a_call_with_the_same_inputs(desk: Desk) -> None:
    lost = await desk.lose_result("t-1")
    desk.history.calls = [call("t-2")]
    desk.clock.now += 2 * HOUR

    assert await desk.verdict() is Verdict.NOT_BOUGHT
    assert await desk.ticket_of(lost) == "t-1"


async def test_a_failure_that_was_charged_is_lost_at_what_it_cost(desk: Desk) -> None:
    await desk.lose_result()
    desk.history.calls = [call(standing=Standing.FAILED, cost=Money(100_000))]

    [decision] = await desk.round()

    assert (decision.verdict, decision.cost) == (Verdict.LOST, Money(100_000))
    assert await desk.ledger.lost() == Money(100_000)


async def test_a_result_that_cannot_be_had_is_asked_for_ever_more_seldom_and_then_lost(desk: Desk) -> None:
    lost = await desk.lose_result()
    desk.history.calls = [call(cost=Money(400_000))]
    tried_at = []
    while await desk.state(lost) is State.UNKNOWN:
        [decision] = await desk.round()
        if decision.verdict is Verdict.BOUGHT:
            tried_at.append(desk.clock.now - NOON)
            await desk.fail_to_collect(lost)
        desk.clock.now += 60

    assert tried_at[:5] == [0, 60, 180, 420, 900]
    assert max(later - earlier for earlier, later in pairwise(tried_at)) == 6 * HOUR
    assert await desk.state(lost) is State.LOST
    assert await desk.ledger.lost() == Money(400_000)
    assert 7 * DAY_SECONDS < desk.clock.now - NOON < 7 * DAY_SECONDS + 300


async def test_a_lost_result_of_unknown_cost_costs_what_was_held(desk: Desk) -> None:
    await desk.lose_result()
    desk.history.calls = [call(cost=None)]
    desk.clock.now += 7 * DAY_SECONDS + 1

    [decision] = await desk.round()

    assert (decision.verdict, decision.cost) == (Verdict.LOST, None)
    assert await desk.ledger.lost() == PRICE


async def test_what_was_sold_without_an_id_is_held_for_as_long_as_it_may_turn_up_and_then_lost(
    desk: Desk,
) -> None:
    await desk.lose_result("v1-of-our-own")
    desk.history.fault = ResultGone("The upstream sold this without an id.")
    desk.clock.now += 7 * DAY_SECONDS

    before = await desk.verdict()
    desk.clock.now += 1

    assert before is Verdict.OPEN
    assert await desk.verdict() is Verdict.LOST
    assert await desk.ledger.lost() == PRICE


# What is told of it


async def test_each_decision_is_logged_once_and_without_what_was_asked_for(desk: Desk) -> None:
    lost = await desk.lose()
    with capture_logs() as logs:
        await desk.round()
        await desk.round()
        desk.history.calls = [call()]
        await desk.round()

    told: list[Any] = [(log["event"], log["purchase"], log.get("verdict"), log.get("ticket")) for log in logs]
    assert told == [("purchase left open", lost, None, None), ("purchase resolved", lost, "bought", "t-1")]
    assert "confidential" not in str(logs)


# The account


@dataclass
class Account:
    left: Money = field(default_factory=lambda: Money(10_000_000))
    meanwhile: Callable[[], Awaitable[object]] = nothing_happens

    async def credits(self) -> Money:
        left = self.left
        await self.meanwhile()
        return left

    def charge(self, amount: Money = PRICE) -> None:
        self.left -= amount


async def settle(desk: Desk, bought: Bought, cost: Money | None = PRICE) -> None:
    await desk.ledger.settle(bought, cost=cost, blobs=[BLOB], seed=7, seconds=1.0)


async def buy(desk: Desk, scope: str = "acme") -> Bought:
    return await desk.ledger.record_ticket(await desk.send(scope), Ticket(f"ticket of {scope}"))


async def test_drift_is_what_left_beyond_what_is_spent_and_held(desk: Desk) -> None:
    account = Account()
    watch = BalanceWatch(ask_credits=account.credits, statements=desk.ledger)
    seen = [(await watch.look()).drift]
    own = await buy(desk)
    account.charge(PRICE + Money(1))
    seen.append((await watch.look()).drift)
    await settle(desk, own)
    seen.append((await watch.look()).drift)
    account.charge(Money(50_000))
    seen.append((await watch.look()).drift)

    assert seen == [Money.ZERO, Money(1), Money(1), Money(50_001)]


async def test_what_is_held_hides_at_most_as_much_and_not_for_longer(desk: Desk) -> None:
    account = Account()
    watch = BalanceWatch(ask_credits=account.credits, statements=desk.ledger)
    await watch.look()
    own = await buy(desk)
    account.charge()  # somebody else

    hidden = (await watch.look()).drift
    await desk.ledger.release(own, "failed")

    assert (hidden, (await watch.look()).drift) == (Money.ZERO, PRICE)


async def test_what_was_charged_before_the_first_look_and_settled_after_it_is_no_top_up(desk: Desk) -> None:
    account = Account()
    own = await buy(desk)
    account.charge()
    watch = BalanceWatch(ask_credits=account.credits, statements=desk.ledger)
    await watch.look()

    await settle(desk, own)

    assert (await watch.look()).drift == Money.ZERO
    account.charge(Money(1))
    assert (await watch.look()).drift == Money(1)


async def test_a_top_up_is_shown_as_negative_drift(desk: Desk) -> None:
    account = Account()
    watch = BalanceWatch(ask_credits=account.credits, statements=desk.ledger)
    await watch.look()
    account.left += Money(50_000_000)

    balance = await watch.look()

    assert (balance.credits, balance.drift) == (Money(60_000_000), Money(-50_000_000))


async def test_a_cost_that_was_not_reported_rightly_is_drift(desk: Desk) -> None:
    account = Account()
    watch = BalanceWatch(ask_credits=account.credits, statements=desk.ledger)
    await watch.look()
    account.charge(Money(500_000))
    await settle(desk, await buy(desk), cost=Money(400_000))

    assert (await watch.look()).drift == Money(100_000)


async def test_what_happens_while_the_balance_is_asked_for_is_no_drift(desk: Desk) -> None:
    account = Account()
    watch = BalanceWatch(ask_credits=account.credits, statements=desk.ledger)
    await watch.look()

    async def bought_and_settled() -> None:
        account.meanwhile = nothing_happens
        await settle(desk, await buy(desk))

    account.meanwhile = bought_and_settled
    not_charged_yet = (await watch.look()).drift
    account.charge()

    assert (not_charged_yet, (await watch.look()).drift) == (Money.ZERO, Money.ZERO)


def foreign(desk: Desk) -> ForeignSpend:
    return ForeignSpend(
        history=desk.history, resolution=desk.ledger, statements=desk.ledger, clock=desk.clock
    )


async def test_foreign_is_what_no_purchase_has_a_ticket_for_and_none_is_in_doubt_about(desk: Desk) -> None:
    await buy(desk)
    await desk.lose("globex", {**CAT, "prompt": "an emu"})
    await desk.send("initech", {**CAT, "prompt": "a newt"})
    written_off = await desk.lose("hooli", {**CAT, "prompt": "an owl"})
    await desk.ledger.resolve_lost(written_off, None, "bought again")
    desk.history.calls = [
        call("ticket of acme"),
        *(call(prompt, inputs={**CAT, "prompt": prompt}) for prompt in ("an emu", "a newt", "an owl")),
        call("theirs-1", inputs={"prompt": "spam"}, cost=Money(1_000_000)),
        call("theirs-2", inputs={"prompt": "spam"}, cost=Money(500_000), model="seedream-4.5"),
        call("theirs-3", Standing.FAILED, inputs={"prompt": "spam"}, cost=None),
        call("long ago", inputs={"prompt": "spam"}, at=NOON - DAY_SECONDS - 1),
    ]

    assert await foreign(desk).total() == Money(1_500_000)
    assert desk.history.windows == [(NOON - DAY_SECONDS, NOON)]


async def test_thousands_of_calls_are_compared_with_the_books(desk: Desk) -> None:
    await buy(desk)
    desk.history.calls = [
        call("ticket of acme"),
        *(call(f"theirs-{number}", inputs={"prompt": "spam"}, cost=Money(1)) for number in range(1200)),
    ]

    assert await foreign(desk).total() == Money(1200)


async def test_foreign_spend_that_cannot_be_seen_is_not_nothing(desk: Desk) -> None:
    desk.history.fault = UpstreamUnreachable("no")

    with pytest.raises(UpstreamUnreachable):
        await foreign(desk).total()


async def test_a_history_that_was_read_before_a_long_sleep_proves_no_absence_after_it(desk: Desk) -> None:
    """The process is stopped, or its machine sleeps, between reading the history and deciding."""
    purchase = await desk.lose()

    async def asleep() -> None:
        desk.clock.now += 2 * LAG_SECONDS

    desk.history.meanwhile = asleep

    assert await desk.verdict() is Verdict.OPEN
    assert await desk.state(purchase) is State.UNKNOWN
