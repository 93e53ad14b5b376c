"""A document as a typed tree: what does not fit is named by line, column and nearest known name."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from gateway.documents.spelling import remedy
from gateway.documents.yaml_files import Document, Place
from gateway.domain.generation import Json

T = TypeVar("T")

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_SUBJECT = re.compile(r"^(Input|String|List|Tuple|Set|Frozenset|Dictionary|Value error,) ")
_LONGEST_SHOWN = 60


def parse(document: Document, model: type[T], *, entry: str = "setting") -> T:
    """`document` as a `model` (a pydantic model or a dataclass); DocumentInvalid with every mistake that is in it.

    Strict, whatever the model's own configuration says: unknown keys are refused at every depth, and nothing is
    converted but what JSON cannot write (tuples, sets, enums, paths, decimals, dates). `entry` is what a key is
    called in messages: `unknown setting prot, did you mean port?`.
    """
    try:
        return TypeAdapter(model).validate_json(json.dumps(document.value), strict=True, extra="forbid")
    except ValidationError as error:
        problems: dict[Place, str] = {}
        for detail in error.errors(include_url=False):
            place = _place(document.value, detail)
            problem = _problem(detail, place, model, entry)
            # A value that fits no branch of a union has one error a branch; together they are one mistake.
            others = problems.get(place, problem)
            problems[place] = others if problem in others else f"{others}, or {problem}"
        raise document.invalid(problems.items()) from error


def _place(value: Json, detail: ErrorDetails) -> Place:
    """Where in the document the error is: pydantic's `loc` without the names of union branches in it."""
    place: list[str | int] = []
    for step in detail["loc"]:
        if isinstance(value, dict) and str(step) in value:
            place.append(str(step))
            value = value[str(step)]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            place.append(step)
            value = value[step]
    if detail["type"] in _MISSING:
        place.append(detail["loc"][-1])
    return tuple(place)


def _problem(detail: ErrorDetails, place: Place, model: object, entry: str) -> str:
    given = detail["input"]
    wanted = _SUBJECT.sub("", detail["msg"])
    match detail["type"]:
        case kind if kind in _MISSING:
            return "is missing"
        case kind if kind in _UNKNOWN:
            known = sorted(_keys(model, detail["loc"][:-1]))
            like = remedy(str(place[-1]), known, otherwise=None if known else "")
            return f"unknown {entry} {place[-1]}{like}"
        case "value_error":
            return wanted  # a validator of ours, with a sentence of its own
        case "too_short" | "too_long":
            return wanted.replace(" after validation", "")
        case "bool_type":
            wanted = "should be true or false"
        case "union_tag_not_found":
            return f"{_unquoted(detail['ctx']['discriminator'])} is missing"
        case "union_tag_invalid":
            context = detail["ctx"]
            wanted = f"{_unquoted(context['discriminator'])} should be one of {context['expected_tags']}"
            return f"{wanted}, not {context['tag']}{_hint(context['tag'], context['expected_tags'])}"
        case "enum" | "literal_error" if isinstance(given, str):
            return f"{wanted}, not {_shown(given)}{_hint(given, detail['ctx']['expected'])}"
    if isinstance(given, dict | list):
        return f"{wanted}, not {'a mapping' if isinstance(given, dict) else 'a list'}"
    return f"{wanted}, not {_shown(given)}"


def _hint(given: str, expected: str) -> str:
    """What was probably meant of `expected`, which pydantic writes as `'a', 'b' or 'c'`."""
    return remedy(given, map(_unquoted, expected.replace(" or ", ", ").split(", ")), otherwise="")


def _unquoted(text: str) -> str:
    return text.strip("'")


def _shown(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _keys(annotation: object, loc: Place) -> set[str]:
    """The keys that are known at pydantic's `loc` under `annotation`."""
    models = set(_models(annotation))
    for step in loc:
        inner = {below for each in models for below in _below(each, step)}
        # A step that leads nowhere names a branch of a union: the one that has this tag, where there is one.
        models = inner or {each for each in models if step in _tags(each)} or models
    return {key for each in models if not _is_collection(each) for key in _fields(each)}


def _models(annotation: object) -> Iterator[Any]:
    """The models and collections that a value of this type may be."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from _models(arguments[0])
    elif origin in (Union, types.UnionType):
        for branch in arguments:
            yield from _models(branch)
    elif _is_collection(annotation) or _is_model(annotation):
        yield annotation


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    )


def _is_collection(annotation: object) -> bool:
    return bool(typing.get_args(annotation)) and typing.get_origin(annotation) is not Literal


def _below(model: Any, step: str | int) -> Iterator[Any]:
    if _is_collection(model):
        # A mapping's last argument is its values; every other collection has one argument, its items.
        items = [each for each in typing.get_args(model) if each is not Ellipsis]
        yield from _models(items[-1])
    elif step in (fields := _fields(model)):
        yield from _models(fields[str(step)])


def _fields(model: Any) -> dict[str, object]:
    """The keys of a model, each with its type."""
    if issubclass(model, BaseModel):
        return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    hints = typing.get_type_hints(model, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(model) if field.init}


def _tags(model: Any) -> set[object]:
    """What the literal fields of a model may say: in a discriminated union, its tag."""
    if _is_collection(model):
        return set()
    literals = [each for each in _fields(model).values() if typing.get_origin(each) is Literal]
    return {value for literal in literals for value in typing.get_args(literal)}
