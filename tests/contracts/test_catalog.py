"""What `gateway/catalog/contract.py` promises, over every catalogue that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog.contract import Catalog
from gateway.catalog.yaml_files import load_catalog
from gateway.domain.errors import InvalidParameters, ModelUnknown, PriceUnknown
from gateway.domain.expectation import Expectation, Tolerances
from gateway.domain.generation import Json
from gateway.domain.money import Money

MODELS = Path(__file__).parents[2] / "config" / "models"

FIXED = """
title: Lighthouse
modality: text-to-image
media_type: image/png
source: inferred
deadline_seconds: 60
expected_seconds: 7.5
parameters:
  prompt: {type: string, required: true, min_length: 1}
  width: {type: integer, default: 64, minimum: 8, maximum: 128}
  strength: {type: number, default: 0.5, minimum: 0, maximum: 1}
  style: {type: string, enum: [oil, ink]}
price: {kind: fixed, usd: 0.0000001, source: inferred}
result: {width: width, within: {pixels: 3}}
example: {prompt: A lighthouse}
"""
UNKNOWN = FIXED.replace(
    "{kind: fixed, usd: 0.0000001, source: inferred}", "{kind: unknown, because: it varies}"
)


@pytest.fixture(params=["yaml_files"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    assert request.param == "yaml_files"
    (tmp_path / "lighthouse.yaml").write_text(FIXED)
    (tmp_path / "lighthouse-2.yaml").write_text(UNKNOWN)
    return load_catalog(tmp_path)


def test_a_model_says_who_it_is(catalog: Catalog) -> None:
    model = catalog.find("lighthouse")

    assert model.name == "lighthouse"
    assert model.title == "Lighthouse"
    assert model.modality == "text-to-image"
    assert model.media_type == "image/png"
    assert model.protocol == "v2"
    assert model.deadline_seconds == 60
    assert model.schema == {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lighthouse",
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1},
            "width": {"type": "integer", "default": 64, "minimum": 8, "maximum": 128},
            "strength": {"type": "number", "default": 0.5, "minimum": 0, "maximum": 1},
            "style": {"type": "string", "enum": ["oil", "ink"]},
        },
        "required": ["prompt"],
        "additionalProperties": False,
    }


def test_completing_fills_in_defaults_and_gives_each_number_one_form(catalog: Catalog) -> None:
    completed = catalog.find("lighthouse").complete({"prompt": "a", "width": 64.0, "strength": 1.0})

    assert completed == {"prompt": "a", "width": 64, "strength": 1}
    assert {type(completed["width"]), type(completed["strength"])} == {int}
    assert catalog.find("lighthouse").complete({"prompt": "a"}) == {
        "prompt": "a",
        "width": 64,
        "strength": 0.5,
    }


def test_what_was_given_is_left_as_it_was(catalog: Catalog) -> None:
    given: dict[str, Json] = {"prompt": "a", "width": 64.0}

    catalog.find("lighthouse").complete(given)

    assert given == {"prompt": "a", "width": 64.0}
    assert type(given["width"]) is float


def test_every_problem_is_told_at_once(catalog: Catalog) -> None:
    with pytest.raises(InvalidParameters) as refused:
        catalog.find("lighthouse").complete({"width": 7, "strength": "1", "style": "oyl", "promt": "a"})

    assert {
        problem.field: (problem.given, problem.allowed, problem.nearest) for problem in refused.value.problems
    } == {
        "prompt": (None, "string, not empty", None),
        "width": (7, "integer, 8 to 128", None),
        "strength": ("1", "number, 0 to 1", None),
        "style": ("oyl", "one of oil, ink", "oil"),
        "promt": ("a", None, "prompt"),
    }


def test_a_price_is_rounded_up_and_never_nothing(catalog: Catalog) -> None:
    model = catalog.find("lighthouse")

    assert model.price(model.complete({"prompt": "a"})) == Money(1)


def test_an_unknown_price_is_refused_and_never_zero(catalog: Catalog) -> None:
    model = catalog.find("lighthouse-2")

    with pytest.raises(PriceUnknown, match="it varies"):
        model.price(model.complete({"prompt": "a"}))


def test_a_model_says_how_long_it_is_expected_to_take(catalog: Catalog) -> None:
    model = catalog.find("lighthouse")

    assert model.expected_seconds(model.complete({"prompt": "a"})) == 7.5


def test_what_has_the_same_shape_has_the_same_price_and_takes_the_same_time(tmp_path: Path) -> None:
    scaled = FIXED.replace(
        "{kind: fixed, usd: 0.0000001", "{kind: scaled, usd: 0.1, at: {width: 8, strength: 0.5}"
    )
    (tmp_path / "scaled.yaml").write_text(
        scaled.replace("minimum: 0,", "minimum: 0.1,").replace("60\n", "600\n")
    )
    model = load_catalog(tmp_path).find("scaled")

    def shape(**given: Json) -> str:
        return model.shape(model.complete({"prompt": "a", **given}))

    assert (
        shape(strength=1.0, width=64.0)
        == shape(width=64, strength=1, prompt="b")
        == '{"strength":1,"width":64}'
    )
    assert shape() == '{"strength":0.5,"width":64}'
    assert shape(width=65) != shape()


def test_where_the_price_is_the_same_for_all_there_is_one_shape(catalog: Catalog) -> None:
    for name in ("lighthouse", "lighthouse-2"):
        model = catalog.find(name)
        assert model.shape(model.complete({"prompt": "a", "width": 9})) == "{}"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("{kind: fixed, usd: 0.25, source: inferred}", "$0.25"),
        ("{kind: ceiling, usd: 0.175, source: inferred}", "at most $0.175"),
        (
            "{kind: scaled, usd: 0.4, at: {width: 64}, minimum_usd: 0.004, source: inferred}",
            "$0.4 at width 64, and in proportion to their product elsewhere, at least $0.004",
        ),
        (
            "{kind: table, by: [style], usd: {oil: 0.05, ink: 0.1}, times: [width], source: inferred}",
            "by style: oil $0.05, ink $0.1; times width",
        ),
        ("{kind: unknown, because: it varies}", "nobody can say: it varies"),
    ],
)
def test_a_price_rule_can_be_told_in_words(tmp_path: Path, rule: str, words: str) -> None:
    text = FIXED.replace("{kind: fixed, usd: 0.0000001, source: inferred}", rule)
    (tmp_path / "m.yaml").write_text(text.replace("enum: [oil, ink]", "enum: [oil, ink], default: ink"))

    model = load_catalog(tmp_path).find("m")
    assert model.price_in_words == words
    assert model.price_is_ceiling == ("ceiling" in rule)


def test_a_model_says_what_is_promised_of_the_result(catalog: Catalog) -> None:
    model = catalog.find("lighthouse")

    assert model.expectation(model.complete({"prompt": "x", "width": 100})) == Expectation(
        width=100, within=Tolerances(pixels=3)
    )
    assert model.expectation(model.complete({"prompt": "x"})).width == 64


def test_a_model_that_there_is_not_is_refused_with_the_nearest_name(catalog: Catalog) -> None:
    with pytest.raises(ModelUnknown, match="'litehouse'; did you mean lighthouse"):
        catalog.find("litehouse")
    with pytest.raises(ModelUnknown, match=r"'\.\./\.\./etc/passwd'; and none"):
        catalog.find("../../etc/passwd")
    with pytest.raises(ModelUnknown, match=r"no model called '\\udc80x{59}';"):
        catalog.find("\udc80" + "x" * 10_000)


def test_models_come_by_name_as_often_as_one_asks(catalog: Catalog) -> None:
    assert [model.name for model in catalog] == ["lighthouse", "lighthouse-2"]
    assert [model.name for model in catalog] == ["lighthouse", "lighthouse-2"]


def test_the_shipped_catalogue_keeps_the_contract_too() -> None:
    shipped = load_catalog(MODELS)

    assert [model.name for model in shipped] == sorted(model.name for model in shipped)
    for model in shipped:
        assert shipped.find(model.name) is model
