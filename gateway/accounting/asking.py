"""What a report is to be about, as people write it: parsed once, with all mistakes at once."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from gateway.documents.spelling import remedy
from gateway.domain.errors import Problem, QueryInvalid
from gateway.domain.window import Span, midnight

_FIRST, _LAST = date(1970, 1, 1), date(2999, 12, 31)
_MOST_DAYS = 3700

PARAMETERS = ("by", "from", "to", "zone", "tenant")
"""What `asked` takes."""


class By(enum.Enum):
    """What the lines of a report can be told apart by."""

    ORGANISATION = "organisation"
    """The root of the tree of tenants."""

    TEAM = "team"
    """Any tenant, by its path: `acme/film`."""

    KEY = "key"
    """By its id."""

    MODEL = "model"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is about."""

    first_day: date
    last_day: date
    zone: str = "UTC"
    """Where days begin."""

    by: tuple[By, ...] = ()
    tenant: str | None = None
    """Whose: of it and of all below it, wherever they stood; None: everybody's."""

    @property
    def days(self) -> Sequence[date]:
        """Each of them, where the lines are told apart by days; otherwise the first, which stands for all."""
        if By.DAY not in self.by:
            return [self.first_day]
        count = (self.last_day - self.first_day).days + 1
        return [self.first_day + timedelta(days=number) for number in range(count)]

    @property
    def spans(self) -> Sequence[Span]:
        """As many as `days`: what is added up in one line."""
        zone, end = ZoneInfo(self.zone), midnight(self.last_day + timedelta(days=1), ZoneInfo(self.zone))
        begins = [midnight(day, zone) for day in self.days]
        return [Span(begin, until) for begin, until in zip(begins, [*begins[1:], end], strict=True)]


def asked(given: Mapping[str, str], now: float) -> Asked:
    """What was asked for with `by` (a list with commas), `from`, `to`, `zone` and `tenant`, any of which may be left out.

    Days are inclusive; left out, they are this month up to today. Raises QueryInvalid.
    """
    problems: list[Problem] = []
    by = [_by(name.strip(), problems) for name in given.get("by", "").split(",") if name.strip()]
    zone = _zone(given.get("zone", "UTC"), problems)
    last = _day("to", given.get("to"), problems) or datetime.fromtimestamp(now, ZoneInfo(zone)).date()
    first = _day("from", given.get("from"), problems) or last.replace(day=1)
    if last < first:
        problems.append(Problem("to", f"{last} is before the first day, {first}: write a later one"))
    known = [name for name in by if name is not None]
    if len({*known}) < len(known):
        problems.append(Problem("by", "names the same twice: name each once"))
    if By.DAY in known and (last - first).days >= _MOST_DAYS:
        problems.append(
            Problem("by", f"day is for at most {_MOST_DAYS} days: ask for fewer, or leave it out")
        )
    if problems:
        raise QueryInvalid(problems)
    return Asked(first, last, zone, tuple(known), given.get("tenant") or None)


def _by(name: str, problems: list[Problem]) -> By | None:
    names = [by.value for by in By]
    if name not in names:
        problems.append(
            Problem("by", f"{name[:100]} is nothing that lines are told apart by{remedy(name, names)}")
        )
        return None
    return By(name)


def _zone(name: str, problems: list[Problem]) -> str:
    if name in available_timezones():
        return name
    like = remedy(name, sorted(available_timezones()), otherwise=": write one such as UTC or Europe/Berlin")
    problems.append(Problem("zone", f"{name[:100]} is no time zone{like}"))
    return "UTC"


def _day(called: str, given: str | None, problems: list[Problem]) -> date | None:
    if given is None:
        return None
    try:
        day = date.fromisoformat(given) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", given) else None
    except ValueError:
        day = None
    if day is None or not _FIRST <= day <= _LAST:
        problems.append(
            Problem(called, f"{given[:100]} is no day from {_FIRST} to {_LAST}: write one such as 2026-11-01")
        )
        return None
    return day
