"""Estimates: not below the rule until there is evidence, and nearer to the bill than the rule once there is."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.estimate import A_FEW, ENOUGH, Settled, estimate, lately
from gateway.domain.money import Money

RULE = Money.exactly("0.4")
RULE_SECONDS = 100.0


def _settled(*micros: int) -> Sequence[Settled]:
    return [Settled(Money(cost), cost / 1000, 1_000_000.0 + number) for number, cost in enumerate(micros)]


def test_without_evidence_the_rule_is_all_there_is() -> None:
    told = estimate(RULE, RULE_SECONDS, [])

    assert (told.held, told.expected, told.rule) == (RULE, RULE, RULE)
    assert (told.seconds_p50, told.seconds_p95) == (RULE_SECONDS, RULE_SECONDS)
    assert (told.purchases, told.since, told.until) == (0, None, None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=ENOUGH - 1))
def test_until_there_is_enough_evidence_no_less_is_held_than_the_rule_says(costs: list[int]) -> None:
    told = estimate(RULE, RULE_SECONDS, _settled(*costs))

    assert told.held == max([RULE, *map(Money, costs)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=A_FEW, max_size=250))
def test_what_is_told_is_what_so_many_of_the_purchases_cost_at_most(costs: list[int]) -> None:
    told = estimate(RULE, RULE_SECONDS, _settled(*costs), enough=A_FEW)
    total = len(costs)

    def share_up_to(micros: float) -> int:
        return sum(cost <= micros for cost in costs) * 100

    def share_below(micros: float) -> int:
        return sum(cost < micros for cost in costs) * 100

    assert share_below(told.held.micros) < 97 * total <= share_up_to(told.held.micros)
    assert share_below(told.expected.micros) < 50 * total <= share_up_to(told.expected.micros)
    assert sorted(costs)[-(-total * 95 // 100) - 1] / 1000 == told.seconds_p95
    assert told.held.micros in costs
    assert told.seconds_p50 <= told.seconds_p95
    assert (told.purchases, told.since, told.until) == (total, 1_000_000.0, 999_999.0 + total)


def test_what_is_usual_is_told_from_five_on_and_what_is_held_may_fall_below_the_rule_from_twenty_on() -> None:
    cheap = RULE.micros // 2

    assert estimate(RULE, RULE_SECONDS, _settled(*[cheap] * 4)).expected == RULE
    assert estimate(RULE, RULE_SECONDS, _settled(*[cheap] * 4)).seconds_p50 == RULE_SECONDS
    assert estimate(RULE, RULE_SECONDS, _settled(*[cheap] * 5)).expected == Money(cheap)
    assert estimate(RULE, RULE_SECONDS, _settled(*[cheap] * 5)).seconds_p95 == cheap / 1000
    assert estimate(RULE, RULE_SECONDS, _settled(*[cheap] * 19)).held == RULE
    assert estimate(RULE, RULE_SECONDS, _settled(*[cheap] * 20)).held == Money(cheap)


def test_one_odd_bill_among_two_hundred_changes_nothing_and_what_always_costs_the_same_is_held_exactly() -> (
    None
):
    usual = [416_000] * 199

    assert estimate(RULE, RULE_SECONDS, _settled(*usual, 40_000_000)).held == Money(416_000)
    assert estimate(RULE, RULE_SECONDS, _settled(*usual)).held == Money(416_000)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_the_evidence_is_nothing(costs: list[int], chance: random.Random) -> None:
    evidence = list(_settled(*costs))
    told = estimate(RULE, RULE_SECONDS, evidence)
    chance.shuffle(evidence)

    assert estimate(RULE, RULE_SECONDS, evidence) == told


def test_what_it_cost_lately_is_told_from_five_on() -> None:
    assert lately(_settled(*[1] * 4)) is None
    told = lately(_settled(*range(1000, 1100)))
    assert told is not None
    assert (told.cost_p50, told.cost_p95) == (Money(1049), Money(1094))
    assert (told.seconds_p50, told.seconds_p95) == (1.049, 1.094)
    assert (told.purchases, told.since, told.until) == (100, 1_000_000.0, 1_000_099.0)


@dataclass
class Miss:
    """How far what was held was from the bill, in micro-dollars, over a history."""

    passed: int = 0
    """What the bills came to above what was held: by so much a budget may be passed."""

    apart: int = 0
    """Either way: what was held in vain keeps others from buying."""

    def add(self, held: Money, cost: Money) -> None:
        self.passed += max(0, (cost - held).micros)
        self.apart += abs((cost - held).micros)


def _metered(chance: random.Random, *, drift: float, noise: float) -> Iterator[tuple[str, Money, Money]]:
    """Shape, rule and bill of 2,000 purchases at an upstream that bills by the second of a graphics card.

    After 300 of them it is dearer or cheaper than the rule knows; one bill in a hundred is five times too high.
    """
    shapes = {"small": Money(100_000), "usual": Money(416_000), "large": Money(1_000_000)}
    for number in range(2000):
        shape = chance.choice(sorted(shapes))
        factor = math.exp(chance.gauss(0, noise)) * (drift if number >= 300 else 1)
        odd = 5 if chance.random() < 0.01 else 1
        yield shape, shapes[shape], Money(round(shapes[shape].micros * factor * odd))


@pytest.mark.parametrize("drift", [1.5, 0.5])
@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_over_a_history_with_noise_a_drift_and_odd_bills_the_estimate_is_nearer_than_the_rule(
    drift: float, noise: float
) -> None:
    learned, fixed = Miss(), Miss()
    for seed in range(2):
        history: dict[str, list[Settled]] = defaultdict(list)
        for shape, rule, cost in _metered(random.Random(seed), drift=drift, noise=noise):  # noqa: S311 -- no secret
            told = estimate(rule, RULE_SECONDS, history[shape][-200:])
            if len(history[shape]) < ENOUGH:
                assert told.held >= rule
            learned.add(told.held, cost)
            fixed.add(rule, cost)
            history[shape].append(Settled(cost, 1.0, 0.0))

    assert learned.passed < fixed.passed
    assert learned.apart < fixed.apart


def test_where_the_upstream_bills_by_the_rule_the_estimate_is_the_rule_and_nothing_is_ever_passed() -> None:
    evidence: list[Settled] = []
    for _ in range(300):
        told = estimate(RULE, RULE_SECONDS, evidence[-200:])
        assert (told.held, told.expected) == (RULE, RULE)
        evidence.append(Settled(RULE, 1.0, 0.0))
