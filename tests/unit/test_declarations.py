"""What can be said of tenants, read from files and told again: where, what is wrong, and what would be right."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from gateway.documents.yaml_files import DocumentInvalid
from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, KeyTerms, Rate, Role
from gateway.domain.window import Per, Window
from gateway.tenants.contract import Declared, DeclaredKey
from gateway.tenants.declarations import (
    changes,
    declared_from_json,
    declared_to_json,
    terms_from_json,
    terms_to_json,
    tree,
)
from gateway.tenants.yaml_files import load_tenants

MODELS = ("flux-schnell", "kling-2.6", "ltx-2-19b-t2v")

EVERYTHING = """\
zone: Europe/Berlin
week_starts: sunday
groups: {video: [kling-2.6, ltx-2-19b-t2v]}
tenants:
  acme:
    budgets: [{limit_usd: 5000, per: year}, {limit_usd: 8, per: week}]
    max_usd_per_request: 2.5
    cache: private
  film:
    parent: acme
    models: [video, flux-schnell]
    budgets:
      - {limit_usd: 20, per: day}
      - {limit_usd: 10, per: day, models: [video]}
      - {limit_usd: 30, per: day}
      - {limit_usd: "300.000001", rolling: 4w, alert_at: [100, 80]}
      - {limit_usd: 6, per: week, week_starts: monday, zone: America/New_York}
      - {limit_usd: 1, per: total, first_day: "2026-12-01", last_day: "2026-12-31", name: campaign}
  interns:
    parent: film
    keys:
      - hash: "sha256:5555555555555555555555555555555555555555555555555555555555555555"
        name: nightly
        models: [video]
        budgets: [{limit_usd: 5, per: day}]
        rate: {requests: 60, per: minute}
        expires_at: "2030-01-01T00:00:00Z"
      - {hash: "sha256:6666666666666666666666666666666666666666666666666666666666666666", role: reader}
