"""Every file in config/models: it keeps its own word, and docs/catalogue.md explains every key of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from gateway.catalog.contract import Model
from gateway.catalog.results import Promise
from gateway.catalog.yaml_files import (
    CeilingFile,
    FactFile,
    FixedFile,
    ModelFile,
    ParameterFile,
    ResultFile,
    ScaledFile,
    TableFile,
    UnknownFile,
    WithinFile,
    load_catalog,
)
from gateway.documents.yaml_files import read, read_text
from gateway.domain.errors import InvalidParameters, PriceUnknown
from gateway.domain.expectation import Expectation, Tolerances
from gateway.domain.generation import Json
from gateway.domain.money import Money

ROOT = Path(__file__).parents[2]
MODELS = {model.name: model for model in load_catalog(ROOT / "config" / "models")}
DOCS = (ROOT / "docs" / "catalogue.md").read_text()

LTX = {
    "ltx-2-19b-t2v",
    "ltx-2-19b-i2v",
    "ltx-2-fast",
    "ltx-2-pro",
    "ltx-2.5-fast",
    "ltx-2.5-pro",
    "ltx-video",
    "ltx-retake-video",
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def written(model: Model) -> dict[str, Json]:
    value = read(ROOT / "config" / "models" / f"{model.name}.yaml").value
    assert isinstance(value, dict)
    return value


def mapping(value: Json) -> dict[str, Json]:
    assert isinstance(value, dict)
    return value


def example(model: Model) -> dict[str, Json]:
    return mapping(written(model)["example"])


def required(model: Model) -> dict[str, Json]:
    """What has to be sent, and nothing else."""
    names = model.schema["required"]
    assert isinstance(names, list)
    return {str(name): example(model)[str(name)] for name in names}


def test_the_ltx_family_is_there_and_other_media_are_too() -> None:
    assert set(MODELS) >= LTX
    assert len(MODELS) >= len(LTX) + 10
    assert {model.media_type.split("/")[0] for model in MODELS.values()} == {
        "video",
        "image",
        "audio",
        "application",
    }


@every_model
def test_the_defaults_satisfy_their_own_schema_and_are_filled_in(model: Model) -> None:
    properties = mapping(model.schema["properties"])
    defaults = {
        name: mapping(schema)["default"]
        for name, schema in properties.items()
        if "default" in mapping(schema)
    }

    completed = model.complete(required(model))

    assert completed == required(model) | defaults
    assert model.complete(required(model) | defaults) == completed


@every_model
def test_the_example_completes_and_has_a_price_or_an_honest_none(model: Model) -> None:
    completed = model.complete(example(model))

    if mapping(written(model)["price"])["kind"] == "unknown":
        with pytest.raises(PriceUnknown, match=model.name):
            model.price(completed)
    else:
        assert model.price(completed) > Money.ZERO
    assert 0 < model.expected_seconds(completed) < model.deadline_seconds


@every_model
def test_the_shape_is_what_the_price_rule_names(model: Model) -> None:
    rule = mapping(written(model)["price"])
    names = [*mapping(rule.get("at", {})), *_listed(rule, "by"), *_listed(rule, "times")]

    completed = model.complete(required(model))

    assert json.loads(model.shape(completed)) == {str(name): completed[str(name)] for name in names}


def _listed(rule: Mapping[str, Json], key: str) -> list[Json]:
    names = rule.get(key, [])
    assert isinstance(names, list)
    return names


@every_model
def test_what_has_to_be_sent_can_be_priced_without_the_rest(model: Model) -> None:
    if mapping(written(model)["price"])["kind"] != "unknown":
        assert model.price(model.complete(required(model))) > Money.ZERO


@every_model
def test_a_stranger_is_refused_by_a_closed_schema_and_forwarded_by_an_open_one(model: Model) -> None:
    request: dict[str, Json] = {**example(model), "not_a_parameter": {"x": [1.0]}}

    if written(model).get("schema") == "open":
        assert model.complete(request)["not_a_parameter"] == {"x": [1]}
    else:
        with pytest.raises(InvalidParameters, match="not_a_parameter: is not a parameter of this model"):
            model.complete(request)


def test_ltx_2_19b_takes_what_its_page_says() -> None:
    model = MODELS["ltx-2-19b-t2v"]
    properties = mapping(model.schema["properties"])
    told = {
        name: {key: value for key, value in mapping(schema).items() if key != "description"}
        for name, schema in properties.items()
    }

    assert told == {
        "prompt": {"type": "string", "minLength": 1},
        "fps": {"type": "integer", "default": 24, "minimum": 1, "maximum": 30},
        "guidance_scale": {"type": "number", "default": 4, "minimum": 1, "maximum": 20},
        "height": {"type": "integer", "default": 768, "minimum": 256, "maximum": 1280},
        "negative_prompt": {"type": "string"},
        "num_frames": {"type": "integer", "default": 161, "minimum": 1, "maximum": 400},
        "seed": {"type": "integer", "default": 1234567890},
        "width": {"type": "integer", "default": 1024, "minimum": 256, "maximum": 1280},
    }
    assert model.schema["required"] == ["prompt"]
    assert model.schema["additionalProperties"] is False
    assert (model.protocol, model.media_type) == ("v2", "video/mp4")


@pytest.mark.parametrize(
    ("name", "asked", "usd"),
    [
        ("ltx-2-fast", {"duration": 6, "resolution": "1080p"}, "0.30"),  # the two ends of the page's range
        ("ltx-2-fast", {"duration": 10, "resolution": "4k"}, "2.00"),
        ("ltx-2-19b-i2v", {}, "0.455"),
        ("seedream-4.5", {"max_images": 3}, "0.12"),
        ("seedance-2.0", {"duration": 5, "resolution": "720p"}, "0.756"),
        ("veo-3.1-fast", {"duration": 4, "generate_audio": False}, "0.40"),
        ("veo-3.1-fast", {"duration": 8, "generate_audio": True}, "1.20"),
        ("kling-2.6", {"duration": "5", "generate_audio": False}, "0.438"),
        ("kling-2.6", {"duration": "10", "generate_audio": True}, "1.75"),
        ("nano-banana", {}, "0.04"),
    ],
)
def test_prices_are_those_that_were_stated(name: str, asked: dict[str, Json], usd: str) -> None:
    model = MODELS[name]

    assert model.price(model.complete(required(model) | asked)) == Money.exactly(usd)


@every_model
def test_a_model_with_a_seed_has_it_in_its_schema_and_takes_minus_one(model: Model) -> None:
    if "seed" in mapping(model.schema["properties"]):
        assert model.complete({**example(model), "seed": -1})["seed"] == -1


def keys_of(shape: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in shape.model_fields.items()}


def test_the_page_about_the_catalogue_lists_every_key() -> None:
    shapes: list[type[BaseModel]] = [ModelFile, ParameterFile, ResultFile, WithinFile, FactFile]
    shapes += [FixedFile, CeilingFile, ScaledFile, TableFile, UnknownFile]
    rows = [row.split("|") for row in DOCS.splitlines() if row.startswith("|")]
    told = {word for row in rows for cell in row[1:] for word in re.findall(r"`([^` ]+)`", cell)}

    assert {key for shape in shapes for key in keys_of(shape)} - told == set()


def test_the_page_about_the_catalogue_lists_no_key_that_there_is_not() -> None:
    tables = re.findall(r"\| key \| what it says \|\n\|---\|---\|\n((?:\|.*\n)+)", DOCS)
    keys = [
        set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines())))
        for table in tables
    ]

    assert keys == [keys_of(ModelFile), keys_of(ParameterFile), keys_of(ResultFile)]


def test_the_results_on_the_page_are_results(tmp_path: Path) -> None:
    promises = re.findall(r"^result: \{.*\}$", DOCS, flags=re.MULTILINE)
    whole = """
