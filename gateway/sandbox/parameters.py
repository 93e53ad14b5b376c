"""What the upstream makes of a body: less strict than its page, and later."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jsonschema_rs
from jsonschema_rs import ValidationErrorKind as Kind

from gateway.catalog.contract import Model
from gateway.domain.errors import InvalidParameters
from gateway.domain.generation import Json, Parameters


class Objection(enum.IntEnum):
    """What is wrong with a body, the first to be noticed first."""

    NOT_IN_SET = 1
    """A value outside a fixed set: noticed at once, 406."""

    NOT_A_FIELD = 2
    """A required field is missing or has the wrong type: 400 on v1, a job that fails at once on v2."""

    NOT_POSSIBLE = 3
    """Anything else: it reaches the model and dies there."""


@dataclass(frozen=True, slots=True)
class Reading:
    parameters: Parameters
    """As the model sees them: strangers left out, defaults filled in, a random seed drawn."""

    seed: int | None
    objection: Objection | None = None
    error: str = ""


def read(model: Model, body: Mapping[str, Json], draw_seed: Callable[[], int]) -> Reading:
    """What becomes of `body`. A seed of -1 is drawn, and so is one that was left out and has no documented default."""
    properties = model.schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    closed = model.schema.get("additionalProperties") is False
    given = {name: value for name, value in body.items() if not closed or name in known}
    declared = known.get("seed")
    undecided = isinstance(declared, dict) and "default" not in declared and "seed" not in given
    if undecided or given.get("seed") == -1:
        given["seed"] = draw_seed()
    problems = sorted(_objections(model, given), key=lambda problem: problem[0])
    if problems:
        objection, error = problems[0]
        return Reading(given, _seed(given), objection, error)
    try:
        parameters = model.complete(given)
    except InvalidParameters as invalid:
        return Reading(given, _seed(given), Objection.NOT_POSSIBLE, str(invalid))
    return Reading(parameters, _seed(parameters))


def _objections(model: Model, given: Mapping[str, Json]) -> Iterator[tuple[Objection, str]]:
    validator = jsonschema_rs.Draft202012Validator(dict(model.schema))
    for problem in validator.iter_errors(given):
        path = "/".join(str(step) for step in problem.instance_path)
        match problem.kind:
            case Kind.Enum() | Kind.Constant():
                yield Objection.NOT_IN_SET, f"Invalid value for {path}: {problem.message}"
            case Kind.Required(property=name):
                yield Objection.NOT_A_FIELD, _mandatory(model, name)
            case Kind.Type() | Kind.MinLength() if path in _required(model):
                yield Objection.NOT_A_FIELD, _mandatory(model, path)
            case _:
                yield Objection.NOT_POSSIBLE, f"{path}: {problem.message}"


def _required(model: Model) -> list[Json]:
    required = model.schema.get("required")
    return required if isinstance(required, list) else []


def _mandatory(model: Model, field: str) -> str:
    properties = model.schema.get("properties")
    declared = properties.get(field) if isinstance(properties, dict) else None
    kind = declared.get("type") if isinstance(declared, dict) else None
    return f"{field.capitalize()} is Mandatory and must be {kind or 'given'}"


def _seed(parameters: Mapping[str, Json]) -> int | None:
    seed = parameters.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
