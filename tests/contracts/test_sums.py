"""The running totals against what they are totals of: over random trees, moves, models, late settlements and clocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.domain.window import Span
from gateway.ledger import sums

TENANTS = ("acme", "film", "cut", "zenith")
KEYS = ("k1", "k2")
"""Of every tenant: two tenants have keys of the same name here, and none of the other's money."""

MODELS = ("kling", "flux", "ltx")
START = 1_980_000
"""The quarter of an hour with which all begins; nothing is special about it."""

# As much of the journal as sums are about: what there was before them, and what they are examined against.
_PURCHASES = """
    CREATE TABLE purchases (
        serial INTEGER PRIMARY KEY, path TEXT, key_id TEXT, model TEXT, quarter INTEGER, state TEXT, held_micros INTEGER,
        cost_micros INTEGER, ended_at REAL
    )"""


def _books() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(_PURCHASES)
    connection.executescript(sums.SCHEMA)
    return connection


@dataclass
class Bought:
    """One purchase, as it ought to count."""

    serial: int
    path: str
    key_id: str
    model: str
    quarter: int
    held: int
    cost: int | None = None
    ended: bool = False

    def is_of(self, tenant: str, key_ids: Sequence[str], models: Collection[str] | None) -> bool:
        tenants = self.path.split("/")
        whose = tenants[-1] == tenant and self.key_id in key_ids if key_ids else tenant in tenants
        return whose and (models is None or self.model in models)


def _reserve(
    connection: sqlite3.Connection, path: str, key_id: str, model: str, at: int, micros: int
) -> Bought:
    serial = connection.execute(
        "INSERT INTO purchases (path, key_id, model, quarter, state, held_micros) VALUES (?, ?, ?, ?, 'queued', ?)",
        (path, key_id, model, at, micros),
    ).lastrowid
    assert serial is not None
    sums.hold(connection, sums.series_of(connection, path, key_id, model), at, micros)
    return Bought(serial, path, key_id, model, at, micros)


def _end(connection: sqlite3.Connection, bought: Bought, cost: int | None) -> None:
    """Settled at `cost`, or released."""
    connection.execute(
        "UPDATE purchases SET state = ?, cost_micros = ?, ended_at = 1.0 WHERE serial = ?",
        ("released" if cost is None else "settled", cost, bought.serial),
    )
    series = sums.series_of(connection, bought.path, bought.key_id, bought.model)
    sums.end(connection, series, bought.quarter, held_micros=bought.held, spent_micros=cost or 0)
    bought.cost, bought.ended = cost, True


def _counted(
    purchases: Sequence[Bought],
    tenant: str,
    key_ids: Sequence[str],
    models: Collection[str] | None,
    span: Span,
) -> tuple[int, int]:
    """What `within` ought to be: one purchase after the other."""
    inside = [
        each
        for each in purchases
        if each.is_of(tenant, key_ids, models)
        and span.start <= each.quarter
        and (span.end is None or each.quarter < span.end)
    ]
    return sum(each.cost or 0 for each in inside), sum(each.held for each in inside if not each.ended)


tenants = st.sampled_from(TENANTS)
some_keys = st.sampled_from([(), *((key,) for key in KEYS), KEYS])
holders = st.tuples(tenants, some_keys)
some_models = st.none() | st.frozensets(st.sampled_from((*MODELS, "unheard of")))
spans = st.builds(
    lambda start, length: Span(START + start, None if length is None else START + start + length),
    st.integers(-30, 400),
    st.none() | st.integers(-2, 500),
) | st.sampled_from((Span(), Span(0, 0)))
amounts = st.integers(0, 500_000)


