"""A model file that makes no sense is refused at the start, with all of its mistakes, where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.catalog.yaml_files import CatalogInvalid, load_catalog
from gateway.documents.yaml_files import DocumentInvalid
from gateway.domain.errors import InvalidParameters
from gateway.domain.money import Money

GOOD = """\
title: Lighthouse
modality: text-to-video
media_type: video/mp4
source: inferred
deadline_seconds: 600
expected_seconds: 10
parameters:
  prompt: {type: string, required: true}
  width: {type: integer, default: 64, minimum: 8, maximum: 128}
  frames: {type: integer, default: 10, minimum: 1, maximum: 100}
  fps: {type: number, default: 24, minimum: 0, maximum: 30}
  style: {type: string, default: oil, enum: [oil, ink]}
  sound: {type: boolean, default: true}
  strength: {type: number, minimum: 0.5}
  seed: {type: integer}
price: {kind: scaled, usd: 0.1, at: {width: 64, frames: 10}, source: inferred}
example: {prompt: A lighthouse}
"""
PRICE = GOOD.splitlines()[-2]


def load(tmp_path: Path, text: str, name: str = "lighthouse.yaml") -> None:
    (tmp_path / name).write_text(text)
    load_catalog(tmp_path)


def mistakes(tmp_path: Path, text: str, name: str = "lighthouse.yaml") -> list[str]:
    with pytest.raises(CatalogInvalid) as refused:
        load(tmp_path, text, name)
    return [str(mistake).replace(f"{tmp_path}/", "") for mistake in refused.value.mistakes]


def test_the_file_that_the_others_are_made_from_is_good(tmp_path: Path) -> None:
    load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("title:", "titel:", "1:1: titel: unknown key titel, did you mean title?"),
        (
            "default: 64,",
            "defualt: 64,",
            "9:26: parameters.width.defualt: unknown key defualt, did you mean default?",
        ),
        (
            "type: boolean",
            "type: bool",
            (
                "13:11: parameters.sound.type: should be 'string', 'integer', 'number', "
                "'boolean', 'array' or 'object', not \"bool\", did you mean boolean?"
            ),
        ),
        (
            "minimum: 8",
            "minimum: eight",
            '9:39: parameters.width.minimum: should be a valid number, not "eight"',
        ),
        ("frames: {", "width: {", "10:3: parameters.width: is given twice, first at lighthouse.yaml:9:3"),
        ("default: 64", "default: 4", "9:26: parameters.width.default: should be integer, 8 to 128; given 4"),
        (
            "default: 64",
            "default: 64.5",
            "9:26: parameters.width.default: should be integer, 8 to 128; given 64.5",
        ),
        (
            "default: 64",
            "default: null",
            "9:26: parameters.width.default: should be integer, 8 to 128; given null",
        ),
        (
            "default: oil",
            "default: oyl",
            ('12:25: parameters.style.default: should be one of oil, ink; given "oyl"; did you mean oil?'),
        ),
        (
            "seed: {type: integer",
            "seed: {type: integer, default: 9007199254740992",
            (
                "15:25: parameters.seed.default: "
                "is beyond 9,007,199,254,740,991 (2^53 - 1), where JSON numbers stop being exact"
            ),
        ),
        ("[oil, ink]", "[oil, 5]", "12:51: parameters.style.enum[1]: should be string; given 5"),
        (
            "required: true",
            "required: true, default: x",
            ("8:42: parameters.prompt.default: is for optional parameters, and this one is required"),
        ),
        (
            "minimum: 8, maximum: 128",
            "minimum: 128, maximum: 8",
            ("9:53: parameters.width.maximum: 8 is below the minimum, 128"),
        ),
        (
            "required: true",
            "required: true, minimum: 5",
            ("8:42: parameters.prompt.minimum: is for integer and number, and this is string"),
        ),
        (
            "required: true",
            "required: true, pattern: (",
            ('8:3: parameters.prompt: is no JSON Schema: "(" is not a "regex"'),
        ),
        (
            "deadline_seconds: 600",
            "deadline_seconds: 200",
            (
                "5:1: deadline_seconds: is not longer than the 200 seconds "
                "that the largest request is expected to take"
            ),
        ),
        (
            "expected_seconds: 10",
            "expected_seconds: 0",
            "6:1: expected_seconds: should be greater than 0, not 0",
        ),
        (
            "{prompt: A lighthouse}",
            "{prompt: A lighthouse, widht: 8}",
            ("17:33: example.widht: is not a parameter of this model; did you mean width?"),
        ),
        ("{prompt: A lighthouse}", "{}", "17:1: example.prompt: is required (string)"),
        (
            "source: inferred\ndeadline",
            "source: guessed\ndeadline",
            ("4:1: source: should be 'stated', 'observed' or 'inferred', not \"guessed\""),
        ),
        (
            "media_type: video/mp4",
            "media_type: mp4",
            ("3:1: media_type: should match pattern '^[a-z]+/[a-z0-9.+-]+$', not \"mp4\""),
        ),
    ],
)
def test_a_mistake_in_a_file_is_told_where_it_is(tmp_path: Path, old: str, new: str, mistake: str) -> None:
    assert old in GOOD

    assert f"lighthouse.yaml:{mistake}" in mistakes(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("price", "mistake"),
    [
        (
            "{kind: scaled, usd: 1, at: {widht: 64}, source: inferred}",
            ("36: price.at.widht: there is no parameter widht, did you mean width?"),
        ),
        (
            "{kind: scaled, usd: 1, at: {width: 1000}, source: inferred}",
            ("36: price.at.width: should be integer, 8 to 128; given 1000"),
        ),
        (
            "{kind: scaled, usd: 1, at: {strength: 1}, source: inferred}",
            (
                "36: price.at.strength: strength may be left out "
                "and has no default, so there may be nothing to price"
            ),
        ),
        (
            "{kind: scaled, usd: 1, at: {fps: 24}, source: inferred}",
            ("36: price.at.fps: fps could make the price nothing; give it a minimum above 0"),
        ),
        (
            "{kind: scaled, usd: 1, at: {prompt: 1}, source: inferred}",
            ("36: price.at.prompt: prompt is string, which nothing can be multiplied by"),
        ),
        (
            "{kind: scaled, usd: 1, at: {}, source: inferred}",
            "31: price.at: should have at least 1 item, not 0",
        ),
        (
            "{kind: table, by: [style], usd: {oil: 1}, source: inferred}",
            "35: price.usd: has no price for ink",
        ),
        (
            "{kind: table, by: [style], usd: {oil: 1, ink: 1, inc: 2}, source: inferred}",
            ("57: price.usd.inc: inc cannot be asked for, did you mean ink?"),
        ),
        (
            "{kind: table, by: [style, sound], usd: {oil: {true: 1, false: 1}, ink: {true: 1}}, source: inferred}",
            "42: price.usd: has no price for ink and false",
        ),
        (
            "{kind: table, by: [style], usd: {oil: {true: 1}, ink: 1}, source: inferred}",
            ("35: price.usd: has no price for oil"),
        ),
        (
            "{kind: table, by: [width], usd: {64: 1}, source: inferred}",
            ("27: price.by[0]: width has no enum to make a table of"),
        ),
        (
            "{kind: table, by: [style], usd: {oil: 1, ink: 1}, times: [fsp], source: inferred}",
            ("66: price.times[0]: there is no parameter fsp, did you mean fps?"),
        ),
        ("{kind: fixed, usd: 0, source: inferred}", "22: price.usd: should be greater than 0, not 0"),
        ("{kind: fixed, usd: -1, source: inferred}", "22: price.usd: should be greater than 0, not -1"),
        ("{kind: fixed, usd: NaN, source: inferred}", '22: price.usd: should be a finite number, not "NaN"'),
        ("{kind: fixed, usd: 1}", "1: price.source: is missing"),
        ("{kind: unknown}", "1: price.because: is missing"),
        (
            "{kind: fixt, usd: 1}",
            (
                "1: price: kind should be one of 'fixed', 'ceiling', 'scaled', 'table', 'unknown', not "
                "fixt, did you mean fixed?"
            ),
        ),
    ],
)
def test_a_price_rule_that_could_not_price_a_request_is_refused(
    tmp_path: Path, price: str, mistake: str
) -> None:
    assert f"lighthouse.yaml:16:{mistake}" in mistakes(tmp_path, GOOD.replace(PRICE, f"price: {price}"))


@pytest.mark.parametrize(
    ("promised", "mistake"),
    [
        ("{width: widht}", "18:10: result.width: there is no parameter widht, did you mean width?"),
        ("{width: style}", "18:10: result.width: style is string, which says no width"),
        ("{audio: width}", "18:10: result.audio: width is integer, which says no audio"),
        ("{frames: sound}", "18:10: result.frames: sound is boolean, which says no frames"),
        ("{fps: fps}", "18:10: result.fps: says how long frames are, and there is no frames"),
        (
            "{frames: frames, fps: fps, seconds: frames}",
            "18:36: result.seconds: is what frames and fps say already",
        ),
        ("{sound: true}", "18:10: result.sound: unknown key sound"),
        ("{within: {share: 12}}", "18:19: result.within.share: should be less than 1, not 12"),
        (
            "{within: {pixels: -1}}",
            "18:19: result.within.pixels: should be greater than or equal to 0, not -1",
        ),
    ],
)
def test_a_promise_that_nothing_could_keep_is_refused(tmp_path: Path, promised: str, mistake: str) -> None:
    (said,) = mistakes(tmp_path, f"{GOOD}result: {promised}\n")

    assert said.startswith(f"lighthouse.yaml:{mistake}")


def test_what_cannot_be_looked_for_in_the_media_cannot_be_promised(tmp_path: Path) -> None:
    picture = GOOD.replace("video/mp4", "image/png")

    load(tmp_path, f"{picture}result: {{width: width}}\n")

    assert mistakes(tmp_path, f"{picture}result: {{width: width, audio: true, seconds: fps}}\n") == [
        "lighthouse.yaml:18:24: result.audio: is looked for in video, and this model makes image/png",
        "lighthouse.yaml:18:37: result.seconds: is looked for in video, and this model makes image/png",
    ]
    assert len(mistakes(tmp_path, f"{GOOD.replace('video/mp4', 'audio/wav')}result: {{width: width}}\n")) == 1


def test_all_mistakes_of_all_files_are_told_at_once_in_their_order(tmp_path: Path) -> None:
    load(tmp_path, GOOD, "good.yaml")
    (tmp_path / "a.yaml").write_text(GOOD.replace("title", "titel").replace("oil, enum", "air, enum"))
    (tmp_path / "b.yaml").write_text("title: [")

    told = mistakes(
        tmp_path, GOOD.replace("default: 64", "default: 4").replace("at: {width", "at: {widht"), "c.yaml"
    )

    assert [" ".join(mistake.split(": ")[:2]) for mistake in told] == [
        "a.yaml:1:1 title",  # that there is none
        "a.yaml:1:1 titel",
        "b.yaml:1:9 is not YAML",
        "c.yaml:9:26 parameters.width.default",
        "c.yaml:16:38 price.at.widht",
    ]


@pytest.mark.parametrize(
    "name", ["Lighthouse.yaml", "light_house.yaml", "light house.yaml", "lighthouse.yml"]
)
def test_a_file_has_to_be_named_after_a_slug(tmp_path: Path, name: str) -> None:
    assert f"{name}:1:1: {name} names no model" in mistakes(tmp_path, GOOD, name)[0]


def test_other_files_beside_the_models_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("title: [")
    (tmp_path / ".#lighthouse.yaml").write_text("title: [")

    load(tmp_path, GOOD)


def test_a_directory_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogInvalid, match="holds no model files"):
        load_catalog(tmp_path)
    with pytest.raises(DocumentInvalid, match="nowhere: cannot be read: No such file or directory"):
        load_catalog(tmp_path / "nowhere")


def test_a_closed_model_has_parameters_and_an_open_one_needs_none(tmp_path: Path) -> None:
    head = GOOD.partition("parameters:")[0]
    fixed = "price: {kind: ceiling, usd: 1, source: inferred}\nexample: {prompt: A lighthouse, 'x/y': 1.0}\n"

    assert "say schema: open" in mistakes(tmp_path, head + fixed)[0]
    load(tmp_path, f"{head}schema: open\n{fixed}")
    completed = load_catalog(tmp_path).find("lighthouse").complete({"anything": [{"at": 1.0}]})
    assert completed == {"anything": [{"at": 1}]}


def test_an_open_model_checks_the_parameters_that_it_knows(tmp_path: Path) -> None:
    load(tmp_path, f"schema: open\n{GOOD}")
    model = load_catalog(tmp_path).find("lighthouse")

    assert model.complete({"prompt": "a", "hat": "red"})["hat"] == "red"
    assert model.complete({"prompt": "a", "hat": "red"})["width"] == 64
    with pytest.raises(InvalidParameters, match="width: should be integer, 8 to 128"):
        model.complete({"prompt": "a", "hat": "red", "width": 1})


def test_the_keys_of_a_parameter_become_json_schema(tmp_path: Path) -> None:
    more = "  links: {type: array, min_items: 1, max_items: 2, default: [], items: {type: string, format: uri, min_length: 3}}\n"
    step = "  step: {type: number, multiple_of: 0.5, description: A step, source: stated}\n"
    text = GOOD.replace("price:", more.replace(" default: [],", "") + step + "price:")
    load(tmp_path, text)

    properties = load_catalog(tmp_path).find("lighthouse").schema["properties"]

    assert isinstance(properties, dict)
    assert properties["links"] == {
        "type": "array",
        "items": {"type": "string", "minLength": 3, "format": "uri"},
        "minItems": 1,
        "maxItems": 2,
    }
    assert properties["step"] == {"type": "number", "description": "A step", "multipleOf": 0.5}
    assert any(
        "links.default: " in mistake
        for mistake in mistakes(tmp_path, GOOD.replace("price:", more + "price:"))
    )


def test_a_proportion_that_comes_out_even_is_not_rounded_up_for_its_way_there(tmp_path: Path) -> None:
    price = "price: {kind: scaled, usd: 0.3, at: {frames: 3}, source: inferred}"
    load(tmp_path, GOOD.replace(PRICE, price))
    model = load_catalog(tmp_path).find("lighthouse")

    assert model.price(model.complete({"prompt": "a", "frames": 5})) == Money.exactly("0.5")
