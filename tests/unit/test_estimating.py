"""The estimator reads what it has to, believes it for a while, and never holds less than it knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gateway.domain.errors import StorageUnavailable
from gateway.domain.estimate import ENOUGH, Settled
from gateway.domain.generation import GenerationRequest
from gateway.domain.identity import Fingerprint
from gateway.domain.money import Money
from gateway.generation.estimating import Estimator

RULE, BILLED = Money(400_000), Money(300_000)
ASKED = GenerationRequest("a-model", {"prompt": "x"}, Fingerprint("0" * 64), RULE, shape='{"width":256}')
ENOUGH_BILLS = [Settled(BILLED, 80.0, 1_000_000.0)] * ENOUGH


class Journal:
    """Keeps the contract Evidence, and notes what it was asked for."""

    def __init__(self, settled: Sequence[Settled] = ()) -> None:
        self.bills = list(settled)
        self.asked: list[tuple[str, str | None]] = []
        self.fails = False

    async def settled(self, model: str, shape: str | None, *, most: int) -> Sequence[Settled]:
        self.asked.append((model, shape))
        await asyncio.sleep(0)
        if self.fails:
            raise StorageUnavailable("locked")
        return self.bills[-most:]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def _estimator(journal: Journal, clock: Clock, *, learns: bool = True, is_ceiling: bool = False) -> Estimator:
    return Estimator(
        evidence=journal,
        expected_seconds_of=lambda _: 100.0,
        is_ceiling=lambda _: is_ceiling,
        clock=clock,
        learns=learns,
    )


async def test_a_thousand_requests_of_one_shape_at_once_and_after_each_other_read_the_journal_once() -> None:
    journal = Journal(ENOUGH_BILLS)
    estimator = _estimator(journal, Clock())

    held = await asyncio.gather(*(estimator.price_to_hold(ASKED) for _ in range(1000)))
    again = await estimator.estimate(ASKED)

    assert {*held} == {BILLED} == {again.held}
    assert journal.asked == [(ASKED.model, ASKED.shape)]


async def test_what_was_read_is_believed_for_ten_seconds_and_no_longer_nor_by_a_clock_that_went_back() -> (
    None
):
    journal, clock = Journal(), Clock()
    estimator = _estimator(journal, clock)
    assert await estimator.price_to_hold(ASKED) == RULE
    journal.bills = ENOUGH_BILLS
    clock.now += 9.9
    assert await estimator.price_to_hold(ASKED) == RULE
    clock.now += 0.2
    assert await estimator.price_to_hold(ASKED) == BILLED
    journal.bills = []
    clock.now -= 3600
    assert await estimator.price_to_hold(ASKED) == RULE


async def test_each_shape_model_and_rule_is_estimated_by_itself() -> None:
    journal = Journal(ENOUGH_BILLS)
    estimator = _estimator(journal, Clock())
    others = [replace(ASKED, shape="{}"), replace(ASKED, model="another")]

    for request in (ASKED, *others, ASKED, *others):
        await estimator.estimate(request)

    assert journal.asked == [(each.model, each.shape) for each in (ASKED, *others)]
    dearer = await estimator.estimate(replace(ASKED, price=RULE * 2))
    assert dearer.rule == RULE * 2


async def test_of_a_request_without_a_shape_nothing_is_known_but_the_rule() -> None:
    journal = Journal([Settled(BILLED, 1.0, 0.0)] * 200)

    told = await _estimator(journal, Clock()).estimate(replace(ASKED, shape=""))

    assert (told.held, told.expected, told.seconds_p50, told.purchases) == (RULE, RULE, 100.0, 0)
    assert journal.asked == []


@pytest.mark.parametrize("billed", [RULE * 2, Money(1)])
async def test_where_the_rule_is_held_nothing_is_read_for_it_and_what_is_expected_is_learned_all_the_same(
    billed: Money,
) -> None:
    journal = Journal([Settled(billed, 80.0, 0.0)] * 200)
    estimator = _estimator(journal, Clock(), learns=False)

    assert await estimator.price_to_hold(ASKED) == RULE
    assert journal.asked == []
    told = await estimator.estimate(ASKED)
    assert (told.held, told.expected, told.seconds_p95) == (RULE, billed, 80.0)


@pytest.mark.parametrize(("billed", "held"), [(Money(1), RULE), (RULE * 2, RULE * 2)])
async def test_a_ceiling_is_held_in_full_however_little_others_cost(billed: Money, held: Money) -> None:
    estimator = _estimator(Journal([Settled(billed, 80.0, 0.0)] * 200), Clock(), is_ceiling=True)

    told = await estimator.estimate(ASKED)

    assert (told.held, told.expected, told.seconds_p50) == (held, billed, 80.0)


async def test_a_journal_that_cannot_be_read_is_not_believed_to_be_empty() -> None:
    journal = Journal(ENOUGH_BILLS)
    estimator = _estimator(journal, Clock())
    journal.fails = True

    with pytest.raises(StorageUnavailable):
        await estimator.price_to_hold(ASKED)

    journal.fails = False
    assert await estimator.price_to_hold(ASKED) == BILLED


async def test_whoever_is_sent_away_while_it_reads_keeps_nobody_else_from_reading() -> None:
    journal = Journal(ENOUGH_BILLS)
    estimator = _estimator(journal, Clock())
    leaver = asyncio.create_task(estimator.price_to_hold(ASKED))
    stayer = asyncio.create_task(estimator.price_to_hold(ASKED))
    await asyncio.sleep(0)
    leaver.cancel()

    assert await stayer == BILLED


async def test_no_more_than_ten_thousand_shapes_are_remembered() -> None:
    journal = Journal()
    estimator = _estimator(journal, Clock())
    for number in range(10_001):
        await estimator.estimate(replace(ASKED, shape=str(number)))
    journal.asked.clear()

    await estimator.estimate(replace(ASKED, shape="10000"))
    assert journal.asked == []
    await estimator.estimate(replace(ASKED, shape="0"))
    assert journal.asked == [(ASKED.model, "0")]
