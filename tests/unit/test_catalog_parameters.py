"""One LTX request: what is the same, what is not, what is refused, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.yaml_files import load_catalog
from gateway.domain.errors import InvalidParameters, Problem
from gateway.domain.generation import Json
from gateway.domain.money import Money

LTX = load_catalog(Path(__file__).parents[2] / "config" / "models").find("ltx-2-19b-t2v")
OPEN = load_catalog(Path(__file__).parents[2] / "config" / "models").find("ltx-2.5-fast")
DEFAULTS: dict[str, Json] = {
    "width": 1024,
    "height": 768,
    "num_frames": 161,
    "fps": 24,
    "guidance_scale": 4,
    "seed": 1234567890,
}
MOST = 2**53 - 1
MINIMUM = Money.exactly("0.004")

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
requests = st.fixed_dictionaries(
    {"prompt": text},
    optional={
        "negative_prompt": text,
        "width": st.integers(256, 1280),
        "height": st.integers(256, 1280),
        "num_frames": st.integers(1, 400),
        "fps": st.integers(1, 30),
        "guidance_scale": st.integers(1, 20) | st.floats(1, 20),
        "seed": st.integers(-MOST, MOST),
    },
)
whenever = settings(deadline=None)


def problems(request: dict[str, Json]) -> dict[str, Problem]:
    with pytest.raises(InvalidParameters) as refused:
        LTX.complete(request)
    orjson.dumps(refused.value.details)  # an answer can carry it
    assert str(refused.value).isprintable()
    return {problem.field: problem for problem in refused.value.problems}


def price(request: dict[str, Json]) -> Money:
    return LTX.price(LTX.complete(request))


# What is the same


def written(request: dict[str, Json]) -> str:
    """The request as it would be hashed, but for RFC 8785: types and all."""
    return json.dumps(LTX.complete(request), sort_keys=True)


@whenever
@given(requests)
def test_completing_what_is_complete_changes_nothing(request: dict[str, Json]) -> None:
    completed = dict(LTX.complete(request))

    assert written(completed) == written(request)


@whenever
@given(requests, st.randoms(use_true_random=False))
def test_the_order_of_keys_explicit_defaults_and_decimal_points_make_no_difference(
    request: dict[str, Json], random: Random
) -> None:
    spelled = [
        (name, float(value) if isinstance(value, int) and random.random() < 0.5 else value)
        for name, value in {**DEFAULTS, **request}.items()
    ]
    random.shuffle(spelled)

    assert written(dict(spelled)) == written(request)


@whenever
@given(requests, requests)
def test_any_other_difference_makes_another_request(one: dict[str, Json], other: dict[str, Json]) -> None:
    same = {**DEFAULTS, **one} == {**DEFAULTS, **other}

    assert (written(one) == written(other)) is same


@whenever
@given(requests, st.sampled_from(sorted({*DEFAULTS, "prompt", "negative_prompt"})), requests)
def test_one_parameter_that_differs_is_enough(
    request: dict[str, Json], name: str, other: dict[str, Json]
) -> None:
    changed = (
        request | {name: other[name]} if name in other else {k: v for k, v in request.items() if k != name}
    )
    changed.setdefault("prompt", "a")
    same = {**DEFAULTS, **request} == {**DEFAULTS, **changed}

    assert (written(request) == written(changed)) is same


def test_numbers_have_one_form() -> None:
    completed = LTX.complete(
        {"prompt": "a", "fps": 24.0, "guidance_scale": 4.0, "seed": -0.0, "width": 1.28e3}
    )

    assert json.dumps(completed, sort_keys=True) == json.dumps(
        {**DEFAULTS, "prompt": "a", "seed": 0, "width": 1280}, sort_keys=True
    )
    assert LTX.complete({"prompt": "a", "guidance_scale": 4.5})["guidance_scale"] == 4.5


def test_the_documented_seed_is_sent_and_minus_one_is_let_through() -> None:
    assert LTX.complete({"prompt": "a"})["seed"] == 1234567890
    assert LTX.complete({"prompt": "a", "seed": -1})["seed"] == -1


def test_a_parameter_without_a_default_stays_out() -> None:
    assert dict(LTX.complete({"prompt": "a"})) == {**DEFAULTS, "prompt": "a"}


def test_text_is_left_as_it_is() -> None:
    prompt = "  e\u0301 \u00e9 \U0001f600\n\x00 "

    assert LTX.complete({"prompt": prompt})["prompt"] == prompt


# What is refused


def test_every_field_that_is_wrong_is_named_with_what_was_given_and_what_is_allowed() -> None:
    told = problems(
        {
            "sed": 7,
            "width": 100,
            "height": "768",
            "fps": True,
            "num_frames": 1.5,
            "guidance_scale": None,
            "seed": [],
        }
    )

    assert {field: (p.given, p.allowed, p.nearest) for field, p in told.items()} == {
        "sed": (7, None, "seed"),
        "width": (100, "integer, 256 to 1280", None),
        "height": ("768", "integer, 256 to 1280", None),
        "fps": (True, "integer, 1 to 30", None),
        "num_frames": (1.5, "integer, 1 to 400", None),
        "guidance_scale": (None, "number, 1 to 20", None),
        "seed": ([], "integer", None),
        "prompt": (None, "string, not empty", None),
    }
    assert told["sed"].problem == "is not a parameter of this model; did you mean seed?"
    assert told["width"].problem == "should be integer, 256 to 1280; given 100"
    assert told["height"].problem == 'should be integer, 256 to 1280; given "768"'
    assert told["prompt"].problem == "is required (string, not empty)"


@pytest.mark.parametrize(
    ("field", "least", "most"),
    [("width", 256, 1280), ("height", 256, 1280), ("num_frames", 1, 400), ("fps", 1, 30)],
)
def test_the_ends_of_a_range_are_inside_and_what_is_next_to_them_is_not(
    field: str, least: int, most: int
) -> None:
    for inside in least, most:
        assert LTX.complete({"prompt": "a", field: inside})[field] == inside
    for outside in least - 1, most + 1:
        assert set(problems({"prompt": "a", field: outside})) == {field}


@pytest.mark.parametrize("prompt", ["", None, 5, ["a"], {"a": 1}, True])
def test_a_prompt_is_text_and_not_empty(prompt: Json) -> None:
    assert set(problems({"prompt": prompt})) == {"prompt"}


@pytest.mark.parametrize("seed", [2**53, -(2**53), 2.0**53, 1e300, pytest.param(10**5000, id="huge"), 2**64])
def test_an_integer_beyond_what_json_can_tell_apart_is_refused(seed: Json) -> None:
    assert "2^53 - 1" in problems({"prompt": "a", "seed": seed})["seed"].problem


@pytest.mark.parametrize("seed", [MOST, -MOST])
def test_an_integer_that_json_can_tell_apart_is_taken(seed: int) -> None:
    assert LTX.complete({"prompt": "a", "seed": seed})["seed"] == seed


@pytest.mark.parametrize(("number", "shown"), [(float("nan"), "NaN"), (float("inf"), "Infinity")])
def test_a_number_that_is_not_finite_is_refused(number: float, shown: str) -> None:
    told = problems({"prompt": "a", "guidance_scale": number})

    assert told["guidance_scale"].problem == "is not a finite number"
    assert told["guidance_scale"].given == shown


def test_half_a_surrogate_pair_is_refused_in_names_and_in_values() -> None:
    told = problems({"prompt": "a\ud800", "\udc00": 1})

    assert set(told) == {"prompt", "\\udc00"}
    assert told["prompt"].given == "a\\ud800"


@pytest.mark.parametrize("value", [{"a": [2**53]}, [float("nan")], {"\ud800": 1}, [["\udfff"]]])
def test_an_open_model_too_takes_only_what_can_be_hashed(value: Json) -> None:
    with pytest.raises(InvalidParameters, match=r"^ltx-2.5-fast cannot take this request: x: "):
        OPEN.complete({"x": value})


def test_what_is_nested_without_end_is_refused() -> None:
    deep: Json = []
    for _ in range(5000):
        deep = [deep]

    with pytest.raises(InvalidParameters, match="nested more than 64 deep"):
        OPEN.complete({"x": deep})


def test_a_problem_inside_of_a_list_is_told_with_its_path() -> None:
    model = load_catalog(Path(__file__).parents[2] / "config" / "models").find("seedream-4.5")

    with pytest.raises(InvalidParameters) as refused:
        model.complete({"prompt": "a", "image_input": ["x", 5], "size": "2k"})

    told = {problem.field: problem for problem in refused.value.problems}
    assert set(told) == {"image_input/1", "size"}
    assert told["image_input/1"].given == 5
    assert told["size"].nearest == "2K"


def test_what_is_long_is_cut_before_it_is_shown() -> None:
    told = problems({"prompt": ["x" * 10_000], "y" * 10_000: 1, "fps": "z" * 10_000})

    assert all(len(field) <= 101 for field in told)
    assert all(len(str(problem.given)) <= 101 for problem in told.values())
    assert all(len(problem.problem) <= 250 for problem in told.values())
    assert told["fps"].given == "z" * 100 + "…"


def test_a_hundred_thousand_problems_are_told_in_fifty() -> None:
    told = problems({f"field{index}": 1 for index in range(100_000)})

    assert len(told) == 52
    assert "only the first 50" in told[""].problem


# What it costs


def test_the_example_of_the_page_costs_and_takes_what_the_page_says() -> None:
    request: dict[str, Json] = {"prompt": "a", "width": 720, "height": 1280, "num_frames": 121}

    assert price(request) == Money.exactly("0.416")
    assert LTX.expected_seconds(LTX.complete(request)) == 102.69


@whenever
@given(requests, st.sampled_from(["width", "height", "num_frames"]))
def test_the_price_grows_with_width_height_and_frames(request: dict[str, Json], field: str) -> None:
    completed = dict(LTX.complete(request))
    value = completed[field]
    assert isinstance(value, int)
    smaller = {**completed, field: value - 1}

    if value - 1 >= {"width": 256, "height": 256, "num_frames": 1}[field]:
        assert price(smaller) < price(completed) or price(completed) == MINIMUM
        assert LTX.expected_seconds(smaller) <= LTX.expected_seconds(completed)


@whenever
@given(requests, requests)
def test_the_price_depends_on_nothing_else(one: dict[str, Json], other: dict[str, Json]) -> None:
    shape = {name: value for name, value in one.items() if name in {"width", "height", "num_frames"}}
    rest = {name: value for name, value in other.items() if name not in {"width", "height", "num_frames"}}

    assert price(shape | rest) == price(one)


@whenever
@given(requests)
def test_the_price_is_never_below_the_minimum_nor_a_micro_dollar_above_proportion(
    request: dict[str, Json],
) -> None:
    completed = LTX.complete(request)
    width, height, num_frames = (int(str(completed[name])) for name in ("width", "height", "num_frames"))
    pixels, anchor = width * height * num_frames, 720 * 1280 * 121

    # Whole numbers, by another way than the rule's: ceil(416000 * pixels / anchor), at least 4000.
    assert price(request) == Money(max(4000, -(-416_000 * pixels // anchor)))
