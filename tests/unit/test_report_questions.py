"""What a report is to be about: as people write it, with their mistakes told all at once."""

from __future__ import annotations

from datetime import date

import pytest

from gateway.accounting.asking import Asked, By, asked
from gateway.accounting.focus import focused
from gateway.domain.errors import QueryInvalid
from gateway.domain.window import Span

NOW = 1_795_392_000.0 + 43_200
"""2026-11-23 12:00 UTC."""


def test_without_a_word_it_is_this_month_up_to_today_in_utc() -> None:
    assert asked({}, NOW) == Asked(date(2026, 11, 1), date(2026, 11, 23), "UTC", (), None)


def test_today_is_todays_date_where_the_days_are() -> None:
    late = NOW + 10 * 3600
    assert asked({"zone": "Asia/Tokyo"}, late).last_day == date(2026, 11, 24)
    assert asked({"zone": "America/New_York"}, late).last_day == date(2026, 11, 23)


def test_everything_can_be_said() -> None:
    given = {
        "by": "team, day",
        "from": "2026-10-24",
        "to": "2026-10-26",
        "zone": "Europe/Berlin",
        "tenant": "film",
    }
    about = asked(given, NOW)

    assert (about.by, about.tenant) == ((By.TEAM, By.DAY), "film")
    assert about.days == [date(2026, 10, 24), date(2026, 10, 25), date(2026, 10, 26)]
    lengths = [(span.end or 0) - span.start for span in about.spans]
    assert lengths == [96, 100, 96]  # on the 25th clocks are put back
    assert about.spans[0].start == 1_792_792_800 // 900


def test_where_days_are_not_told_apart_there_is_one_span_of_all_of_them() -> None:
    about = asked({"by": "model", "from": "2026-01-01", "to": "2026-01-31"}, NOW)
    begins = 1_767_225_600 // 900
    assert about.spans == [Span(begins, begins + 31 * 96)]


@pytest.mark.parametrize(
    ("given", "fields", "said"),
    [
        ({"by": "taem"}, ["by"], "did you mean team"),
        ({"by": "team,team"}, ["by"], "twice"),
        ({"by": "colour"}, ["by"], "organisation, team, key, model, day"),
        ({"zone": "Europe/Berln"}, ["zone"], "did you mean Europe/Berlin"),
        ({"zone": "../../etc/passwd"}, ["zone"], "such as UTC"),
        ({"from": "01.11.2026"}, ["from"], "such as 2026-11-01"),
        ({"from": "2026-02-30"}, ["from"], "2026-02-30 is no day"),
        ({"to": "20261101"}, ["to"], "such as 2026-11-01"),
        ({"to": "9999-12-31"}, ["to"], "to 2999-12-31"),
        ({"from": "2026-11-24", "to": "2026-11-23"}, ["to"], "before the first day, 2026-11-24"),
        ({"from": "2000-01-01", "by": "day"}, ["by"], "at most 3700 days"),
        ({"by": "x", "zone": "y", "from": "z", "to": "w"}, ["by", "zone", "to", "from"], "z is no day"),
    ],
)
def test_each_mistake_is_told_with_its_field_its_value_and_what_would_be_right(
    given: dict[str, str], fields: list[str], said: str
) -> None:
    with pytest.raises(QueryInvalid) as refused:
        asked(given, NOW)

    assert [problem.field for problem in refused.value.problems] == fields
    assert said in str(refused.value)


def test_focus_tells_its_lines_apart_by_itself() -> None:
    assert focused(asked({}, NOW)).by == (By.DAY, By.TEAM, By.KEY, By.MODEL)
    with pytest.raises(QueryInvalid, match=r"by: .* zone: .*Europe/Berlin"):
        focused(asked({"by": "team", "zone": "Europe/Berlin"}, NOW))