class Books(RuleBasedStateMachine):
    """Four tenants that stand anywhere, their keys, and a clock that leaps."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = _books()
        self.parents: dict[str, str | None] = dict.fromkeys(TENANTS)
        self.purchases: list[Bought] = []
        self.now = START

    def teardown(self) -> None:
        try:
            self._check_that_they_can_be_made_from_the_purchases_alone()
        finally:
            self.connection.close()

    def _check_that_they_can_be_made_from_the_purchases_alone(self) -> None:
        with closing(_books()) as others:
            others.executemany(
                "INSERT INTO purchases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self.connection.execute("SELECT * FROM purchases").fetchall(),
            )
            others.executescript(sums.FROM_PURCHASES)
            assert list(sums.discrepancies(others)) == []
            for tenant in TENANTS:
                for key_ids in ((), *((key,) for key in KEYS), KEYS):
                    for models in (None, MODELS[:1], MODELS):
                        for span in (Span(), Span(START + 3), Span(START, START + 40)):
                            told = sums.within(others, tenant, key_ids, models, span)
                            assert told == _counted(self.purchases, tenant, key_ids, models, span)

    def _path(self, tenant: str) -> str:
        above = self.parents[tenant]
        return tenant if above is None else f"{self._path(above)}/{tenant}"

    @rule(tenant=tenants, key_id=st.sampled_from(KEYS), model=st.sampled_from(MODELS), micros=amounts)
    def reserve(self, tenant: str, key_id: str, model: str, micros: int) -> None:
        path = self._path(tenant)
        self.purchases.append(_reserve(self.connection, path, key_id, model, self.now, micros))

    @precondition(lambda self: any(not each.ended for each in self.purchases))
    @rule(data=st.data(), cost=st.none() | amounts)
    def end(self, data: st.DataObject, cost: int | None) -> None:
        """However long ago it was reserved, and wherever its tenant stands now."""
        _end(self.connection, data.draw(st.sampled_from([it for it in self.purchases if not it.ended])), cost)

    @rule(tenant=tenants, to=st.none() | tenants)
    def move(self, tenant: str, to: str | None) -> None:
        if to is None or tenant not in self._path(to).split("/"):
            self.parents[tenant] = to

    @rule(quarters=st.sampled_from((1, 1, 2, 7, 96, -1, -5)))
    def let_time_pass_or_put_the_clock_back(self, quarters: int) -> None:
        self.now += quarters

    @rule(holder=holders, models=some_models, span=spans)
    def look(self, holder: tuple[str, Sequence[str]], models: Collection[str] | None, span: Span) -> None:
        told = sums.within(self.connection, *holder, models, span)

        assert told == _counted(self.purchases, *holder, models, span)

    @rule(
        holder=holders, models=some_models, start=st.integers(0, 60), hours=st.integers(1, 48), micros=amounts
    )
    def ask_when_it_frees(
        self,
        holder: tuple[str, Sequence[str]],
        models: Collection[str] | None,
        start: int,
        hours: int,
        micros: int,
    ) -> None:
        span = Span(self.now - start)
        told = sums.frees_at(
            self.connection, *holder, models, span, shortfall_micros=micros + 1, rolling_seconds=hours * 3600
        )

        taken = sum(_counted(self.purchases, *holder, models, span))
        forgotten = {
            at: taken - sum(_counted(self.purchases, *holder, models, Span(max(span.start, at - hours * 4))))
            for at in ([] if told is None else [told - 1, told])
        }
        if told is None:
            assert taken < micros + 1
        else:
            assert forgotten[told - 1] < micros + 1 <= forgotten[told]

    @invariant()
    def what_is_spent_and_held_at_the_roots_is_all_there_is(self) -> None:
        total = sum(each.cost or 0 for each in self.purchases)
        by_key = [
            sums.within(self.connection, tenant, (key_id,), MODELS, Span())[0]
            for tenant in TENANTS
            for key_id in KEYS
        ]
        by_root = self.connection.execute(
            "SELECT SUM((SELECT MAX(spent_micros) FROM sums WHERE series = id)) FROM series "
            "WHERE tenant = path AND key_id = '' AND model = ''"
        ).fetchone()[0]

        assert sum(by_key) == (by_root or 0) == total

    @invariant()
    def the_examination_finds_nothing(self) -> None:
        assert list(sums.discrepancies(self.connection)) == []


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def books() -> Iterator[sqlite3.Connection]:
    with closing(_books()) as connection:
        yield connection


def test_a_team_that_is_moved_keeps_its_history_and_leaves_it_behind_too(books: sqlite3.Connection) -> None:
    before = _reserve(books, "acme/film", "k1", "kling", START, 300)
    _reserve(books, "zenith/film", "k1", "kling", START + 1, 50)
    _end(books, before, 310)

    def everything(tenant: str, *key_ids: str) -> tuple[int, int]:
        return sums.within(books, tenant, key_ids, None, Span())

    assert everything("film") == (310, 50)
    assert everything("film", "k1") == (310, 50)
    assert everything("acme") == (310, 0)
    assert everything("zenith") == (0, 50)


def test_money_counts_in_the_quarter_in_which_it_was_reserved_whenever_it_settles(
    books: sqlite3.Connection,
) -> None:
    first = _reserve(books, "film", "k1", "kling", START, 300)
    _reserve(books, "film", "k1", "kling", START + 3000, 7)
    _end(books, first, 280)

    assert sums.within(books, "film", (), None, Span(START, START + 1)) == (280, 0)
    assert sums.within(books, "film", (), None, Span(START + 1)) == (0, 7)
    assert sums.within(books, "film", (), {"kling"}, Span()) == (280, 7)
    assert sums.within(books, "film", (), {"flux"}, Span()) == (0, 0)


def test_a_span_that_holds_nothing_and_a_holder_that_bought_nothing_come_to_nothing(
    books: sqlite3.Connection,
) -> None:
    _reserve(books, "film", "k1", "kling", START, 300)

    assert sums.within(books, "film", (), None, Span(0, 0)) == (0, 0)
    assert sums.within(books, "nobody", (), None, Span()) == (0, 0)
    assert sums.within(books, "film", (), (), Span()) == (0, 0)


def test_a_series_is_made_once_and_found_ever_after(books: sqlite3.Connection) -> None:
    made = sums.series_of(books, "acme/film/cut", "k1", "kling")

    assert len(set(made)) == 8
    assert sorted(sums.series_of(books, "acme/film/cut", "k1", "kling")) == sorted(made)
    assert len({*made, *sums.series_of(books, "acme/film/cut", "k1", "flux")}) == 12


def test_a_rolling_budget_frees_when_enough_of_the_oldest_is_forgotten(books: sqlite3.Connection) -> None:
    for at in range(4):
        _reserve(books, "film", "k1", "kling", START + at, 100)

    def frees(micros: int, span: Span) -> int | None:
        return sums.frees_at(books, "film", (), None, span, shortfall_micros=micros, rolling_seconds=86_400)

    assert frees(1, Span(START - 50)) == START + 1 + 96
    assert frees(100, Span(START - 50)) == START + 1 + 96
    assert frees(101, Span(START - 50)) == START + 2 + 96
    assert frees(400, Span(START - 50)) == START + 4 + 96
    assert frees(401, Span(START - 50)) is None, "not even an empty window has room"
    assert frees(100, Span(START - 50, START + 97)) is None, "it is in force no longer then"
    assert sums.frees_at(
        books, "nobody", (), None, Span(START), shortfall_micros=1, rolling_seconds=3600
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "where", "problem"),
    [
        (
            f"UPDATE sums SET spent_micros = spent_micros + 1 WHERE series = 1 AND quarter >= {START + 5}",
            "sums of acme at acme",
            "2026-06-21 01:15 UTC are 1 micro-dollars spent and 7 held, and the purchases come to 0 and 7",
        ),
        (
            f"UPDATE sums SET held_micros = held_micros + 1 WHERE series = 6 AND quarter = {START}",
            "sums of film#k1 (model kling) at acme/film",
            "are 310 micro-dollars spent and 1 held, and the purchases come to 310 and 0",
        ),
        (
            f"DELETE FROM sums WHERE series = 4 AND quarter = {START + 5}",
            "sums of film (model kling) at acme/film",
            "are 0 micro-dollars spent and 0 held, and the purchases come to 0 and 7",
        ),
        (
            "DELETE FROM sums WHERE series = 5; DELETE FROM series WHERE id = 5",
            "sums of film#k1 at acme/film",
            "there are purchases, and no sums of them",
        ),
        (
            f"INSERT INTO series VALUES (99, 'zoo', '', '', 'zoo'); INSERT INTO sums VALUES (99, {START}, 5, 0)",
            "sums of zoo at zoo",
            "are 5 micro-dollars spent and 0 held, and the purchases come to 0 and 0",
        ),
        (
            "INSERT INTO series VALUES (99, 'zoo', '', '', 'acme/zebra')",
            "sums of zoo at acme/zebra",
            "the path is another tenant's",
        ),
        (
            "UPDATE purchases SET cost_micros = 300 WHERE cost_micros = 310",
            "sums of acme at acme",
            "are 310 micro-dollars spent and 0 held, and the purchases come to 300 and 0",
        ),
    ],
)  # fmt: skip
def test_whatever_is_wrong_in_the_books_is_found_and_named(
    books: sqlite3.Connection, fault: str, where: str, problem: str
) -> None:
    _end(books, _reserve(books, "acme/film", "k1", "kling", START, 300), 310)
    _reserve(books, "acme/film", "k1", "kling", START + 5, 7)
    assert list(sums.discrepancies(books)) == []

    books.executescript(fault)

    found = list(sums.discrepancies(books))
    assert found
    assert found[0].where == where
    assert found[0].problem.endswith(problem)


def test_no_question_and_no_booking_walks_through_all_that_there_is(books: sqlite3.Connection) -> None:
    asked: list[str] = []
    books.set_trace_callback(asked.append)
    _end(books, _reserve(books, "acme/film", "k1", "kling", START, 300), 310)
    for models in (None, ("kling", "flux")):
        for span in (Span(), Span(START), Span(START, START + 1)):
            sums.within(books, "acme", (), models, span)
            sums.frees_at(books, "acme", (), models, span, shortfall_micros=1, rolling_seconds=3600)
    books.set_trace_callback(None)

    steps = [step for query in asked for *_, step in books.execute(f"EXPLAIN QUERY PLAN {query}")]
    assert [step for step in steps if step.startswith("SEARCH")]
    walked = {
        step.removeprefix("SCAN ").removeprefix("TABLE ").split()[0] for step in steps if "SCAN" in step
    }
    assert walked.isdisjoint({"series", "sums", "upto", "before", "purchases"})
