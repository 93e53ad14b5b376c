"""What is left of a budget, and when it runs out: whole micro-dollars and whole seconds, and no promise beyond a reset."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.balance import Balance, pace_seconds, remaining
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Holder, TopUp
from gateway.domain.window import Per, Span, Window

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
HOUR, DAY = 3600, 86_400


FILM = Holder("film", "", ())


def _rolling(hours: int) -> Window:
    return Window(Per.ROLLING, rolling_seconds=hours * HOUR)


def _balance(
    window: Window, *, limit: str = "100", spent: str = "0", reserved: str = "0", recent: str | None = "10"
) -> Balance:
    span = window.span(NOW)
    assert span is not None
    return Balance(
        Budget(Money.exactly(limit), window),
        Money.exactly(spent),
        Money.exactly(reserved),
        FILM,
        span=span,
        recent=None if recent is None else Money.exactly(recent),
    )


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("window", "seconds"),
    [
        (Window.DAY, 6 * HOUR),
        (_rolling(1), 6 * HOUR),
        (_rolling(24), 6 * HOUR),
        (_rolling(25), DAY),
        (Window.WEEK, DAY),
        (Window.MONTH, DAY),
        (Window.QUARTER, DAY),
        (Window.YEAR, DAY),
        (Window.TOTAL, DAY),
    ],
)
def test_the_pace_is_that_of_six_hours_where_a_day_counts_and_of_a_day_where_more_does(
    window: Window, seconds: int
) -> None:
    assert pace_seconds(window) == seconds


def test_a_month_at_ten_dollars_a_day_with_fifty_left_runs_out_in_five_days() -> None:
    month = _balance(Window.MONTH, spent="45", reserved="5")

    assert month.remaining == Money.exactly("50")
    assert month.runs_out_at(NOW) == _at("2026-11-28T12:00:00")


def test_a_day_at_ten_dollars_in_six_hours_with_fifteen_left_runs_out_in_nine_hours() -> None:
    assert _balance(Window.DAY, limit="20", spent="5").runs_out_at(NOW) == _at("2026-11-23T21:00:00")


def test_what_runs_out_only_after_it_is_reset_does_not_run_out() -> None:
    window = Window.DAY  # twelve hours are left of it: twenty dollars at this pace

    assert _balance(window, limit="19.999").runs_out_at(NOW) == _at("2026-11-23T23:59:57")
    assert _balance(window, limit="20").runs_out_at(NOW) is None


@pytest.mark.parametrize("spent", ["100", "100.000001", "250"])
def test_what_has_nothing_left_has_run_out_now(spent: str) -> None:
    for window in (Window.MONTH, Window.TOTAL, _rolling(720)):
        for recent in ("10", "0", None):
            assert _balance(window, spent=spent, recent=recent).runs_out_at(NOW + 0.7) == _at(
                "2026-11-23T12:00:00"
            )


def test_where_nothing_was_bought_of_late_or_nobody_asked_nothing_runs_out() -> None:
    assert _balance(Window.TOTAL, recent="0").runs_out_at(NOW) is None
    assert _balance(Window.TOTAL, recent=None).runs_out_at(NOW) is None


def test_a_rolling_window_that_forgets_as_fast_as_it_is_filled_does_not_run_out() -> None:
    # A hundred dollars in ten days are ten a day: so much falls out again.
    assert _balance(_rolling(240), spent="60", recent="10").runs_out_at(NOW) is None
    assert _balance(_rolling(240), spent="60", recent="10.000001").runs_out_at(NOW) == _at(
        "2026-11-27T11:59:59"
    )


def test_what_lasts_for_centuries_is_out_of_sight() -> None:
    assert _balance(Window.TOTAL, limit="1000000000", recent="0.000001").runs_out_at(NOW) is None
    assert _balance(Window.TOTAL, limit="300000", recent="10").runs_out_at(NOW) == _at("2109-01-12T12:00:00")


def test_a_top_up_counts_in_the_window_in_which_it_was_made_and_in_no_other() -> None:
    inside, before = TopUp(Money.exactly("5"), NOW, "a storm"), TopUp(Money.exactly("7"), NOW - 40 * DAY, "")
    budget = Budget(Money.exactly("20"), Window.MONTH, top_ups=(inside, before))
    this, last = Window.MONTH.span(NOW), Window.MONTH.span(NOW - 40 * DAY)
    assert this is not None
    assert last is not None

    assert budget.limit_in(this) == Money.exactly("25")
    assert budget.limit_in(last) == Money.exactly("27")
    assert Balance(budget, Money.exactly("22"), Money.ZERO, FILM, span=this).remaining == Money.exactly("3")


def test_a_top_up_of_a_campaign_counts_as_long_as_it_lasts() -> None:
    campaign = Window(Per.TOTAL, first_day=date(2026, 11, 1), last_day=date(2026, 11, 30))
    span = campaign.span(NOW)
    assert span is not None
    budget = Budget(Money.exactly("20"), campaign, top_ups=(TopUp(Money.exactly("5"), NOW - 10 * DAY, ""),))

    assert budget.limit_in(span) == Money.exactly("25")


def test_the_tightest_budget_says_what_is_left_and_what_one_request_may_cost_does_not() -> None:
    one = _balance(Window.REQUEST, limit="2")
    day, month = _balance(Window.DAY, spent="90"), _balance(Window.MONTH, spent="80")

    assert remaining([], [one, month, day]) == Money.exactly("10")
    assert remaining([], [one]) is None
    assert remaining([], []) is None


def test_budgets_and_holders_are_called_what_people_call_them() -> None:
    video = Budget(Money.ZERO, Window.MONTH, name="video", models=frozenset({"kling"}))

    assert (Budget(Money.ZERO, Window.MONTH).label, video.label) == ("month", "video")
    assert (video.covers("kling"), video.covers("flux")) == (True, False)
    assert Budget(Money.ZERO, Window.MONTH).covers("flux")
    assert (Holder("film", "", ()).name, Holder("film", "1f2e3d", ()).name) == ("film", "film#1f2e3d")


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(0, 10**9),
    spent=st.integers(0, 10**9),
    recent=st.integers(0, 10**9),
    hours=st.integers(1, 24 * 60),
    end=st.none() | st.integers(1, 40_000),
)
def test_at_the_time_that_is_told_the_rest_is_gone_and_a_second_before_it_is_not(
    limit: int, spent: int, recent: int, hours: int, end: int | None
) -> None:
    start = int(NOW) // 900
    span = Span(start, None if end is None else start + end)
    window = Window.TOTAL if end is not None else _rolling(hours)
    balance = Balance(
        Budget(Money(limit), window), Money(spent), Money.ZERO, FILM, span=span, recent=Money(recent)
    )
    told = balance.runs_out_at(NOW)
    pace = pace_seconds(window)

    if told is None:
        assert limit > spent
        lasts = (limit - spent) * pace // recent if recent else None
        forgets = window.per is Per.ROLLING and recent * hours * HOUR <= limit * pace
        assert (
            lasts is None or forgets or lasts > 36_600 * DAY - 1 or (end is not None and lasts >= end * 900)
        )
    elif limit <= spent:
        assert told.timestamp() == NOW
    else:
        seconds = int(told.timestamp() - NOW)
        # Micro-dollars times seconds: whole numbers, nothing is rounded.
        assert recent * seconds <= (limit - spent) * pace < recent * (seconds + 1)
        assert end is None or seconds < end * 900
