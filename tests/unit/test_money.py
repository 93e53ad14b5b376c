from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.money import Money


def test_a_thousand_dimes_are_a_hundred_dollars() -> None:
    assert sum([Money.reported(0.1)] * 1000, start=Money.ZERO) == Money.exactly(100)


def test_a_reported_cost_is_rounded_to_the_nearest_micro_dollar() -> None:
    assert Money.reported(0.40987834111111116) == Money(409_878)
    assert Money.reported("0.0000005") == Money(1)


def test_a_price_is_never_rounded_down() -> None:
    assert Money.at_least(Decimal("0.4160000001")) == Money(416_001)
    assert Money.at_least("0.416") == Money(416_000)


def test_a_limit_finer_than_a_micro_dollar_is_refused() -> None:
    with pytest.raises(ValueError, match="finer than a micro-dollar"):
        Money.exactly("0.0000001")


@pytest.mark.parametrize(
    "nonsense", ["nan", "inf", float("nan"), float("-inf"), "much", "", "1e13", "1e999999"]
)
def test_what_is_no_amount_is_refused(nonsense: float | str) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        Money.reported(nonsense)


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "$0.00"), (416_000, "$0.416"), (25_000_000, "$25.00"), (-5, "-$0.000005"), (-1_500_000, "-$1.50")],
)
def test_people_read_dollars_with_as_many_digits_as_there_are(micros: int, text: str) -> None:
    assert str(Money(micros)) == text


@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_dollars_lead_back_to_the_same_micro_dollars(micros: int) -> None:
    assert Money.exactly(Money(micros).usd) == Money(micros)
    if abs(micros) < 10**14:
        assert Money.reported(Money(micros).usd_number) == Money(micros)
