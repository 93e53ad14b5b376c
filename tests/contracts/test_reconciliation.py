"""Lost purchases, found again in the history of an upstream that keeps books of its own: the sandbox, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.database.sqlite import SqliteDatabase
from gateway.domain.errors import GenerationFailed, OutcomeUnknown
from gateway.domain.generation import Blob, GenerationRequest, Json
from gateway.domain.identity import PurchaseId, Ticket
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Tenant
from gateway.generation.drift import BalanceWatch, ForeignSpend
from gateway.generation.fingerprint import fingerprint_of
from gateway.generation.reconciliation import Decision, Reconciliation, Verdict
from gateway.ledger.contract import Bought, Held, Purchase, Sent, State
from gateway.ledger.sqlite import SqliteLedger
from gateway.upstream.limits import Limits
from gateway.upstream.secret import Secret
from gateway.upstream.segmind import SegmindUpstream
from tests.contracts.ledger_books import BLOB
from tests.journeys.sandbox.running import KEY, MODEL, NEVER, SMALL, SMALL_MICROS, RunningSandbox

LAG_SECONDS = 600.0
DAY_SECONDS = 86_400.0
COST = Money(SMALL_MICROS)
FOX = SMALL
EMU = {**SMALL, "prompt": "a blue emu"}


@dataclass
class Shop:
    """A ledger and an upstream, and the hands that buy from one with the money of the other."""

    ledger: SqliteLedger
    upstream: SegmindUpstream
    sandbox: RunningSandbox
    reconciliation: Reconciliation

    async def reserve(self, parameters: Mapping[str, Json] = FOX, scope: str | None = None) -> Held:
        name = fingerprint_of(MODEL, parameters, scope=scope)
        asked = GenerationRequest(MODEL, parameters, name, COST)
        held = await self.ledger.reserve(
            Caller(Tenant(scope or "acme", ()), "key-1"), asked, newest_known=None
        )
        assert isinstance(held, Held)
        return held

    async def lose(self, parameters: Mapping[str, Json] = FOX, scope: str | None = None) -> PurchaseId:
        """A purchase whose submit arrived, and whose answer did not."""
        await self.sandbox.set_faults(submit_dropped={"count": 1})
        sent = await self.ledger.send(await self.reserve(parameters, scope))
        asked = (await self.purchase(sent.purchase)).request
        with pytest.raises(OutcomeUnknown) as silence:
            await self.upstream.submit(asked)
        await self.ledger.mark_unknown(sent, str(silence.value))
        return sent.purchase

    async def never_send(self, parameters: Mapping[str, Json] = FOX, scope: str | None = None) -> PurchaseId:
        """A purchase whose process died between `sending` and the socket."""
        sent: Sent = await self.ledger.send(await self.reserve(parameters, scope))
        await self.ledger.mark_unknown(sent, "the gateway stopped while the request was being sent")
        return sent.purchase

    async def buy(self, parameters: Mapping[str, Json] = FOX) -> Bought:
        sent = await self.ledger.send(await self.reserve(parameters))
        asked = (await self.purchase(sent.purchase)).request
        return await self.ledger.record_ticket(sent, await self.upstream.submit(asked))

    async def forget(self, bought: Bought) -> None:
        """What the service does when the upstream knows nothing of a ticket any more."""
        await self.ledger.mark_unknown(bought, "The upstream has forgotten this generation.")

    async def collect(self, purchase: PurchaseId) -> None:
        """What the service does with a purchase that it may adopt."""
        claim = await self.ledger.adopt(purchase)
        assert isinstance(claim, Bought)
        try:
            async with self.upstream.collect(claim.ticket, MODEL, lambda _: None) as delivery:
                blobs: list[Blob] = []
                async for artifact in delivery.artifacts:
                    assert len(b"".join([chunk async for chunk in artifact.chunks])) > 1000
                    blobs.append(BLOB)
                await self.ledger.settle(claim, cost=delivery.cost, blobs=blobs, seed=None, seconds=None)
        except GenerationFailed as failure:
            await self.ledger.release(claim, failure.code)

    async def round(self) -> list[Decision]:
        return list(await self.reconciliation.settle_unknowns())

    async def purchase(self, identity: PurchaseId) -> Purchase:
        found = await self.ledger.purchase(identity)
        assert found is not None
        return found

    async def state(self, identity: PurchaseId) -> State:
        return (await self.purchase(identity)).state

    async def spent(self) -> Money:
        return sum((await self.ledger.spent()).values(), Money.ZERO)

    async def held(self) -> Money:
        return sum((await self.ledger.reserved()).values(), Money.ZERO)

    async def billed(self) -> Money:
        return Money((await self.sandbox.settled_bill())["total"]["cost_micros"])

    def wait(self, seconds: float) -> None:
        self.sandbox.clock.ahead_seconds += seconds


async def opened_shop(directory: Path, time_scale: float) -> AsyncIterator[Shop]:
    async with RunningSandbox(directory / "sandbox", time_scale=time_scale) as sandbox:
        database = SqliteDatabase(directory / "ledger.sqlite3")
        try:
            ledger = SqliteLedger(
                database, clock=sandbox.clock, owner="one", is_alive=lambda _: True, lease_seconds=15.0
            )
            async with SegmindUpstream.open(
                base_url=sandbox.url,
                api_key=Secret(KEY),
                clock=sandbox.clock,
                on_call=lambda _operation, _status, _seconds: None,
                result_hosts=frozenset({"127.0.0.1"}),
                history_url=sandbox.url,
                limits=Limits(
                    poll_first_seconds=0.01, poll_longest_seconds=0.02, download_backoff_seconds=0.001
                ),
            ) as upstream:
                reconciliation = Reconciliation(
                    resolution=ledger,
                    statements=ledger,
                    history=upstream,
                    clock=sandbox.clock,
                    history_lag_seconds=LAG_SECONDS,
                )
                yield Shop(ledger, upstream, sandbox, reconciliation)
        finally:
            database.close()


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async for opened in opened_shop(tmp_path, time_scale=0.001):
        yield opened


@pytest.fixture
async def slow_shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async for opened in opened_shop(tmp_path, time_scale=NEVER):
        yield opened


# Without a ticket


async def test_a_lost_submit_is_found_collected_and_settled_at_what_it_cost(shop: Shop) -> None:
    lost = await shop.lose()
    [job] = (await shop.sandbox.settled_bill())["jobs"]

    [decision] = await shop.round()
    await shop.collect(lost)

    assert (decision.purchase, decision.verdict) == (lost, Verdict.BOUGHT)
    assert decision.ticket == job["request_id"]
    assert await shop.state(lost) is State.SETTLED
    assert (await shop.spent(), await shop.held()) == (await shop.billed(), Money.ZERO)
    assert await shop.round() == []


async def test_a_lost_submit_that_is_still_being_made_is_found_too(slow_shop: Shop) -> None:
    lost = await slow_shop.lose()

    [decision] = await slow_shop.round()

    assert decision.verdict is Verdict.BOUGHT
    assert await slow_shop.state(lost) is State.RUNNING
    assert await slow_shop.held() == COST


async def test_a_lost_submit_that_failed_is_collected_to_hear_so_and_the_money_goes_back(shop: Shop) -> None:
    await shop.sandbox.set_faults(failed={"count": 1})
    lost = await shop.lose()
    await shop.sandbox.settled_bill()

    [decision] = await shop.round()
    await shop.collect(lost)

    assert decision.verdict is Verdict.BOUGHT
    assert await shop.state(lost) is State.RELEASED
    assert (await shop.spent(), await shop.held()) == (Money.ZERO, Money.ZERO)


async def test_the_failure_of_an_earlier_try_is_not_taken_for_the_next_ones(shop: Shop) -> None:
    await shop.sandbox.set_faults(failed={"count": 1})
    first = await shop.lose()
    await shop.sandbox.settled_bill()
    await shop.round()
    await shop.collect(first)
    # The same again at once, within the slack of the first; the history is slow to show it.
    await shop.sandbox.set_faults(history_lag={"count": 1, "seconds": 60})
    second = await shop.lose()
    await shop.sandbox.settled_bill()

    [waiting] = await shop.round()
    shop.wait(61)
    [found] = await shop.round()
    await shop.collect(second)

    assert (waiting.verdict, found.verdict) == (Verdict.OPEN, Verdict.BOUGHT)
    assert await shop.state(second) is State.SETTLED
    assert await shop.spent() == await shop.billed() == COST


async def test_what_was_never_sent_is_released_after_the_histories_lag_and_not_before(shop: Shop) -> None:
    never = await shop.never_send()
    shop.wait(LAG_SECONDS - 1)

    [before] = await shop.round()
    held_before = await shop.held()
    shop.wait(2)
    [after] = await shop.round()

    assert (before.verdict, after.verdict) == (Verdict.OPEN, Verdict.NOT_BOUGHT)
    assert (held_before, await shop.held()) == (COST, Money.ZERO)
    assert await shop.state(never) is State.RELEASED
    assert await shop.billed() == Money.ZERO


async def test_a_history_that_lags_releases_nothing(shop: Shop) -> None:
    await shop.sandbox.set_faults(history_lag={"count": 1, "seconds": LAG_SECONDS - 60})
    await shop.lose()

    [before] = await shop.round()
    shop.wait(LAG_SECONDS - 59)
    [after] = await shop.round()

    assert (before.verdict, after.verdict) == (Verdict.OPEN, Verdict.BOUGHT)


async def test_a_history_that_cannot_be_asked_decides_nothing_however_late_it_is(shop: Shop) -> None:
    bought = await shop.buy(EMU)
    await shop.forget(bought)
    never = await shop.never_send()
    shop.wait(30 * DAY_SECONDS)
    await shop.sandbox.stop_serving()

    decisions = await shop.round()

    assert {d.purchase: d.verdict for d in decisions} == {
        bought.purchase: Verdict.OPEN,
        never: Verdict.OPEN,
    }
    assert await shop.held() == COST + COST


async def test_two_tenants_with_the_same_inputs_get_a_call_each(shop: Shop) -> None:
    lost = [await shop.lose(scope=tenant) for tenant in ("acme", "globex")]
    jobs = (await shop.sandbox.settled_bill())["jobs"]

    decisions = await shop.round()
    for purchase in lost:
        await shop.collect(purchase)

    assert [d.purchase for d in decisions] == lost
    assert {d.ticket for d in decisions} == {job["request_id"] for job in jobs}
    assert len(jobs) == 2
    assert await shop.spent() == await shop.billed()


async def test_of_two_tenants_with_the_same_inputs_only_one_has_bought(shop: Shop) -> None:
    await shop.never_send(scope="acme")
    await shop.lose(scope="globex")
    await shop.sandbox.settled_bill()

    found, waiting = await shop.round()
    shop.wait(LAG_SECONDS + 1)
    [absent] = await shop.round()
    await shop.collect(found.purchase)

    assert (found.verdict, waiting.verdict, absent.verdict) == (
        Verdict.BOUGHT,
        Verdict.OPEN,
        Verdict.NOT_BOUGHT,
    )
    assert absent.purchase == waiting.purchase
    assert await shop.spent() == await shop.billed() == COST


async def test_calls_of_others_are_left_alone(shop: Shop) -> None:
    await shop.sandbox.submit(EMU)
    await shop.sandbox.submit({**FOX, "seed": 5})
    await shop.sandbox.settled_bill()
    never = await shop.never_send({**FOX, "seed": 6})
    shop.wait(LAG_SECONDS + 1)

    [decision] = await shop.round()

    assert (decision.purchase, decision.verdict) == (never, Verdict.NOT_BOUGHT)


async def test_what_a_purchase_has_a_ticket_for_is_nobody_elses(shop: Shop) -> None:
    settled = await shop.buy()
    await shop.collect(settled.purchase)
    never = await shop.never_send(scope="globex")
    shop.wait(LAG_SECONDS + 1)

    [decision] = await shop.round()

    assert (decision.purchase, decision.verdict) == (never, Verdict.NOT_BOUGHT)


# With a ticket


async def test_a_ticket_that_the_history_has_after_all_is_collected(shop: Shop) -> None:
    bought = await shop.buy()
    await shop.sandbox.settled_bill()
    await shop.forget(bought)

    [decision] = await shop.round()
    await shop.collect(bought.purchase)

    assert (decision.verdict, decision.ticket) == (Verdict.BOUGHT, bought.ticket)
    assert await shop.spent() == await shop.billed() == COST


async def test_a_ticket_that_is_still_being_made_is_waited_for(slow_shop: Shop) -> None:
    bought = await slow_shop.buy()
    await slow_shop.forget(bought)

    [decision] = await slow_shop.round()

    assert decision.verdict is Verdict.OPEN
    assert await slow_shop.held() == COST


async def test_a_ticket_that_failed_is_released(shop: Shop) -> None:
    await shop.sandbox.set_faults(failed={"count": 1})
    bought = await shop.buy()
    await shop.sandbox.settled_bill()
    await shop.forget(bought)

    [decision] = await shop.round()

    assert decision.verdict is Verdict.NOT_BOUGHT
    assert await shop.state(bought.purchase) is State.RELEASED


async def test_media_that_are_gone_for_good_end_as_lost_at_what_they_cost(shop: Shop) -> None:
    bought = await shop.buy()
    await shop.sandbox.settled_bill()
    await shop.forget(bought)
    shop.wait(7 * DAY_SECONDS + 60)

    [decision] = await shop.round()

    assert (decision.verdict, decision.cost) == (Verdict.LOST, COST)
    assert await shop.state(bought.purchase) is State.LOST
    assert (await shop.spent(), await shop.held()) == (await shop.billed(), Money.ZERO)


async def test_a_ticket_that_the_history_does_not_have_is_released_after_its_lag(shop: Shop) -> None:
    sent = await shop.ledger.send(await shop.reserve())
    await shop.forget(await shop.ledger.record_ticket(sent, Ticket("never-heard-of")))

    [before] = await shop.round()
    shop.wait(LAG_SECONDS + 1)
    [after] = await shop.round()

    assert (before.verdict, after.verdict) == (Verdict.OPEN, Verdict.NOT_BOUGHT)


# The account


async def test_what_we_buy_is_no_drift_while_it_is_made_and_after(shop: Shop) -> None:
    watch = BalanceWatch(ask_credits=shop.upstream.credits, statements=shop.ledger)
    drifts = [(await watch.look()).drift]
    bought = await shop.buy()
    drifts.append((await watch.look()).drift)
    # Charged there, and not settled here.
    await shop.sandbox.settled_bill()
    drifts.append((await watch.look()).drift)
    await shop.collect(bought.purchase)
    last = await watch.look()

    assert [*drifts, last.drift] == [Money.ZERO] * 4
    assert last.credits == Money.exactly("1000") - COST


async def test_what_others_buy_with_our_key_is_drift_and_foreign_spend(shop: Shop) -> None:
    watch = BalanceWatch(ask_credits=shop.upstream.credits, statements=shop.ledger)
    foreign = ForeignSpend(
        history=shop.upstream, resolution=shop.ledger, statements=shop.ledger, clock=shop.sandbox.clock
    )
    await watch.look()
    own = await shop.buy()
    await shop.collect(own.purchase)
    lost = await shop.lose({**FOX, "seed": 9})
    await shop.sandbox.result(EMU)
    await shop.sandbox.settled_bill()

    hidden_by_what_is_held = (await watch.look()).drift
    spent_by_others = await foreign.total()
    await shop.round()
    await shop.collect(lost)

    assert hidden_by_what_is_held == COST
    assert spent_by_others == COST
    assert (await watch.look()).drift == COST
    assert await foreign.total() == COST
    shop.wait(DAY_SECONDS + 60)
    assert await foreign.total() == Money.ZERO
