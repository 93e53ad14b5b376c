"""Windows: each moment in exactly one of a kind, in every time zone, whatever its clocks do at midnight."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.domain.window import SECONDS_PER_QUARTER, Per, Span, Window, midnight, quarter

_HOUR, _DAY = 3600, 86_400

ZONES = sorted(zoneinfo.available_timezones())
CALENDAR = (Per.DAY, Per.WEEK, Per.MONTH, Per.QUARTER, Per.YEAR)

zones = st.sampled_from(ZONES)
moments = st.floats(
    datetime(2020, 1, 1, tzinfo=UTC).timestamp(),
    datetime(2038, 1, 1, tzinfo=UTC).timestamp(),
    allow_nan=False,
)
weekdays = st.integers(0, 6)
calendar_windows = st.builds(Window, st.sampled_from(CALENDAR), zones, weekdays)
rolling_windows = st.builds(
    lambda zone, hours: Window(Per.ROLLING, zone, rolling_seconds=hours * _HOUR), zones, st.integers(1, 9000)
)
windows = st.one_of(
    calendar_windows,
    rolling_windows,
    st.builds(Window, st.sampled_from((Per.TOTAL, Per.REQUEST)), zones),
)


@st.composite
def dated_windows(draw: st.DrawFn) -> Window:
    window = draw(windows)
    first = draw(st.none() | st.dates(date(2020, 1, 1), date(2037, 12, 31)))
    days = draw(st.none() | st.integers(0, 800))
    last = None if days is None else (first or date(2025, 6, 1)) + timedelta(days=days)
    return replace(window, first_day=first, last_day=last)


@st.composite
def dated_windows_and_moments(draw: st.DrawFn) -> tuple[Window, float]:
    """A moment that is often near one of the window's own dates."""
    window, moment = draw(dated_windows()), draw(moments)
    which, days = draw(st.integers(0, 2)), draw(st.sampled_from((-400, -40, -2, -1, 0, 1, 2, 40, 400)))
    day = (None, window.first_day, window.last_day)[which]
    return window, moment if day is None else _utc(day.isoformat()) + days * _DAY


def _utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _seen(at: int, zone: str) -> date:
    return datetime.fromtimestamp(at * SECONDS_PER_QUARTER, zoneinfo.ZoneInfo(zone)).date()


def _date_in_force(at: int, zone: str) -> date:
    """The latest date that clocks have shown up to the end of that quarter, by looking at each of three days."""
    return max(_seen(earlier, zone) for earlier in range(at - 288, at + 1))