"""


def load(tmp_path: Path, text: str) -> dict[str, Declared]:
    file = tmp_path / "tenants.yaml"
    file.write_text(text)
    return {each.name: each for each in load_tenants(file, models=MODELS)}


def test_everything_that_can_be_said_of_a_tenant_means_what_it_says(tmp_path: Path) -> None:
    said = load(tmp_path, EVERYTHING)

    berlin, video = "Europe/Berlin", frozenset({"kling-2.6", "ltx-2-19b-t2v"})
    assert said["acme"].limits == (
        Budget(Money.exactly(5000), Window(Per.YEAR, zone=berlin)),
        Budget(Money.exactly(8), Window(Per.WEEK, zone=berlin, week_starts=6)),
        Budget(Money.exactly("2.5"), Window.REQUEST),
    )
    assert said["film"].budgets == (
        Budget(Money.exactly(20), Window(Per.DAY, zone=berlin)),
        Budget(Money.exactly(10), Window(Per.DAY, zone=berlin), name="day video", models=video),
        Budget(Money.exactly(30), Window(Per.DAY, zone=berlin), name="day 2"),
        Budget(Money.exactly("300.000001"), Window(Per.ROLLING, rolling_seconds=28 * 86_400), alert_at=(80, 100)),
        Budget(Money.exactly(6), Window(Per.WEEK, zone="America/New_York")),
        Budget(
            Money.exactly(1),
            Window(Per.TOTAL, zone=berlin, first_day=date(2026, 12, 1), last_day=date(2026, 12, 31)),
            name="campaign",
        ),
    )  # fmt: skip
    tenants = tree(said.values(), {})
    assert tenants["interns"].path == "acme/film/interns"
    assert tenants["interns"].cache_scope == "acme"
    assert said["interns"].keys == (
        DeclaredKey(
            f"sha256:{'5' * 64}",
            "nightly",
            KeyTerms(
                models=video,
                budgets=(Budget(Money.exactly(5), Window(Per.DAY, zone=berlin)),),
                rate=Rate(60, 60, 60),
                expires_at=datetime(2030, 1, 1, tzinfo=UTC).timestamp(),
            ),
        ),
        DeclaredKey(f"sha256:{'6' * 64}", terms=KeyTerms(role=Role.READER)),
    )
    assert [model for model in MODELS if tenants["interns"].may_use(model)] == [*MODELS]


def test_a_file_of_before_means_what_it_meant(tmp_path: Path) -> None:
    said = load(
        tmp_path,
        "tenants:\n  demo:\n    budgets: [{limit_usd: 25, per: month}, {limit_usd: 1, per: total}]\n"
        "    models: [flux-schnell]\n    cache: private\n  free: {budgets: []}\n",
    )

    (demo, free) = tree(said.values(), {}).values()
    assert demo.budgets == (
        Budget(Money.exactly(25), Window.MONTH),
        Budget(Money.exactly(1), Window.TOTAL),
    )
    assert (demo.models, demo.private_cache, demo.parent) == (frozenset({"flux-schnell"}), True, None)
    assert free.budgets == ()


def test_what_is_said_is_the_same_after_it_was_told_as_json(tmp_path: Path) -> None:
    for name, declared in load(tmp_path, EVERYTHING).items():
        assert declared_from_json(name, declared_to_json(declared)) == declared


def test_a_keys_terms_are_the_same_after_they_were_told_as_json() -> None:
    terms = KeyTerms(
        role=Role.READER,
        models=frozenset({"flux-schnell"}),
        budgets=(Budget(Money.exactly("0.5"), Window.DAY),),
        rate=Rate(60, 60, 10),
        expires_at=1_795_392_000.0,
    )

    assert terms_from_json(terms_to_json(terms)) == terms
    assert terms_from_json({}) == KeyTerms()
    assert terms_from_json({"rate": {"requests": 5, "per": "hour"}}).rate == Rate(5, 3600, 5)


HASHED = f"hash: 'sha256:{'5' * 64}'"
KEYS = "tenants:\n  a:\n    budgets: []\n    keys:\n      - {%s}\n"
BUDGET = "tenants:\n  a:\n    budgets:\n      - {%s}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tenants:\n  a: {models: [flux-schnell]}\n", r":2:\d+: tenants.a.budgets: is missing"),
        (BUDGET % "limit_usd: 1", r":4:\d+: .*budgets\[0\].* one of per .* and rolling .* none"),
        (BUDGET % "limit_usd: 1, per: day, rolling: 3d", r":4:\d+: .*both"),
        (BUDGET % "limit_usd: 1, per: wek", r":4:\d+: .*per: .*wek.*did you mean week"),
        (BUDGET % "limit_usd: 1, rolling: 30", r":4:\d+: .*rolling: .*string"),
        (BUDGET % "limit_usd: 1, rolling: 30m", r":4:\d+: .*rolling: .*12h, 30d or 4w, not 30m"),
        (BUDGET % "limit_usd: -1, per: day", r":4:\d+: .*limit_usd: should be 0 or more"),
        (BUDGET % "limit_usd: 0.0000001, per: day", r":4:\d+: .*limit_usd: .*micro-dollar"),
        (BUDGET % "limit_usd: 1, per: day, zone: Europe/Berln", r":4:\d+: .*zone: .*Europe/Berlin"),
        (BUDGET % "limit_usd: 1, per: day, week_starts: sunday", r":4:\d+: .*week_starts, which goes with"),
        (BUDGET % "limit_usd: 1, per: week, week_starts: sonday", r":4:\d+: .*did you mean sunday"),
        (BUDGET % "limit_usd: 1, per: day, first_day: 2026-02-30", r":4:\d+: .*first_day: .*not 2026-02-30"),
        (
            BUDGET % "limit_usd: 1, per: day, first_day: 2026-02-02, last_day: 2026-02-01",
            r":4:\d+: .*last day is before its first",
        ),
        (
            BUDGET % "limit_usd: 1, per: day, models: [flux-schnel]",
            r":4:\d+: .*unknown model flux-schnel, did you mean",
        ),
        (BUDGET % "limit_usd: 1, per: day, alert_at: [0]", r":4:\d+: .*alert_at\[0\]: .*1"),
        (BUDGET % "limit_usd: 1, per: day, models: []", r":4:\d+: .*models: names no model"),
        (BUDGET % "limit_usd: 1, per: day, name: x/y", r":4:\d+: .*name: should have letters"),
        (
            BUDGET % "limit_usd: 1, per: day, name: x}\n      - {limit_usd: 2, per: day, name: x",
            r":5:\d+: .*budgets\[1\].name: another budget is called x",
        ),
        (
            "tenants:\n  a:\n    max_usd_per_request: 1\n    budgets: [{limit_usd: 1, per: day, name: request}]\n",
            r":4:\d+: .*another budget is called request",
        ),
        (
            "tenants:\n  acme: {budgets: []}\n  b:\n    parent: acne\n",
            r":4:\d+: .*parent: .*did you mean acme",
        ),
        (
            "tenants:\n  a:\n    parent: b\n  b:\n    parent: c\n  c:\n    parent: a\n",
            r":3:\d+: .*a < b < c < a",
        ),
        ("tenants:\n  a b: {budgets: []}\n", r":2:\d+: .*letters, digits"),
        ("tenants:\n  a/b: {budgets: []}\n", r":2:\d+: .*letters, digits"),
        ("groups:\n  v: [klin-2.6]\ntenants: {}\n", r":2:\d+: .*did you mean kling-2.6"),
        ("groups:\n  kling-2.6: [kling-2.6]\ntenants: {}\n", r":2:\d+: .*is a model"),
        ("tenants: {}\n", r":1:\d+: tenants: names nobody"),
        ("zone: Mars\ntenants: {}\n", r":1:\d+: zone: unknown time zone Mars"),
        ("zone: Factory\ntenants: {}\n", r":1:\d+: zone: unknown time zone Factory"),
        ("zone: localtime\ntenants: {}\n", r":1:\d+: zone: unknown time zone localtime"),
        (KEYS % "hash: gwk_0123", r":5:\d+: .*keys\[0\].hash: .*gateway keys hash"),
        (KEYS % f"hash: 'sha256:{'A' * 64}'", r":5:\d+: .*keys\[0\].hash: .*64 hexadecimal digits"),
        (KEYS % "name: x", r":5:\d+: .*keys\[0\].hash: is missing"),
        (KEYS % f"{HASHED}, role: boss", r":5:\d+: .*keys\[0\].role: .*boss"),
        (
            KEYS % f"{HASHED}, models: [flux-schnel]",
            r":5:\d+: .*keys\[0\].models\[0\]: .*did you mean flux-schnell",
        ),
        (KEYS % f"{HASHED}, budgets: [{{limit_usd: 1}}]", r":5:\d+: .*keys\[0\].budgets\[0\]: .*one of per"),
        (KEYS % HASHED + f"      - {{{HASHED}}}\n", r":6:\d+: .*keys\[1\].hash: is a key of a already"),
    ],
)
def test_what_is_wrong_is_told_with_its_line_its_field_and_what_would_be_right(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(DocumentInvalid) as refused:
        load(tmp_path, text)

    assert re.search(rf"tenants\.yaml{told}", str(refused.value)), str(refused.value)


def test_a_tenant_below_a_ring_is_not_blamed_for_it(tmp_path: Path) -> None:
    with pytest.raises(DocumentInvalid) as refused:
        load(tmp_path, "tenants:\n  a: {parent: b}\n  b: {parent: a}\n  c: {parent: a}\n")

    assert [mistake.place[1] for mistake in refused.value.mistakes] == ["a", "b"]


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({"role": "admn"}, "did you mean admin"),
        ({"rate": {"requests": 0, "per": "minute"}}, "rate.requests"),
        ({"budgets": [{"limit_usd": 1}]}, "one of per"),
        ({"expires_at": "tomorrow"}, "2026-12-31T23:00:00Z"),
        ({"expires_at": "2026-12-31T23:00:00"}, "2026-12-31T23:00:00Z"),
        ({"expire": 1}, "unknown entry expire, did you mean expires_at"),
    ],
)
def test_what_is_wrong_with_a_keys_terms_is_told(terms: dict[str, Json], told: str) -> None:
    with pytest.raises(DocumentInvalid, match=told):
        terms_from_json(terms)


def test_budgets_are_known_again_by_their_names_and_not_by_their_place(tmp_path: Path) -> None:
    before = load(tmp_path, EVERYTHING)
    after = load(
        tmp_path,
        EVERYTHING.replace("      - {limit_usd: 20, per: day}\n", "")
        .replace("{limit_usd: 30, per: day}", "{limit_usd: 25, per: day}")
        .replace("parent: film", "parent: acme"),
    )

    assert [(change.what, change.before, change.after) for change in changes(before, after)] == [
        ("film.budgets.day.limit_usd", "20", "25"),
        (
            "film.budgets.day 2",
            {"limit_usd": "30", "per": "day", "zone": "Europe/Berlin", "name": "day 2"},
            None,
        ),
        ("interns.parent", "film", "acme"),
    ]


def test_who_comes_and_who_goes_is_told_whole() -> None:
    old, new = Declared("old", budgets=()), Declared("new", parent="old")

    told = changes({"old": old}, {"new": new})

    assert [(change.what, change.before, change.after) for change in told] == [
        ("new", None, {"parent": "old"}),
        ("old", {"budgets": []}, None),
    ]
