"""Over which stretch of time a budget counts: calendar windows of any time zone, rolling ones, and all of time."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import ClassVar
from zoneinfo import ZoneInfo

SECONDS_PER_QUARTER = 900
"""The grain of all sums: in every time zone in use a date begins on a quarter of an hour of UTC."""

_HOUR, _DAY = 3600, 86_400
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


class Per(enum.Enum):
    """The kinds of windows."""

    REQUEST = "request"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"
    ROLLING = "rolling"
    TOTAL = "total"


_UNENDING = (Per.REQUEST, Per.ROLLING, Per.TOTAL)
"""Those that do not begin anew on some day."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in quarters of an hour since the epoch; `start` belongs to it, `end` does not."""

    start: int = 0
    end: int | None = None
    """None: no end is known."""

    @property
    def begins_at(self) -> datetime:
        """UTC."""
        return _moment(self.start)

    @property
    def ends_at(self) -> datetime | None:
        """UTC."""
        return None if self.end is None else _moment(self.end)

    def holds(self, moment: float) -> bool:
        """Whether `moment` (seconds since the epoch) lies in it."""
        return self.start <= quarter(moment) and (self.end is None or quarter(moment) < self.end)


@dataclass(frozen=True, slots=True)
class Window:
    """A kind of stretches of time, one of which holds each moment at which the window is in force."""

    per: Per
    zone: str = "UTC"
    """A name of the IANA's time zone database: where days begin."""

    week_starts: int = 0
    """As `date.weekday` counts: 0 is Monday."""

    rolling_seconds: int = 0
    """Whole hours, for ROLLING and nothing else."""

    first_day: date | None = None
    """In force from the beginning of this day, in `zone`; None: since ever."""

    last_day: date | None = None
    """In force to the end of this day; None: for ever."""

    REQUEST: ClassVar[Window]
    DAY: ClassVar[Window]
    WEEK: ClassVar[Window]
    MONTH: ClassVar[Window]
    QUARTER: ClassVar[Window]
    YEAR: ClassVar[Window]
    TOTAL: ClassVar[Window]

    def __post_init__(self) -> None:
        if (self.per is Per.ROLLING) != (self.rolling_seconds > 0) or self.rolling_seconds % _HOUR:
            raise ValueError("a rolling window has a length in whole hours, at least one; no other has one")
        if self.week_starts not in range(7):
            raise ValueError("a week starts on one of seven days, of which Monday is 0")
        if self.first_day is not None and self.last_day is not None and self.last_day < self.first_day:
            raise ValueError("its last day is before its first")

    @property
    def label(self) -> str:
        """What people call it: `day`, `total`, `rolling 30d`, `rolling 12h`."""
        if self.per is not Per.ROLLING:
            return str(self.per.value)
        days, rest = divmod(self.rolling_seconds, _DAY)
        return f"rolling {self.rolling_seconds // _HOUR}h" if rest else f"rolling {days}d"

    def span(self, now: float) -> Span | None:
        """What counts at `now`; None while the window is not in force.

        For REQUEST it holds nothing, so that a limit is one of each request. A rolling one reaches back as far as
        was promised, and less than a quarter of an hour further.
        """
        today, first, end = quarter(now), self._first(), self._end()
        if (first is not None and today < first) or (end is not None and today >= end):
            return None
        match self.per:
            case Per.REQUEST:
                return Span(0, 0)
            case Per.TOTAL:
                span = Span()
            case Per.ROLLING:
                span = Span(today - self.rolling_seconds // SECONDS_PER_QUARTER)
            case _:
                span = self._period(now)
        start = span.start if first is None else max(span.start, first)
        return Span(start, min((at for at in (span.end, end) if at is not None), default=None))

    def turns_at(self, now: float) -> float | None:
        """The next moment at which `span` is another one; None: never."""
        span, end = self.span(now), self._end()
        if span is None:
            turn = self._first() if end is None or quarter(now) < end else None
        elif self.per is Per.REQUEST:
            turn = end
        elif self.per is Per.ROLLING:
            turn = span.start + self.rolling_seconds // SECONDS_PER_QUARTER + 1
            turn = turn if end is None else min(turn, end)
        else:
            turn = span.end
        return None if turn is None else float(turn * SECONDS_PER_QUARTER)

    def resets_at(self, now: float) -> datetime | None:
        """When counting begins anew, or for the first time; None where it does not: REQUEST, ROLLING, TOTAL, the last one."""
        span, end = self.span(now), self._end()
        if span is None:
            turn = self.turns_at(now)
            return None if turn is None else datetime.fromtimestamp(turn, UTC)
        return None if self.per in _UNENDING or span.end == end else span.ends_at

    def _first(self) -> int | None:
        return None if self.first_day is None else midnight(self.first_day, ZoneInfo(self.zone))

    def _end(self) -> int | None:
        return None if self.last_day is None else midnight(_next_day(self.last_day), ZoneInfo(self.zone))

    def _period(self, now: float) -> Span:
        zone = ZoneInfo(self.zone)
        first = self._first_of(datetime.fromtimestamp(now, zone).date())
        following = self._following(first)
        if quarter(now) >= midnight(following, zone):
            # The clock was put back over midnight, and shows the day before once more: what has begun has begun.
            first, following = following, self._following(following)
        return Span(midnight(first, zone), midnight(following, zone))

    def _first_of(self, day: date) -> date:
        """The first day of the period that `day` is in."""
        match self.per:
            case Per.WEEK:
                return day - timedelta(days=(day.weekday() - self.week_starts) % 7)
            case Per.MONTH | Per.QUARTER | Per.YEAR:
                months = _MONTHS[self.per.value]
                return day.replace(month=(day.month - 1) // months * months + 1, day=1)
            case _:
                return day

    def _following(self, first: date) -> date:
        """The first day of the period after the one that begins with `first`."""
        match self.per:
            case Per.WEEK:
                return first + timedelta(days=7)
            case Per.MONTH | Per.QUARTER | Per.YEAR:
                # So many times 31 days end after the period, and before the next one does.
                return self._first_of(first + timedelta(days=31 * _MONTHS[self.per.value]))
            case _:
                return _next_day(first)


Window.REQUEST = Window(Per.REQUEST)
Window.DAY = Window(Per.DAY)
Window.WEEK = Window(Per.WEEK)
Window.MONTH = Window(Per.MONTH)
Window.QUARTER = Window(Per.QUARTER)
Window.YEAR = Window(Per.YEAR)
Window.TOTAL = Window(Per.TOTAL)


def quarter(moment: float) -> int:
    """The quarter of an hour that `moment` (seconds since the epoch) lies in."""
    return int(moment // SECONDS_PER_QUARTER)


@lru_cache(4096)
def midnight(day: date, zone: ZoneInfo) -> int:
    """The quarter with which `day` begins in `zone`.

    Where clocks skip midnight that is when they have skipped it, where they show it twice the first time; a date that
    was skipped altogether begins with the next.
    """
    at = min(
        quarter(datetime(day.year, day.month, day.day, tzinfo=zone, fold=fold).timestamp()) for fold in (0, 1)
    )
    while datetime.fromtimestamp(at * SECONDS_PER_QUARTER, zone).date() < day:
        at += 1
    return at


def _next_day(day: date) -> date:
    return day + timedelta(days=1)


def _moment(at: int) -> datetime:
    return datetime.fromtimestamp(at * SECONDS_PER_QUARTER, UTC)
