"""The ledger's promises, sentence by sentence. Every implementation has to pass this file."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from gateway.database.errors import DatabaseTooNew
from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.balance import remaining
from gateway.domain.errors import BudgetExceeded, StorageUnavailable
from gateway.domain.generation import Json
from gateway.domain.identity import Ticket
from gateway.domain.money import Money
from gateway.domain.window import Window
from gateway.ledger.contract import Bought, ClaimLost, Discrepancy, Held, Purchase, Sent, State
from gateway.ledger.sqlite import SqliteLedger
from tests.contracts.ledger_books import BLOB, DAY_SECONDS, NOON, MovableClock, caller, request

LEASE_SECONDS = 15.0


class Open(Protocol):
    def __call__(self, owner: str = "one", alive: frozenset[str] = ...) -> SqliteLedger: ...


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Marks]:
    """As another process sees them."""
    page = Marks(tmp_path / "marks")
    yield page
    page.close()


@pytest.fixture(params=["sqlite"])
def open_ledger(tmp_path: Path, clock: MovableClock, marks: Marks) -> Iterator[Open]:
    """Opens the same books again and again, each time as another process would."""
    with ExitStack() as closing:

        def open_(owner: str = "one", alive: frozenset[str] = frozenset({"one", "two"})) -> SqliteLedger:
            database = SqliteDatabase(tmp_path / "ledger.sqlite3", marks=marks)
            closing.callback(database.close)
            return SqliteLedger(
                database, clock=clock, owner=owner, is_alive=alive.__contains__, lease_seconds=LEASE_SECONDS
            )

        yield open_


@pytest.fixture
def ledger(open_ledger: Open) -> SqliteLedger:
    return open_ledger()


async def held(
    ledger: SqliteLedger, name: str = "a cat", *limits: tuple[str, Window], price: str = "0.416"
) -> Held:
    reserved = await ledger.reserve(caller(*limits), request(name, price), newest_known=None)
    assert isinstance(reserved, Held)
    return reserved


async def bought(ledger: SqliteLedger, name: str = "a cat", *limits: tuple[str, Window]) -> Bought:
    sent = await ledger.send(await held(ledger, name, *limits))
    return await ledger.record_ticket(sent, Ticket(f"ticket of {name}"))


async def settled(ledger: SqliteLedger, claim: Bought, cost: str | None = "0.416") -> None:
    await ledger.settle(
        claim, cost=None if cost is None else Money.exactly(cost), blobs=[BLOB], seed=7, seconds=100.5
    )


# --- Reserving


async def test_what_is_reserved_is_held_and_not_spent(ledger: SqliteLedger) -> None:
    await held(ledger)

    assert await ledger.reserved("acme") == {("acme", "ltx-2-19b-t2v"): Money(416_000)}
    assert await ledger.spent("acme") == {}


async def test_a_price_that_fits_a_budget_to_the_micro_dollar_is_held(ledger: SqliteLedger) -> None:
    await held(ledger, "a cat", ("0.832", Window.TOTAL))
    await held(ledger, "a dog", ("0.832", Window.TOTAL))

    (balance,) = await ledger.balances_of(caller(("0.832", Window.TOTAL)).holders)
    assert balance.remaining == Money.ZERO


async def test_a_price_that_passes_a_budget_by_one_micro_dollar_is_refused(ledger: SqliteLedger) -> None:
    await held(ledger, "a cat", ("0.831999", Window.TOTAL))

    with pytest.raises(BudgetExceeded) as refusal:
        await held(ledger, "a dog", ("0.831999", Window.TOTAL))

    assert refusal.value.balance.reserved == Money(416_000)
    assert refusal.value.balance.limit == Money(831_999)
    assert refusal.value.resets_at is None
    assert await ledger.reserved() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}


async def test_every_budget_of_a_tenant_has_to_have_room(ledger: SqliteLedger) -> None:
    limits = (("100", Window.DAY), ("0.5", Window.MONTH), ("100", Window.TOTAL))
    await held(ledger, "a cat", *limits)

    with pytest.raises(BudgetExceeded) as refusal:
        await held(ledger, "a dog", *limits)

    assert refusal.value.window is Window.MONTH
    assert refusal.value.details["resets_at"] == "2026-12-01T00:00:00Z"


async def test_one_tenants_money_is_not_anothers(ledger: SqliteLedger) -> None:
    await held(ledger, "a cat", ("0.416", Window.TOTAL))

    other = await ledger.reserve(
        caller(("0.416", Window.TOTAL), tenant="other"), request("a dog"), newest_known=None
    )

    assert isinstance(other, Held)


async def test_a_tenant_without_budgets_has_no_limit(ledger: SqliteLedger) -> None:
    for animal in ("a cat", "a dog", "an emu"):
        await held(ledger, animal, price="1000000")

    assert remaining(caller().holders, await ledger.balances_of(caller().holders)) is None


async def test_the_balances_of_many_are_those_of_each_in_their_order(ledger: SqliteLedger) -> None:
    callers = [caller(("1", Window.DAY), ("9", Window.TOTAL), tenant=f"tenant {n}") for n in range(30)]
    for n, each in enumerate(callers):
        await ledger.reserve(each, request(f"a cat {n}", f"0.{n + 1:03}"), newest_known=None)
    holders = [each.holders[0] for each in callers]
    together = await ledger.balances_of(holders, with_pace=True)

    assert list(together) == [
        balance for holder in holders for balance in await ledger.balances_of([holder], with_pace=True)
    ]
    assert [balance.reserved.micros for balance in together] == [1000 * (n // 2 + 1) for n in range(60)]


async def test_a_second_purchase_of_an_open_fingerprint_is_answered_with_the_first(
    ledger: SqliteLedger,
) -> None:
    first = await held(ledger)

    second = await ledger.reserve(caller(), request(), newest_known=None)

    assert isinstance(second, Purchase)
    assert (second.id, second.state) == (first.purchase, State.QUEUED)
    again = await ledger.reserve(caller(), request(), newest_known=first.purchase)
    assert isinstance(again, Purchase)


async def test_a_purchase_that_landed_since_one_looked_is_the_answer(ledger: SqliteLedger) -> None:
    claim = await bought(ledger)
    await settled(ledger, claim)

    answer = await ledger.reserve(caller(), request(), newest_known=None)

    assert isinstance(answer, Purchase)
    assert answer.generation is not None
    assert isinstance(await ledger.reserve(caller(), request(), newest_known=answer.id), Held)


async def test_a_released_purchase_is_in_nobodys_way(ledger: SqliteLedger) -> None:
    await ledger.release(await held(ledger), "gave up")

    assert await ledger.newest(request().fingerprint) is None
    assert isinstance(await held(ledger), Held)


async def test_concurrent_reservations_stop_exactly_at_the_limit(ledger: SqliteLedger) -> None:
    async def attempt(number: int) -> bool:
        try:
            await held(ledger, f"animal {number}", ("4.16", Window.MONTH))
        except BudgetExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt(number) for number in range(200)))) == 10


async def test_what_is_reserved_to_be_sent_at_once_is_held_and_sent(
    ledger: SqliteLedger, clock: MovableClock
) -> None:
    clock.now += 5

    sent = await ledger.reserve(caller(), request(), newest_known=None, sending=True)

    assert isinstance(sent, Sent)
    newest = await ledger.newest(request().fingerprint)
    assert newest is not None
    assert (newest.id, newest.state) == (sent.purchase, State.SENDING)
    assert (newest.reserved_at, newest.sent_at) == (clock.now, clock.now)
    assert await ledger.reserved() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}
    await settled(ledger, await ledger.record_ticket(sent, Ticket("T1")))
    assert await ledger.spent() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}
    assert await ledger.verify() == []


async def test_what_is_only_reserved_has_not_been_sent(ledger: SqliteLedger) -> None:
    await held(ledger)

    newest = await ledger.newest(request().fingerprint)

    assert newest is not None
    assert (newest.state, newest.sent_at) == (State.QUEUED, None)


async def test_what_would_be_sent_at_once_is_refused_as_what_would_wait_is(ledger: SqliteLedger) -> None:
    buyer = caller(("0.5", Window.TOTAL))
    first = await ledger.reserve(buyer, request(), newest_known=None, sending=True)
    assert isinstance(first, Sent)

    with pytest.raises(BudgetExceeded):
        await ledger.reserve(buyer, request("a dog"), newest_known=None, sending=True)
    again = await ledger.reserve(buyer, request(), newest_known=first.purchase, sending=True)

    assert isinstance(again, Purchase)
    assert (again.id, again.state) == (first.purchase, State.SENDING)


async def test_what_was_sent_at_once_may_have_been_bought_when_its_owner_dies(open_ledger: Open) -> None:
    one, two = open_ledger("one"), open_ledger("two", frozenset())
    sent = await one.reserve(caller(), request(), newest_known=None, sending=True)
    assert isinstance(sent, Sent)

    (orphan,) = await two.orphans()
    adopted = await two.adopt(orphan.id)

    assert adopted == Sent(sent.purchase, sent.fence + 1)
    await two.mark_unknown(adopted, "silence")
    assert await two.unknown() == Money(416_000)
    with pytest.raises(ClaimLost):
        await one.record_ticket(sent, Ticket("late"))


# --- The way of a purchase


async def test_a_purchase_goes_from_held_over_sent_and_bought_to_settled(ledger: SqliteLedger) -> None:
    states = []

    async def note() -> None:
        newest = await ledger.newest(request().fingerprint)
        assert newest is not None
        states.append(newest.state)

    reserved = await held(ledger)
    await note()
    sent = await ledger.send(reserved)
    await note()
    claim = await ledger.record_ticket(sent, Ticket("T1"))
    await note()
    await settled(ledger, claim)
    await note()

    assert states == [State.QUEUED, State.SENDING, State.RUNNING, State.SETTLED]


async def test_a_settled_purchase_keeps_everything_that_it_was(
    ledger: SqliteLedger, clock: MovableClock
) -> None:
    claim = await bought(ledger)
    clock.now += 103
    await settled(ledger, claim, "0.409878")

    newest = await ledger.newest(request().fingerprint)

    assert newest is not None
    assert newest.request == request()
    assert (newest.tenant, newest.key_id, newest.ticket) == ("acme", "key-1", "ticket of a cat")
    assert (newest.reserved_at, newest.ended_at) == (NOON, NOON + 103)
    made = newest.generation
    assert made is not None
    assert (made.cost, made.seed, made.seconds, made.blobs) == (Money(409_878), 7, 100.5, (BLOB,))
    assert made.made_at == NOON + 103


async def test_whatever_can_be_asked_for_is_kept_as_it_was(ledger: SqliteLedger) -> None:
    odd: dict[str, Json] = {
        "big": 2**70,
        "small": 1e-320,
        "text": "\x00 ü 🜂",
        "deep": [[{"": None}], -0.0, 1e22],
        "image": "A" * 100_000,
    }
    await ledger.reserve(caller(), replace(request(), parameters=odd), newest_known=None)

    newest = await ledger.newest(request().fingerprint)

    assert newest is not None
    assert newest.request.parameters == odd


async def test_settling_spends_what_the_upstream_charged_and_frees_the_rest(ledger: SqliteLedger) -> None:
    await settled(ledger, await bought(ledger), "0.3")

    assert await ledger.spent() == {("acme", "ltx-2-19b-t2v"): Money(300_000)}
    assert await ledger.reserved() == {}


async def test_a_cost_that_the_upstream_did_not_say_is_the_held_price_and_never_nothing(
    ledger: SqliteLedger,
) -> None:
    await settled(ledger, await bought(ledger), None)

    assert await ledger.spent() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}


async def test_a_cost_above_the_held_price_is_spent_in_full_and_shown(ledger: SqliteLedger) -> None:
    await settled(ledger, await bought(ledger, "a cat", ("0.5", Window.TOTAL)), "0.7")

    (balance,) = await ledger.balances_of(caller(("0.5", Window.TOTAL)).holders)
    assert balance.remaining == Money(-200_000)
    with pytest.raises(BudgetExceeded):
        await held(ledger, "a dog", ("0.5", Window.TOTAL), price="0.000001")


async def test_settling_twice_spends_once(ledger: SqliteLedger) -> None:
    claim = await bought(ledger)

    await settled(ledger, claim, "0.3")
    await settled(ledger, claim, "0.4")

    assert await ledger.spent() == {("acme", "ltx-2-19b-t2v"): Money(300_000)}


async def test_releasing_twice_releases_once(ledger: SqliteLedger) -> None:
    claim = await held(ledger)

    await ledger.release(claim, "refused")
    await ledger.release(claim, "refused")

    assert await ledger.reserved() == {}


async def test_what_has_been_settled_cannot_be_released(ledger: SqliteLedger) -> None:
    claim = await bought(ledger)
    await settled(ledger, claim)

    with pytest.raises(ClaimLost):
        await ledger.release(claim, "too late")

    assert await ledger.spent() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}


async def test_what_has_been_released_cannot_be_settled(ledger: SqliteLedger) -> None:
    claim = await bought(ledger)
    await ledger.release(claim, "failed")

    with pytest.raises(ClaimLost):
        await settled(ledger, claim)

    assert await ledger.spent() == {}


async def test_a_purchase_cannot_be_sent_twice(ledger: SqliteLedger) -> None:
    claim = await held(ledger)
    await ledger.send(claim)

    with pytest.raises(ClaimLost):
        await ledger.send(claim)


async def test_the_money_of_an_unknown_purchase_stays_held_and_its_fingerprint_taken(
    ledger: SqliteLedger,
) -> None:
    sent = await ledger.send(await held(ledger))

    await ledger.mark_unknown(sent, "silence")

    assert await ledger.unknown() == Money(416_000)
    assert await ledger.reserved() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}
    answer = await ledger.reserve(caller(), request(), newest_known=None)
    assert isinstance(answer, Purchase)
    assert (answer.state, answer.reason) == (State.UNKNOWN, "silence")


# --- Windows


async def test_a_day_begins_at_midnight_utc(ledger: SqliteLedger, clock: MovableClock) -> None:
    clock.now = NOON + DAY_SECONDS - 1
    await settled(ledger, await bought(ledger, "a cat", ("0.5", Window.DAY)))
    with pytest.raises(BudgetExceeded) as refusal:
        await held(ledger, "a dog", ("0.5", Window.DAY))
    assert refusal.value.details["resets_at"] == "2026-11-24T00:00:00Z"

    clock.now += 1

    assert isinstance(await held(ledger, "a dog", ("0.5", Window.DAY)), Held)


async def test_a_month_begins_on_its_first_day(ledger: SqliteLedger, clock: MovableClock) -> None:
    clock.now = NOON + 7 * DAY_SECONDS  # 30 November
    await settled(ledger, await bought(ledger, "a cat", ("0.5", Window.MONTH)))
    with pytest.raises(BudgetExceeded):
        await held(ledger, "a dog", ("0.5", Window.MONTH))

    clock.now += DAY_SECONDS

    assert isinstance(await held(ledger, "a dog", ("0.5", Window.MONTH)), Held)


async def test_money_counts_in_the_window_in_which_it_was_reserved(
    ledger: SqliteLedger, clock: MovableClock
) -> None:
    clock.now = NOON + DAY_SECONDS - 60
    claim = await bought(ledger, "a cat", ("0.5", Window.DAY))
    clock.now += 120

    await settled(ledger, claim)

    (today,) = await ledger.balances_of(caller(("0.5", Window.DAY)).holders)
    assert today.spent == Money.ZERO
    clock.now -= 120
    (yesterday,) = await ledger.balances_of(caller(("0.5", Window.DAY)).holders)
    assert yesterday.spent == Money(416_000)


async def test_a_total_budget_never_begins_again(ledger: SqliteLedger, clock: MovableClock) -> None:
    await settled(ledger, await bought(ledger, "a cat", ("0.5", Window.TOTAL)))

    clock.now += 4000 * DAY_SECONDS

    with pytest.raises(BudgetExceeded):
        await held(ledger, "a dog", ("0.5", Window.TOTAL))


# --- Custody


async def test_a_living_owners_purchase_is_not_adopted(open_ledger: Open) -> None:
    claim = await held(open_ledger("one"))

    assert await open_ledger("two").adopt(claim.purchase) is None


async def test_a_dead_owners_purchase_is_adopted_at_once_and_where_it_was(open_ledger: Open) -> None:
    one, two = open_ledger("one"), open_ledger("two", frozenset())
    reserved = await held(one, "queued")
    sent = await one.send(await held(one, "sending"))
    claim = await bought(one, "running")

    adopted = [await two.adopt(each.purchase) for each in (reserved, sent, claim)]

    assert [type(each) for each in adopted] == [Held, Sent, Bought]
    assert adopted[2] == Bought(claim.purchase, claim.fence + 1, claim.ticket)


async def test_a_silent_owners_purchase_is_adopted_when_its_lease_is_up(
    open_ledger: Open, clock: MovableClock
) -> None:
    one, two = open_ledger("one"), open_ledger("two")
    claim = await bought(one)
    clock.now += LEASE_SECONDS - 1
    await one.renew()
    clock.now += LEASE_SECONDS - 1
    assert await two.adopt(claim.purchase) is None

    clock.now += 2

    assert isinstance(await two.adopt(claim.purchase), Bought)


async def test_an_owner_that_wakes_up_late_can_neither_settle_nor_release(
    open_ledger: Open, clock: MovableClock
) -> None:
    one, two = open_ledger("one"), open_ledger("two")
    stale = await bought(one)
    clock.now += LEASE_SECONDS + 1
    fresh = await two.adopt(stale.purchase)
    assert isinstance(fresh, Bought)

    with pytest.raises(ClaimLost):
        await settled(one, stale)
    with pytest.raises(ClaimLost):
        await one.release(stale, "late")

    await settled(two, fresh)
    assert await two.spent() == {("acme", "ltx-2-19b-t2v"): Money(416_000)}


async def test_what_is_unknown_or_ended_is_not_adopted(open_ledger: Open) -> None:
    one, two = open_ledger("one"), open_ledger("two", frozenset())
    unknown = await one.send(await held(one, "unknown"))
    await one.mark_unknown(unknown, "silence")
    done = await bought(one, "done")
    await settled(one, done)

    assert await two.adopt(unknown.purchase) is None
    assert await two.adopt(done.purchase) is None


async def test_orphans_are_the_open_purchases_of_the_dead_the_silent_and_oneself(
    open_ledger: Open, clock: MovableClock
) -> None:
    one, dead, me = open_ledger("one"), open_ledger("dead"), open_ledger("two", frozenset({"one"}))
    await settled(dead, await bought(dead, "done"))
    of_the_dead = await bought(dead, "of the dead")
    unknown = await dead.send(await held(dead, "unknown"))
    await dead.mark_unknown(unknown, "silence")
    of_the_living = await held(one, "of the living")
    mine = await held(me, "mine")

    assert [orphan.id for orphan in await me.orphans()] == [of_the_dead.purchase, mine.purchase]

    tended = {request("of the dead").fingerprint}
    assert [orphan.id for orphan in await me.orphans(tended=tended)] == [mine.purchase]

    clock.now += LEASE_SECONDS
    assert of_the_living.purchase in [orphan.id for orphan in await me.orphans()]


async def test_what_was_acknowledged_is_there_after_the_books_are_opened_again(open_ledger: Open) -> None:
    claim = await bought(open_ledger("one"))

    newest = await open_ledger("two").newest(request().fingerprint)

    assert newest is not None
    assert (newest.id, newest.state, newest.ticket) == (claim.purchase, State.RUNNING, claim.ticket)


# --- Resolution, losses and audit


async def unknown(ledger: SqliteLedger, name: str = "a cat") -> Sent:
    sent = await ledger.send(await held(ledger, name))
    await ledger.mark_unknown(sent, "silence")
    return sent


async def test_an_unknown_purchase_whose_ticket_is_found_can_be_collected(ledger: SqliteLedger) -> None:
    claim = await unknown(ledger)

    assert await ledger.resolve_bought(claim.purchase, Ticket("found"))

    adopted = await ledger.adopt(claim.purchase)
    assert isinstance(adopted, Bought)
    assert adopted.ticket == "found"
    await settled(ledger, adopted)
    assert await ledger.unknown() == Money.ZERO


async def test_an_unknown_purchase_that_was_found_is_adopted_by_any_living_process(open_ledger: Open) -> None:
    one, two = open_ledger("one"), open_ledger("two")
    claim = await unknown(one)
    await two.resolve_bought(claim.purchase, Ticket("found"))

    assert isinstance(await two.adopt(claim.purchase), Bought)


async def test_one_ticket_is_not_given_to_two_purchases(ledger: SqliteLedger) -> None:
    first, second = await unknown(ledger, "a"), await unknown(ledger, "b")

    assert await ledger.resolve_bought(first.purchase, Ticket("found"))
    assert not await ledger.resolve_bought(second.purchase, Ticket("found"))
    assert [purchase.id for purchase in await ledger.unknown_purchases()] == [second.purchase]


async def test_unknown_purchases_are_listed_oldest_first(ledger: SqliteLedger) -> None:
    first, second = await unknown(ledger, "a"), await unknown(ledger, "b")

    listed = [purchase.id for purchase in await ledger.unknown_purchases()]
    assert listed == [first.purchase, second.purchase]


async def test_an_unknown_purchase_that_was_not_made_gives_its_money_back(ledger: SqliteLedger) -> None:
    claim = await unknown(ledger)

    assert await ledger.resolve_not_bought(claim.purchase, "absent from the history")

    assert (await ledger.reserved(), await ledger.spent()) == ({}, {})
    assert isinstance(await held(ledger), Held)


async def test_what_is_lost_is_spent_and_counted_as_lost(ledger: SqliteLedger) -> None:
    one, other, third = await unknown(ledger, "a"), await unknown(ledger, "b"), await bought(ledger, "c")

    assert await ledger.resolve_lost(one.purchase, Money(300_000), "the operator says so")
    assert await ledger.resolve_lost(other.purchase, None, "nobody knows what it cost")
    await ledger.write_off(third, cost=Money(5), reason="broken")
    await ledger.write_off(third, cost=Money(5), reason="broken")

    assert await ledger.lost() == Money(300_000 + 416_000 + 5)
    assert await ledger.spent() == {("acme", "ltx-2-19b-t2v"): Money(716_005)}
    assert await ledger.reserved() == {}


async def test_a_lost_purchase_is_in_the_way_of_nobody_who_knows_of_it(ledger: SqliteLedger) -> None:
    claim = await bought(ledger)
    await ledger.write_off(claim, cost=None, reason="broken")

    assert isinstance(await ledger.reserve(caller(), request(), newest_known=None), Purchase)
    assert isinstance(await ledger.reserve(caller(), request(), newest_known=claim.purchase), Held)


async def test_a_purchase_is_resolved_once(ledger: SqliteLedger) -> None:
    claim = await unknown(ledger)
    assert await ledger.resolve_not_bought(claim.purchase, "first")

    assert not await ledger.resolve_not_bought(claim.purchase, "second")
    assert not await ledger.resolve_lost(claim.purchase, None, "third")
    assert not await ledger.resolve_bought(claim.purchase, Ticket("fourth"))
    assert await ledger.spent() == {}


async def test_whoever_sent_an_unknown_purchase_has_no_claim_to_it_any_more(ledger: SqliteLedger) -> None:
    claim = await unknown(ledger)
    await ledger.resolve_bought(claim.purchase, Ticket("found"))

    with pytest.raises(ClaimLost):
        await ledger.release(claim, "late")


async def test_tickets_that_a_purchase_has_are_known(ledger: SqliteLedger) -> None:
    claim = await bought(ledger)

    assert await ledger.known_tickets([claim.ticket, Ticket("a stranger's")]) == {claim.ticket}


async def test_purchases_are_shown_newest_first_by_state_and_tenant(ledger: SqliteLedger) -> None:
    first, second = await unknown(ledger, "a"), await unknown(ledger, "b")
    await held(ledger, "c")

    shown = await ledger.purchases(states=(State.UNKNOWN,), tenant="acme")

    assert [purchase.id for purchase in shown] == [second.purchase, first.purchase]
    assert await ledger.purchases(tenant="nobody") == []
    alone = await ledger.purchase(first.purchase)
    assert alone is not None
    assert alone.reason == "silence"


async def test_books_that_fit_are_found_in_order(ledger: SqliteLedger) -> None:
    await settled(ledger, await bought(ledger, "a"))
    await ledger.write_off(await bought(ledger, "b"), cost=None, reason="broken")
    await unknown(ledger, "c")

    assert await ledger.verify() == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sums SET spent_micros = spent_micros + 1",
        "UPDATE sums SET held_micros = held_micros + 1 WHERE series = 2",
        "DELETE FROM sums",
        "DELETE FROM series",
        "INSERT INTO series VALUES (99, 'ghost', '', '', 'ghost'); INSERT INTO sums VALUES (99, 5, 0, 5)",
        "UPDATE purchases SET path = 'ghost/acme'",
        "UPDATE purchases SET reserved_at = reserved_at + 900",
        "DELETE FROM purchase_parameters",
        "UPDATE purchases SET generation = replace(generation, '416000', '415999')",
        "UPDATE purchases SET cost_micros = cost_micros - 1 WHERE state = 'settled'",
        "UPDATE purchases SET ticket = 'twice'",
        "UPDATE purchases SET fingerprint = id WHERE state = 'settled'",
    ],
)
async def test_books_that_do_not_fit_are_found_out(ledger: SqliteLedger, tmp_path: Path, damage: str) -> None:
    await settled(ledger, await bought(ledger, "a"))
    await settled(ledger, await bought(ledger, "b"))
    connection = sqlite3.connect(tmp_path / "ledger.sqlite3")
    connection.executescript(damage)
    connection.commit()
    connection.close()

    assert len(await ledger.verify()) >= 1


async def test_a_backup_is_the_whole_of_the_books_and_overwrites_nothing(
    ledger: SqliteLedger, clock: MovableClock, tmp_path: Path
) -> None:
    await settled(ledger, await bought(ledger))

    await ledger.backup(tmp_path / "backup.sqlite3")

    with pytest.raises(FileExistsError):
        await ledger.backup(tmp_path / "backup.sqlite3")
    restored = SqliteDatabase(tmp_path / "backup.sqlite3")
    books = SqliteLedger(restored, clock=clock, owner="x", is_alive=lambda _: True, lease_seconds=1)
    assert await books.spent() == await ledger.spent()
    assert await books.verify() == []
    restored.close()


async def test_books_of_a_newer_gateway_are_refused(ledger: SqliteLedger, tmp_path: Path) -> None:
    await held(ledger)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite3")
    connection.execute("UPDATE schema_versions SET version = 99 WHERE room = 'ledger'")
    connection.commit()
    connection.close()
    database = SqliteDatabase(tmp_path / "ledger.sqlite3")

    with pytest.raises(DatabaseTooNew, match="version 99"):
        SqliteLedger(database, clock=MovableClock(), owner="x", is_alive=lambda _: True, lease_seconds=1)

    database.close()


# --- Marks


@pytest.mark.parametrize("how", ["reserved", "reserved to be sent", "released", "settled", "written off"])
async def test_whatever_changes_what_a_tenant_can_spend_changes_its_mark(
    open_ledger: Open, marks: Marks, how: str
) -> None:
    ledger = open_ledger()
    buyer = caller(("100", Window.DAY))
    claim = await bought(ledger, "before")
    before = marks.read(marks.place("tenant:acme"))
    others = marks.read(marks.place("tenant:other"))

    match how:
        case "reserved":
            await ledger.reserve(buyer, request("a dog"), newest_known=None)
        case "reserved to be sent":
            await ledger.reserve(buyer, request("a dog"), newest_known=None, sending=True)
        case "released":
            await ledger.release(claim, "failed")
        case "settled":
            await settled(ledger, claim)
        case _:
            await ledger.write_off(claim, cost=None, reason="broken")

    assert marks.read(marks.place("tenant:acme")) != before
    assert marks.read(marks.place("tenant:other")) == others


@pytest.mark.parametrize("how", ["not bought", "lost"])
async def test_resolving_a_purchase_changes_its_tenants_mark(
    open_ledger: Open, marks: Marks, how: str
) -> None:
    ledger = open_ledger()
    claim = await unknown(ledger)
    before = marks.read(marks.place("tenant:acme"))

    if how == "lost":
        assert await ledger.resolve_lost(claim.purchase, None, "gone")
    else:
        assert await ledger.resolve_not_bought(claim.purchase, "absent")

    assert marks.read(marks.place("tenant:acme")) != before


async def test_what_leaves_a_tenants_money_alone_leaves_its_mark_alone(
    open_ledger: Open, marks: Marks
) -> None:
    ledger = open_ledger()
    reserved, silent = await held(ledger), await held(ledger, "a dog")
    found = await unknown(ledger, "an emu")
    await ledger.resolve_bought(found.purchase, Ticket("T2"))
    before = marks.read(marks.place("tenant:acme"))

    await ledger.record_ticket(await ledger.send(reserved), Ticket("T1"))
    await ledger.mark_unknown(await ledger.send(silent), "silence")
    assert await ledger.adopt(found.purchase)
    await ledger.renew()
    await ledger.newest(request().fingerprint)
    await ledger.balances_of(caller(("100", Window.DAY)).holders)
    await ledger.reserve(caller(), request(), newest_known=None)

    assert marks.read(marks.place("tenant:acme")) == before


# --- Several processes, and a disk that refuses


def _spend_in_another_process(path: str, owner: str, start: int, outcome: multiprocessing.Queue[int]) -> None:
    async def spend() -> int:
        database = SqliteDatabase(Path(path))
        ledger = SqliteLedger(
            database, clock=MovableClock(), owner=owner, is_alive=lambda _: True, lease_seconds=15
        )

        async def attempt(number: int) -> int:
            try:
                await settled(ledger, await bought(ledger, f"animal {number}", ("16.64", Window.MONTH)))
            except BudgetExceeded:
                return 0
            return 1

        try:
            return sum(await asyncio.gather(*(attempt(number) for number in range(start, start + 60))))
        finally:
            database.close()

    outcome.put(asyncio.run(spend()))


def test_two_processes_together_spend_a_budget_to_the_micro_dollar_and_not_past_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    database = SqliteDatabase(path)
    SqliteLedger(database, clock=MovableClock(), owner="x", is_alive=lambda _: True, lease_seconds=15)
    context = multiprocessing.get_context("spawn")
    outcome: multiprocessing.Queue[int] = context.Queue()
    processes = [
        context.Process(target=_spend_in_another_process, args=(str(path), f"p{start}", start, outcome))
        for start in (0, 60)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert outcome.get() + outcome.get() == 40
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT SUM(cost_micros) FROM purchases").fetchone() == (16_640_000,)
    connection.close()
    database.close()


async def test_a_database_that_is_full_refuses_in_words_and_changes_nothing(
    tmp_path: Path, clock: MovableClock
) -> None:
    database = SqliteDatabase(tmp_path / "ledger.sqlite3")
    ledger = SqliteLedger(database, clock=clock, owner="one", is_alive=lambda _: True, lease_seconds=15)
    pages = await database.write(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await database.write(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 2}"))
    with pytest.raises(StorageUnavailable, match="full"):  # noqa: PT012 -- which one is refused does not matter
        for number in range(500):
            await held(ledger, f"animal {number}" + "x" * 500)
    before = await ledger.reserved()

    # All of them have to be over before there is room again: who shares a commit with one that is refused is refused.
    more = [held(ledger, f"more {number}" + "x" * 5000) for number in range(5)]
    refused = await asyncio.gather(*more, return_exceptions=True)

    assert {type(each) for each in refused} == {StorageUnavailable}

    assert await ledger.reserved() == before
    await database.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
    assert isinstance(await held(ledger, "after"), Held)
    database.close()


async def test_books_in_which_others_write_meanwhile_are_examined_as_they_were_at_one_moment(
    ledger: SqliteLedger,
) -> None:
    """Each purchase here is the first of its tenant, and so new in every table."""
    found: list[Discrepancy] = []
    done = asyncio.Event()

    async def examine() -> None:
        while not done.is_set():
            found.extend(await ledger.verify())

    async def buy() -> None:
        for number in range(200):
            who = caller(tenant=f"tenant-{number}")
            held = await ledger.reserve(who, request(f"cat {number}"), newest_known=None)
            assert isinstance(held, Held)
        done.set()

    await asyncio.gather(examine(), buy())

    assert found == []