def _period_of(per: Per, day: date, week_starts: int) -> object:
    """Something that is equal for two days exactly when they are in the same period."""
    of: dict[Per, Callable[[], object]] = {
        Per.DAY: lambda: day,
        Per.WEEK: lambda: (day.toordinal() - 1 - week_starts) // 7,
        Per.MONTH: lambda: (day.year, day.month),
        Per.QUARTER: lambda: (day.year, (day.month + 2) // 3),
        Per.YEAR: lambda: day.year,
    }
    return of[per]()


@settings(max_examples=120, deadline=None)
@given(window=calendar_windows, now=moments)
def test_a_period_begins_and_ends_when_clocks_first_show_its_first_day_and_the_next_ones(
    window: Window, now: float
) -> None:
    span = window.span(now)

    assert span is not None
    assert span.end is not None
    assert span.holds(now)
    assert span.start <= quarter(now) < span.end

    def period(at: int) -> object:
        return _period_of(window.per, _date_in_force(at, window.zone), window.week_starts)

    assert period(span.start) == period(quarter(now)) == period(span.end - 1)
    assert period(span.start - 1) != period(span.start)
    assert period(span.end) != period(span.start)


@settings(max_examples=200, deadline=None)
@given(window=calendar_windows, now=moments)
def test_windows_of_one_kind_tile_time(window: Window, now: float) -> None:
    span = window.span(now)
    assert span is not None
    assert span.end is not None

    before = window.span(span.start * SECONDS_PER_QUARTER - 1)
    after = window.span(span.end * SECONDS_PER_QUARTER)

    assert before is not None
    assert after is not None
    assert before.end == span.start
    assert after.start == span.end
    resets_at = window.resets_at(now)
    assert resets_at == span.ends_at
    assert resets_at is not None
    assert resets_at.timestamp() == window.turns_at(now) == span.end * SECONDS_PER_QUARTER


@settings(max_examples=40, deadline=None)
@given(zone=zones, year=st.integers(2020, 2037))
def test_every_day_of_a_year_begins_after_the_one_before_whatever_the_zone(zone: str, year: int) -> None:
    info = zoneinfo.ZoneInfo(zone)
    days = [date(year, 1, 1) + timedelta(days=number) for number in range(366)]
    begins = [midnight(day, info) for day in days]

    for earlier, later in pairwise(begins):
        # Twenty-four hours, and what clocks are put forward or back in between: at most an hour, Troll's two.
        assert 22 * 4 <= later - earlier <= 26 * 4
    for day, at in zip(days, begins, strict=True):
        assert _seen(at, zone) >= day > _seen(at - 1, zone)


@settings(max_examples=300, deadline=None)
@given(at=dated_windows_and_moments(), share=st.floats(0, 1))
def test_a_window_turns_at_the_first_moment_at_which_another_span_counts(
    at: tuple[Window, float], share: float
) -> None:
    window, now = at
    turn = window.turns_at(now)
    span = window.span(now)

    if turn is None:
        assert window.span(now + share * 50 * 365 * _DAY) == span
        return
    assert turn > now
    assert window.span(turn) != span
    assert window.span(turn - 0.001) == span
    assert window.span(min(now + share * (turn - now), turn - 0.001)) == span


@settings(max_examples=300, deadline=None)
@given(at=dated_windows_and_moments())
def test_dates_cut_a_window_and_out_of_them_it_is_not_in_force(at: tuple[Window, float]) -> None:
    window, now = at
    span, info = window.span(now), zoneinfo.ZoneInfo(window.zone)
    first = None if window.first_day is None else midnight(window.first_day, info)
    end = None if window.last_day is None else midnight(window.last_day + timedelta(days=1), info)
    assume(first is None or end is None or first < end)

    if first is not None and quarter(now) < first:
        assert span is None
        assert window.resets_at(now) == Span(first).begins_at
    elif end is not None and quarter(now) >= end:
        assert span is None
        assert window.resets_at(now) is None
        assert window.turns_at(now) is None
    elif window.per is Per.REQUEST:
        assert span == Span(0, 0)
    else:
        whole = replace(window, first_day=None, last_day=None).span(now)
        assert span is not None
        assert whole is not None
        assert span.holds(now)
        assert span.start == max(whole.start, first or whole.start)
        ends = [each for each in (whole.end, end) if each is not None]
        assert span.end == min(ends, default=None)
        if end is not None and span.end == end:
            assert window.resets_at(now) is None, "nothing begins anew after the last day"


@settings(max_examples=200, deadline=None)
@given(window=rolling_windows, now=moments)
def test_a_rolling_window_reaches_back_its_length_and_less_than_a_quarter_further(
    window: Window, now: float
) -> None:
    span = window.span(now)

    assert span is not None
    assert span.end is None
    reach = now - span.start * SECONDS_PER_QUARTER
    assert window.rolling_seconds <= reach < window.rolling_seconds + SECONDS_PER_QUARTER
    assert window.turns_at(now) == (quarter(now) + 1) * SECONDS_PER_QUARTER
    assert window.resets_at(now) is None


@pytest.mark.parametrize("window", [Window.TOTAL, Window.REQUEST])
def test_what_has_no_end_neither_turns_nor_resets(window: Window) -> None:
    assert window.turns_at(1e9) is None
    assert window.resets_at(1e9) is None
    assert window.span(1e9) == window.span(2e9)


def test_all_of_time_holds_every_moment_and_a_single_request_none() -> None:
    total, request = Window.TOTAL.span(1e9), Window.REQUEST.span(1e9)

    assert total is not None
    assert total.holds(0)
    assert total.holds(4e9)
    assert request is not None
    assert not request.holds(0)
    assert not request.holds(1e9)


@pytest.mark.parametrize(
    ("window", "now", "begins", "ends"),
    [
        # What is there today: calendar windows in UTC.
        (Window.DAY, "2026-11-23T20:15:00", "2026-11-23T00:00", "2026-11-24T00:00"),
        (Window.MONTH, "2026-01-31T23:59:59.9", "2026-01-01T00:00", "2026-02-01T00:00"),
        (Window.MONTH, "2028-02-29T12:00:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        (Window.MONTH, "2026-12-31T12:00:00", "2026-12-01T00:00", "2027-01-01T00:00"),
        (Window.QUARTER, "2026-05-15T00:00:00", "2026-04-01T00:00", "2026-07-01T00:00"),
        (Window.QUARTER, "2026-12-31T23:59:59", "2026-10-01T00:00", "2027-01-01T00:00"),
        (Window.YEAR, "2028-12-31T23:59:59", "2028-01-01T00:00", "2029-01-01T00:00"),
        (Window.WEEK, "2026-11-22T23:59:59", "2026-11-16T00:00", "2026-11-23T00:00"),
        (Window(Per.WEEK, week_starts=6), "2026-11-22T00:00:00", "2026-11-22T00:00", "2026-11-29T00:00"),
        (Window(Per.WEEK, week_starts=6), "2026-11-21T23:59:59", "2026-11-15T00:00", "2026-11-22T00:00"),
        # Zones off the hour: Nepal is 5:45 ahead, Lord Howe changes its clocks by half an hour.
        (Window(Per.DAY, "Asia/Kathmandu"), "2026-11-23T18:14:59", "2026-11-22T18:15", "2026-11-23T18:15"),
        (Window(Per.DAY, "Asia/Kathmandu"), "2026-11-23T18:15:00", "2026-11-23T18:15", "2026-11-24T18:15"),
        (Window(Per.DAY, "Australia/Lord_Howe"), "2026-10-04T00:00:00", "2026-10-03T13:30", "2026-10-04T13:00"),
        (Window(Per.DAY, "Australia/Lord_Howe"), "2026-04-05T00:00:00", "2026-04-04T13:00", "2026-04-05T13:30"),
        # A day of 23 hours, one of 25, and the month that holds one.
        (Window(Per.DAY, "Europe/Berlin"), "2026-03-29T12:00:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        (Window(Per.DAY, "Europe/Berlin"), "2026-10-25T12:00:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        (Window(Per.MONTH, "Europe/Berlin"), "2026-10-31T22:59:59", "2026-09-30T22:00", "2026-10-31T23:00"),
        # Clocks that skip midnight: the day begins at one.
        (Window(Per.DAY, "America/Havana"), "2026-03-08T12:00:00", "2026-03-08T05:00", "2026-03-09T04:00"),
        (Window(Per.DAY, "America/Santiago"), "2026-09-06T12:00:00", "2026-09-06T04:00", "2026-09-07T03:00"),
        (Window(Per.DAY, "Africa/Cairo"), "2026-04-24T12:00:00", "2026-04-23T22:00", "2026-04-24T21:00"),
        # Clocks that show it twice: the day begins the first time.
        (Window(Per.DAY, "America/Havana"), "2026-11-01T05:30:00", "2026-11-01T04:00", "2026-11-02T05:00"),
        (Window(Per.DAY, "America/Havana"), "2026-11-01T04:30:00", "2026-11-01T04:00", "2026-11-02T05:00"),
        # Clocks put back at midnight to the day before.
        (Window(Per.DAY, "America/Santiago"), "2026-04-05T03:30:00", "2026-04-04T03:00", "2026-04-05T04:00"),
        (Window(Per.DAY, "Africa/Cairo"), "2026-10-29T21:30:00", "2026-10-28T21:00", "2026-10-29T22:00"),
        # Put back a minute after midnight, as Newfoundland did: the day that had begun has begun.
        (Window(Per.DAY, "America/St_Johns"), "2010-11-07T02:45:00", "2010-11-07T02:30", "2010-11-08T03:30"),
        (Window(Per.MONTH, "America/St_Johns"), "2010-11-07T02:45:00", "2010-11-01T02:30", "2010-12-01T03:30"),
        # Samoa had no 30th of December in 2011.
        (Window(Per.DAY, "Pacific/Apia"), "2011-12-30T09:59:59", "2011-12-29T10:00", "2011-12-30T10:00"),
        (Window(Per.DAY, "Pacific/Apia"), "2011-12-30T10:00:00", "2011-12-30T10:00", "2011-12-31T10:00"),
        (Window(Per.YEAR, "Pacific/Apia"), "2011-12-30T10:00:00", "2011-01-01T10:00", "2011-12-31T10:00"),
    ],
)  # fmt: skip
def test_windows_are_where_the_calendar_on_the_wall_has_them(
    window: Window, now: str, begins: str, ends: str
) -> None:
    span = window.span(_utc(now))

    assert span is not None
    assert span.begins_at == datetime.fromisoformat(begins).replace(tzinfo=UTC)
    assert span.ends_at == datetime.fromisoformat(ends).replace(tzinfo=UTC)


def test_a_campaign_counts_from_its_first_day_to_the_end_of_its_last() -> None:
    december = Window(Per.TOTAL, "Europe/Berlin", first_day=date(2026, 12, 1), last_day=date(2026, 12, 31))
    begins, ends = datetime(2026, 11, 30, 23, tzinfo=UTC), datetime(2026, 12, 31, 23, tzinfo=UTC)

    assert december.span(begins.timestamp() - 1) is None
    assert december.resets_at(begins.timestamp() - 1) == begins
    span = december.span(begins.timestamp())
    assert span is not None
    assert (span.begins_at, span.ends_at) == (begins, ends)
    assert december.span(ends.timestamp() - 1) == span
    assert december.turns_at(begins.timestamp()) == ends.timestamp()
    assert december.resets_at(begins.timestamp()) is None
    assert december.span(ends.timestamp()) is None


def test_windows_are_called_what_people_call_them() -> None:
    def rolling(hours: int) -> Window:
        return Window(Per.ROLLING, rolling_seconds=hours * _HOUR)

    named = [Window.REQUEST, Window.DAY, Window.WEEK, Window.MONTH, Window.QUARTER, Window.YEAR, Window.TOTAL]

    assert [window.label for window in named] == [
        "request", "day", "week", "month", "quarter", "year", "total",
    ]  # fmt: skip
    assert [rolling(hours).label for hours in (1, 12, 24, 36, 720)] == [
        "rolling 1h", "rolling 12h", "rolling 1d", "rolling 36h", "rolling 30d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Window(Per.ROLLING),
        lambda: Window(Per.ROLLING, rolling_seconds=-3600),
        lambda: Window(Per.ROLLING, rolling_seconds=5400),
        lambda: Window(Per.DAY, rolling_seconds=3600),
        lambda: Window(Per.WEEK, week_starts=7),
        lambda: Window(Per.DAY, first_day=date(2026, 2, 1), last_day=date(2026, 1, 31)),
    ],
)
def test_a_window_that_nobody_can_mean_is_refused(wrong: Callable[[], Window]) -> None:
    with pytest.raises(ValueError, match=r"rolling|week|last day"):
        wrong()