title: t
modality: text-to-video
media_type: video/mp4
source: inferred
deadline_seconds: 10
expected_seconds: 1
parameters:
  width: {type: integer}
  height: {type: integer}
  num_frames: {type: integer}
  fps: {type: integer}
  duration: {type: integer}
  generate_audio: {type: boolean}
price: {kind: fixed, usd: 1, source: inferred}
example: {}
"""
    for index, promise in enumerate(promises):
        (tmp_path / f"result-{index}.yaml").write_text(f"{whole}{promise}\n")

    first, second = load_catalog(tmp_path)
    assert first.expectation({"num_frames": 48, "fps": 24}) == Expectation(seconds=2, frames=48, audio=True)
    assert second.expectation({"duration": 6, "generate_audio": False}) == Expectation(
        seconds=6, audio=False, within=Tolerances(seconds=1)
    )


@every_model
def test_a_model_promises_what_can_be_looked_at_or_nothing(model: Model) -> None:
    if "result" in written(model):
        assert model.expectation(model.complete(example(model))) != Expectation()
    else:
        assert model.expectation(model.complete(example(model))) == Expectation()


def test_ltx_2_19b_promises_what_its_page_says() -> None:
    model = MODELS["ltx-2-19b-t2v"]

    promised = model.expectation(model.complete(example(model)))

    assert promised == Expectation(seconds=121 / 24, width=720, height=1280, frames=121, audio=True)
    assert model.expectation(model.complete({"prompt": "x"})).seconds == 161 / 24


def test_at_few_frames_a_second_the_frames_that_are_snapped_away_are_seconds() -> None:
    model = MODELS["ltx-2-19b-t2v"]

    promised = model.expectation(model.complete({"prompt": "x", "num_frames": 8, "fps": 1}))

    assert promised.seconds == 8
    assert promised.within.seconds == 8


@pytest.mark.parametrize("nothing", [0, -1, "auto", True, None, [720]])
def test_a_parameter_that_says_no_number_promises_nothing(nothing: Json) -> None:
    promise = Promise(
        width="width", height="height", seconds="seconds", frames="frames", fps="fps", audio="audio"
    )
    asked = dict.fromkeys(("width", "height", "seconds", "frames", "fps"), nothing)

    assert promise.expectation(asked) == Expectation()
    assert promise.expectation({}) == Expectation()
    assert promise.expectation({**asked, "frames": 121}) == Expectation(frames=121)


@pytest.mark.parametrize("name", ["ltx-2-fast", "ltx-2-pro"])
def test_ltx_2_promises_its_seconds_and_the_sound_that_was_asked_for(name: str) -> None:
    model = MODELS[name]

    promised = model.expectation(model.complete({"prompt": "x", "duration": 10, "generate_audio": True}))
    silent = model.expectation(model.complete({"prompt": "x", "generate_audio": False}))

    assert promised == Expectation(seconds=10, audio=True)
    assert silent.audio is False
    assert MODELS["ltx-2-pro"].expectation({"prompt": "x", "duration": 6}).audio is None


def test_the_model_that_the_page_adds_can_be_added(tmp_path: Path) -> None:
    (new,) = re.findall(r"```yaml\n(title: Z Image Turbo.*?)```", DOCS, flags=re.DOTALL)
    (tmp_path / "z-image-turbo.yaml").write_text(new)

    model = load_catalog(tmp_path).find("z-image-turbo")

    assert model.price(model.complete({"prompt": "x"})) == Money.exactly("0.125")


def test_the_price_rules_on_the_page_are_price_rules(tmp_path: Path) -> None:
    rules = re.findall(r"^price: \{kind.*\}$", DOCS, flags=re.MULTILINE)
    whole = """
