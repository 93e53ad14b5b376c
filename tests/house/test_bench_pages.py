"""The page of bench/speed and its pictures: they show what was measured, and the README shows them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from bench.speed import reference
from bench.speed.findings import GATEWAY, UNSEEN, Findings, Row
from bench.speed.load import Sample
from bench.speed.parts import Part
from bench.speed.report import About, page
from bench.speed.svg import Bar, Group, chart, number
from tests.house.project import PROJECT, table_rows, text_of

PLOTS = sorted(path.name for path in (PROJECT / "bench" / "plots").glob("*.svg"))
_SVG = "{http://www.w3.org/2000/svg}"
_GROUPS = [
    Group("small & large", [Bar("ours", 5000.0, 4000.0, 6000.0), Bar("<theirs>", 2500.0, 2400.0, 2600.0)]),
    Group("empty", []),
    Group("tiny", [Bar("<theirs>", 1.0, 1.0, 1.0)]),
]


def _drawn(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 -- our own


def _texts(svg: str) -> list[str]:
    return [each.text or "" for each in _drawn(svg).iter(f"{_SVG}text")]


def _bars(svg: str) -> list[ET.Element]:
    return [each for each in _drawn(svg).iter(f"{_SVG}rect") if each.get("class") != "page"]


def _chart() -> str:
    return chart("Title & more", "A <subtitle>", "answers a second", _GROUPS, names=["ours", "<theirs>"])


def test_a_chart_has_its_title_its_axis_and_the_name_and_value_of_each_bar() -> None:
    texts = _texts(_chart())

    assert texts[:2] == ["Title & more", "A <subtitle>"]
    assert {"answers a second", "0", "1,000", "small & large", "tiny"} <= set(texts)
    assert "empty" not in texts
    assert [texts[texts.index("ours") + 1], texts[texts.index("<theirs>") + 1]] == ["5,000", "2,500"]


def test_bars_are_as_long_as_their_values_and_colours_are_those_of_their_names() -> None:
    ours, theirs, tiny = _bars(_chart())

    assert float(ours.get("width", "0")) == pytest.approx(2 * float(theirs.get("width", "0")), rel=0.01)
    assert ours.get("class") == "colour0"
    assert theirs.get("class") == tiny.get("class") == "colour1"
    assert float(tiny.get("width", "0")) >= 1.0


def test_nothing_of_a_chart_lies_over_anything_else_or_outside() -> None:
    svg = _chart()
    _, _, width, height = map(float, (_drawn(svg).get("viewBox") or "").split())
    rows = [(float(bar.get("y", "0")), float(bar.get("height", "0"))) for bar in _bars(svg)]

    assert all(upper + tall <= lower for (upper, tall), (lower, _) in pairwise(rows))
    for text in _drawn(svg).iter(f"{_SVG}text"):
        assert 0 < float(text.get("y", "0")) < height
    values = [text for text in _drawn(svg).iter(f"{_SVG}text") if text.get("class") == "value"]
    assert all(float(text.get("x", "0")) + 8 * len(text.text or "") < width for text in values)


def test_a_chart_follows_the_readers_light_or_dark() -> None:
    light, _, dark = _chart().partition("@media (prefers-color-scheme: dark)")

    classes = {name for bar in _bars(_chart()) for name in (bar.get("class") or "").split()} | {
        "page",
        "grid",
    }
    for name in classes:
        colours = [re.search(rf"\.{name} {{[^}}]*?#([0-9a-f]{{6}})", style) for style in (light, dark)]
        assert all(colours), name
    assert re.search(r"text {[^}]*fill: #f0f6fc", dark)


@pytest.mark.parametrize(
    ("value", "told"),
    [(58_924.4, "58,924"), (104.2, "104"), (14.84, "14.8"), (0.5712, "0.57"), (0.0, "0.00")],
)
def test_a_value_is_told_with_as_many_figures_as_anybody_reads(value: float, told: str) -> None:
    assert number(value) == told


def test_nothing_measured_is_drawn_all_the_same() -> None:
    assert _texts(chart("t", "s", "a", [], names=[]))[:2] == ["t", "s"]


def test_a_row_without_a_bar_is_told_apart_from_those_that_have_one() -> None:
    rows = [
        Row("judged", "<= 1 ms", 0.5, "ms", 0.4, 0.6, met=True, note="noisy"),
        Row("missed", ">= 250x", 1234.5, "x", 1000.0, 2000.0, met=False),
        Row("told", "", 20.25, " MB", 20.0, 21.0, met=None),
    ]
    about = About("c", "d", "m", "p", "n", 1.0, [0.0], {}, [], {}, whole=False, seconds=1.0, repetitions=1)

    told = page(Findings(), [Part("part", rows, ["a note"])], about, plots=[])

    assert table_rows(told, after="## Beside the bars of issue 4\n") == [
        ["judged", "<= 1 ms", "0.5 ms", "0.4 to 0.6", "met", "noisy"],
        ["missed", ">= 250x", "1,234x", "1,000 to 2,000", "**not met**", ""],
    ]
    assert table_rows(told, after="## Told beside them\n") == [["told", "-", "20.2 MB", "20 to 21", "-", ""]]
    assert "- part: a note" in told


def test_the_pictures_are_of_the_same_run_as_the_page() -> None:
    hits = {(row[0], row[1]): row for row in table_rows(text_of("bench/RESULTS.md"), after="## Hits\n")}

    assert PLOTS == ["cpu.svg", "large-hits.svg", "small-hits.svg"]
    texts = _texts(text_of("bench/plots/small-hits.svg"))
    small = [
        row
        for (scene, name), row in hits.items()
        if scene.endswith("connections") and "2 workers" not in name
    ]
    assert small
    for row in small:
        assert row[2].partition(" ")[0] in texts, row


def test_every_bar_of_the_page_has_a_verdict_and_what_is_not_measured_is_said() -> None:
    rows = table_rows(text_of("bench/RESULTS.md"), after="## Beside the bars of issue 4\n")

    assert len(rows) > 20
    assert {row[4] for row in rows if row[1] != "-"} <= {"met", "**not met**", "undecided", "not measured"}
    assert all(len(row) == 6 for row in rows)


@pytest.mark.parametrize("plot", ["small-hits.svg", "large-hits.svg"])
def test_the_readme_shows_the_pictures_and_where_they_come_from(plot: str) -> None:
    readme = text_of("README.md")

    assert f"(bench/plots/{plot})" in readme
    assert "[bench/RESULTS.md](bench/RESULTS.md)" in readme
    assert "make bench" in readme
    assert "[bench/RESULTS.md](../bench/RESULTS.md)" in text_of("docs/benchmarks.md")


@pytest.mark.parametrize("command", ["bench", "bench-quick", "bench-paid-once"])
def test_the_benchmarks_of_the_documentation_are_in_the_makefile(command: str) -> None:
    assert f"make {command}" in text_of("docs/benchmarks.md")
    assert re.search(rf"^{command}:", text_of("Makefile"), flags=re.MULTILINE)


def _findings(cpu_seconds: float, calibration: float) -> Findings:
    sample = Sample(1000, 0, 0, 0, 1.0, 0.0, 0.0, cpu_seconds, cpu_seconds, 0.5, 0.0)
    found = Findings({("a", GATEWAY): [sample], ("a", UNSEEN): [sample], ("a", "nginx"): [sample]})
    found.calibrations.append(calibration)
    return found


def test_what_a_hit_costs_is_told_in_rounds_so_that_a_slower_machine_is_no_regression() -> None:
    quick, slow = _findings(0.02, calibration=60_000), _findings(0.04, calibration=30_000)

    assert (
        reference.rounds_each(quick)
        == reference.rounds_each(slow)
        == {"a, gateway": 1.2, f"a, {UNSEEN}": 1.2}
    )


def test_what_is_remembered_are_scenes_that_a_short_run_has() -> None:
    remembered = reference.FILE.read_text(encoding="utf-8")

    assert '"1 KB hit, 64 connections, gateway"' in remembered
    assert '"3 MB hit, gateway"' in remembered
