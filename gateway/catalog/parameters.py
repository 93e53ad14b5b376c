"""What a model takes: checked whole, defaults filled in, each number in one form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping

import jsonschema_rs

from gateway.documents.spelling import nearest
from gateway.domain.errors import InvalidParameters, Problem
from gateway.domain.generation import Json, Parameters

GREATEST_INTEGER = 2**53 - 1
"""Beyond it, JSON readers disagree about which number was meant (RFC 7493), and RFC 8785 has no form for it."""

_DEEPEST = 64
_MOST_PROBLEMS = 50
_LONGEST_SHOWN = 100


class Schema:
    """A JSON Schema (2020-12) of an object, ready to check requests against."""

    def __init__(self, document: dict[str, Json]) -> None:
        """ValueError, with the place and the reason, when `document` is not a JSON Schema."""
        self.document = document
        self._validator = jsonschema_rs.Draft202012Validator(
            document,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(),  # linear time, whatever the pattern
        )
        properties = document["properties"]
        assert isinstance(properties, dict)  # noqa: S101 -- ours: every schema of the catalogue has them
        self._properties: Mapping[str, Json] = properties

    def complete(self, model: str, given: Mapping[str, Json]) -> Parameters:
        """`given` as it will be sent; InvalidParameters, with every problem there is, when it cannot be."""
        problems: dict[str, Problem] = {}
        checked: dict[str, Json] = {}
        for name, value in given.items():
            if why := _unwritable(name) or _unwritable(value):
                field = _cut(_text(name))
                problems[field] = Problem(field, why, _shown(value), self._allowed(name))
            else:
                checked[name] = in_one_form(value)
        for problem in self._problems(checked):
            # One problem a field: the first says enough, and what is unwritable is not missing as well.
            problems.setdefault(problem.field, problem)
            if len(problems) > _MOST_PROBLEMS:
                problems[""] = Problem("", f"and more: only the first {_MOST_PROBLEMS} are listed")
                break
        if problems:
            raise InvalidParameters(model, list(problems.values()))
        defaults = {
            name: in_one_form(declared["default"])
            for name, declared in self._properties.items()
            if isinstance(declared, dict) and "default" in declared
        }
        return {**defaults, **checked}

    def _problems(self, given: dict[str, Json]) -> Iterator[Problem]:
        for error in self._validator.iter_errors(given):
            yield from self._translated(error, given)

    def _translated(self, error: jsonschema_rs.ValidationError, given: dict[str, Json]) -> Iterator[Problem]:
        facts = error.kind.as_dict()
        path = "/".join(map(str, error.instance_path))
        match error.kind:
            case jsonschema_rs.ValidationErrorKind.Required() if not path:
                name = facts["property"]
                yield Problem(name, f"is required ({self._allowed(name)})", None, self._allowed(name))
                return
            case jsonschema_rs.ValidationErrorKind.AdditionalProperties() if not path:
                for name in facts["unexpected"]:
                    yield self._unknown(name, given[name])
                return
        value = _at(given, error.instance_path)
        allowed = self._allowed(path) if path in self._properties else None
        like = None
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Enum) and isinstance(value, str):
            like = nearest(value, [each for each in facts["options"] if isinstance(each, str)])
        problem = f"should be {allowed}; given {_quoted(value)}" if allowed else _cut(error.message)
        hint = f"; did you mean {like}?" if like else ""
        yield Problem(path, problem + hint, _shown(value), allowed, like)

    def _unknown(self, name: str, value: Json) -> Problem:
        like = nearest(name, self._properties)
        hint = f"did you mean {like}?" if like else f"known are {', '.join(self._properties)}"
        return Problem(_cut(name), f"is not a parameter of this model; {hint}", _shown(value), None, like)

    def _allowed(self, name: str) -> str | None:
        declared = self._properties.get(name)
        return in_words(declared) if isinstance(declared, dict) else None


def in_one_form(value: Json) -> Json:
    """`value` with every integral float as the integer that it is: `24.0` is `24`, at any depth."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [in_one_form(item) for item in value]
        case dict():
            return {key: in_one_form(item) for key, item in value.items()}
    return value


def in_words(declared: Mapping[str, Json]) -> str:
    """What one parameter's schema allows, in a few words: `integer, 256 to 1280`."""
    if isinstance(options := declared.get("enum"), list):
        return f"one of {', '.join(map(_text, options))}"
    words = [str(declared.get("type", "anything"))]
    least, most = declared.get("minimum"), declared.get("maximum")
    if least is not None and most is not None:
        words.append(f"{least} to {most}")
    elif least is not None:
        words.append(f"{least} or more")
    elif most is not None:
        words.append(f"{most} or less")
    if "multipleOf" in declared:
        words.append(f"a multiple of {declared['multipleOf']}")
    if declared.get("minLength") == 1 and "maxLength" not in declared:
        words.append("not empty")
    elif "minLength" in declared or "maxLength" in declared:
        words.append(
            f"{declared.get('minLength', 0)} to {declared.get('maxLength', 'any number of')} characters"
        )
    if "minItems" in declared or "maxItems" in declared:
        words.append(f"{declared.get('minItems', 0)} to {declared.get('maxItems', 'any number of')} items")
    return ", ".join(words)


def _unwritable(value: Json, depth: int = 1) -> str | None:
    """Why `value` has no canonical JSON form (RFC 8785), if it has none."""
    if depth > _DEEPEST:
        return f"is nested more than {_DEEPEST} deep"
    match value:
        case bool():
            return None
        case float() if not math.isfinite(value):
            return "is not a finite number"
        case int() | float() if abs(value) > GREATEST_INTEGER:
            return f"is beyond {GREATEST_INTEGER:,} (2^53 - 1), where JSON numbers stop being exact"
        case str() if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
            return "holds half of a surrogate pair, which is not a character"
        case list():
            return next(filter(None, (_unwritable(item, depth + 1) for item in value)), None)
        case dict():
            within = (each for item in value.items() for each in item)
            return next(filter(None, (_unwritable(item, depth + 1) for item in within)), None)
    return None


def _at(value: Json, path: Iterable[str | int]) -> Json:
    for step in path:
        if isinstance(value, dict):
            value = value[str(step)]
        elif isinstance(value, list):
            value = value[int(step)]
    return value


def _shown(value: Json) -> Json:
    """`value` as an answer can carry it: as text when it is long, or when JSON has no form for it."""
    text = _text(value)
    return value if _unwritable(value) is None and len(text) <= _LONGEST_SHOWN else _cut(text)


def _text(value: Json) -> str:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case int() if abs(value) > GREATEST_INTEGER:
            # Python refuses to write integers of thousands of digits in decimal.
            return str(value) if value.bit_length() < 1024 else hex(value)
        case list() | dict() if _unwritable(value):
            return "…"
    return json.dumps(value, ensure_ascii=False)


def _quoted(value: Json) -> str:
    return f'"{_cut(_text(value))}"' if isinstance(value, str) else _cut(_text(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