title: t
modality: text-to-video
media_type: video/mp4
source: inferred
deadline_seconds: 10
expected_seconds: 1
parameters:
  width: {type: integer, default: 720, minimum: 1}
  height: {type: integer, default: 1280, minimum: 1}
  num_frames: {type: integer, default: 121, minimum: 1}
  resolution: {type: string, default: 2k, enum: [1080p, 2k, 4k]}
  duration: {type: integer, default: 8, enum: [6, 8, 10]}
example: {}
"""
    for index, rule in enumerate(rules):
        (tmp_path / f"rule-{index}.yaml").write_text(f"{whole}{rule}\n")

    kinds = [mapping(mapping(read_text(rule, name="docs").value)["price"])["kind"] for rule in rules]
    assert len(list(load_catalog(tmp_path))) == len(rules)
    assert set(kinds) == {"fixed", "ceiling", "scaled", "table", "unknown"}


def test_the_prices_on_the_page_are_the_prices() -> None:
    model = MODELS["ltx-2-19b-t2v"]
    rows = re.findall(r"\| (\d+) x (\d+), (\d+) frames? [^|]*\| \$([\d.]+) \| (\d+) s \|", DOCS)

    assert len(rows) == 4
    for width, height, num_frames, usd, seconds in rows:
        completed = model.complete(
            {"prompt": "x", "width": int(width), "height": int(height), "num_frames": int(num_frames)}
        )
        assert model.price(completed) == Money.exactly(usd)
        assert round(model.expected_seconds(completed)) == int(seconds)
