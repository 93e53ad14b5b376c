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
    """What a model takes, as JSON Schema (2020-12), ready to check requests against."""

    def __init__(
        self,
        properties: Mapping[str, dict[str, Json]],
        *,
        title: str = "",
        required: Iterable[str] = (),
        takes_others: bool = False,
    ) -> None:
        """ValueError, with the place and the reason, when `properties` are not JSON Schemas."""
        self.document: dict[str, Json] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": title,
            "type": "object",
            "properties": dict(properties),
            "required": list(required),
            "additionalProperties": takes_others,
        }
        self._properties = properties
        self._names = frozenset(properties)
        self._defaults = {
            name: in_one_form(declared["default"])
            for name, declared in properties.items()
            if "default" in declared
        }
        self._validator = jsonschema_rs.Draft202012Validator(
            self.document,
            offline=True,
            pattern_options=jsonschema_rs.RegexOptions(),  # linear time, whatever the pattern
        )

    def complete(self, model: str, given: Mapping[str, Json]) -> Parameters:
        """`given` as it will be sent; InvalidParameters, with every problem there is, when it cannot be."""
        if self._names.issuperset(given) and _are_in_form(given.values()) and self._validator.is_valid(given):
            return {**self._defaults, **given}
        problems: dict[str, Problem] = {}
        for problem in self._problems(given):
            # One a field: the first says enough, and what has no form is not missing as well.
            problems.setdefault(problem.field, problem)
            if len(problems) > _MOST_PROBLEMS:
                problems[""] = Problem("", f"and more; only the first {_MOST_PROBLEMS} are listed")
                break
        if problems:
            raise InvalidParameters(model, list(problems.values()))
        return {**self._defaults, **{name: in_one_form(value) for name, value in given.items()}}

    def _problems(self, given: Mapping[str, Json]) -> Iterator[Problem]:
        writable: dict[str, Json] = {}
        for name, value in given.items():
            if why := _unwritable(name) or _unwritable(value):
                yield Problem(_cut(_text(name)), why, _shown(value), self._allowed(name))
            else:
                writable[name] = in_one_form(value)
        for error in self._validator.iter_errors(writable):
            yield from self._translated(error, writable)

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
        return in_words(self._properties[name]) if name in self._properties else None


def _are_in_form(values: Iterable[Json]) -> bool:
    """Whether all are plain, have a canonical form and are in it: most are, and need no further look."""
    for value in values:
        if isinstance(value, str):
            if not value.isascii() and not _is_text(value):
                return False
        elif isinstance(value, int):
            if not -GREATEST_INTEGER <= value <= GREATEST_INTEGER:
                return False
        elif not isinstance(value, float) or not abs(value) < GREATEST_INTEGER or value.is_integer():
            return False
    return True


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
        case float() if not math.isfinite(value):
            return "is not a finite number"
        case int() | float() if abs(value) > GREATEST_INTEGER:
            return f"is beyond {GREATEST_INTEGER:,} (2^53 - 1), where JSON numbers stop being exact"
        case str() if not _is_text(value):
            return "holds half of a surrogate pair, which is not a character"
        case list():
            return next(filter(None, (_unwritable(item, depth + 1) for item in value)), None)
        case dict():
            within = (each for item in value.items() for each in item)
            return next(filter(None, (_unwritable(item, depth + 1) for item in within)), None)
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


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
