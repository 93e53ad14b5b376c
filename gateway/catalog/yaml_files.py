"""The catalogue in a directory of YAML files, one a model, named after it; `docs/catalogue.md` has every key."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, TypeGuard

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from gateway.catalog.contract import Catalog, Model
from gateway.catalog.parameters import Schema, in_one_form
from gateway.catalog.prices import Flat, PriceRule, Scaled, Table, Unknown, as_key, scaled
from gateway.catalog.results import Promise
from gateway.documents.pydantic_models import parse
from gateway.documents.spelling import nearest, remedy
from gateway.documents.yaml_files import DocumentInvalid, Mistake, Place, read
from gateway.domain.errors import InvalidParameters, ModelUnknown
from gateway.domain.expectation import Expectation, Tolerances
from gateway.domain.generation import Json, Parameters
from gateway.domain.money import Money


class CatalogInvalid(DocumentInvalid):
    """Everything that is wrong with the model files, all of them at once."""


def load_catalog(directory: Path) -> Catalog:
    """Every `*.yaml` in `directory` as a model named after its file; CatalogInvalid when one of them is wrong."""
    models: dict[str, Model] = {}
    mistakes: list[Mistake] = []
    for path in _files(directory):
        try:
            models[path.stem] = _load(path)
        except DocumentInvalid as error:
            mistakes += error.mistakes
    if not models and not mistakes:
        mistakes.append(Mistake(str(directory), "holds no model files (*.yaml)"))
    if mistakes:
        raise CatalogInvalid(mistakes)
    return _Models(models)


def _files(directory: Path) -> list[Path]:
    try:
        paths = list(directory.iterdir())
    except OSError as error:
        raise CatalogInvalid([Mistake(str(directory), f"cannot be read: {error.strerror}")]) from error
    named = [path for path in paths if path.suffix in {".yaml", ".yml"} and path.name[0] != "."]
    return sorted(named, key=lambda path: path.stem)


class _Models:
    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def find(self, name: str) -> Model:
        if model := self._models.get(name):
            return model
        like = nearest(name, self._models)
        rest = f"did you mean {like}?" if like else "and none whose name is near."
        raise ModelUnknown(f"There is no model called {name[:60]!a}; {rest}")

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    title: str
    modality: str
    media_type: str
    protocol: str
    deadline_seconds: float
    checked: Schema
    priced: PriceRule
    usual_seconds: float
    promised: Promise
    example: Mapping[str, Json]

    @property
    def schema(self) -> Mapping[str, Json]:
        return self.checked.document

    def complete(self, given: Mapping[str, Json]) -> Parameters:
        return self.checked.complete(self.name, given)

    def price(self, parameters: Parameters) -> Money:
        return self.priced.price(parameters)

    @property
    def price_in_words(self) -> str:
        return self.priced.words

    @property
    def price_is_ceiling(self) -> bool:
        return isinstance(self.priced, Flat) and self.priced.is_ceiling

    def shape(self, parameters: Parameters) -> str:
        of_the_shape = {name: parameters[name] for name in self.priced.names}
        return json.dumps(of_the_shape, sort_keys=True, separators=(",", ":"))

    def expected_seconds(self, parameters: Parameters) -> float:
        if not isinstance(self.priced, Scaled):
            return self.usual_seconds
        # Where the price follows the shape of the request, it does so because the time does.
        return self.usual_seconds * float(self.priced.price(parameters).usd / self.priced.usd)

    def expectation(self, parameters: Parameters) -> Expectation:
        return self.promised.expectation(parameters)


# The shape of a file. Field by field it is explained in docs/catalogue.md.

Source = Literal["stated", "observed", "inferred"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Usd = Annotated[Decimal, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ItemFile(_Part):
    """The keys of a parameter that end up in its JSON Schema; those of its `items` too."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    description: Text | None = None
    enum: Annotated[tuple[str | int | float | bool, ...], Field(min_length=1)] | None = None
    minimum: Number | None = None
    maximum: Number | None = None
    multiple_of: Annotated[Number, Field(gt=0)] | None = None
    min_length: Count | None = None
    max_length: Count | None = None
    pattern: Text | None = None
    format: Text | None = None
    items: ItemFile | None = None
    min_items: Count | None = None
    max_items: Count | None = None


class ParameterFile(ItemFile):
    required: bool = False
    default: JsonValue = None
    source: Source | None = None


class FixedFile(_Part):
    kind: Literal["fixed"]
    usd: Usd
    source: Source


class CeilingFile(_Part):
    kind: Literal["ceiling"]
    usd: Usd
    source: Source


class ScaledFile(_Part):
    kind: Literal["scaled"]
    usd: Usd
    at: Annotated[dict[str, Annotated[Number, Field(gt=0)]], Field(min_length=1)]
    minimum_usd: Usd | None = None
    source: Source


class TableFile(_Part):
    kind: Literal["table"]
    by: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]
    usd: dict[str, Usd | dict[str, Usd]]
    times: tuple[str, ...] = ()
    source: Source


class UnknownFile(_Part):
    kind: Literal["unknown"]
    because: Text


PriceFile = FixedFile | CeilingFile | ScaledFile | TableFile | UnknownFile


class WithinFile(_Part):
    """How far a result may be from what was promised; `gateway/domain/expectation.py` has the defaults."""

    pixels: Count | None = None
    seconds: Annotated[Number, Field(ge=0)] | None = None
    frames: Count | None = None
    share: Annotated[Number, Field(ge=0, lt=1)] | None = None


class ResultFile(_Part):
    width: Text | None = None
    height: Text | None = None
    seconds: Text | None = None
    frames: Text | None = None
    fps: Text | None = None
    audio: bool | Text | None = None
    within: WithinFile = WithinFile()


class FactFile(_Part):
    """What the upstream says that a request costs and takes; kept for people who check a price rule."""

    usd: Usd | None = None
    seconds: Seconds | None = None
    source: Source


class ModelFile(_Part):
    title: Text
    modality: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$")]
    media_type: Annotated[str, Field(pattern=r"^[a-z]+/[a-z0-9.+-]+$")]
    source: Source
    protocol: Literal["v2", "v1"] = "v2"
    deadline_seconds: Seconds
    expected_seconds: Seconds
    schema_: Annotated[Literal["closed", "open"], Field(alias="schema")] = "closed"
    parameters: dict[str, ParameterFile] = {}
    price: Annotated[PriceFile, Field(discriminator="kind")]
    result: ResultFile | None = None
    page: FactFile | None = None
    average: FactFile | None = None
    example: dict[str, JsonValue]


def _load(path: Path) -> Model:
    document = read(path)
    file = parse(document, ModelFile, entry="key")
    if nonsense := list(_nonsense(path, file)):
        raise document.invalid(nonsense)
    return _model(path.stem, file)


def _model(name: str, file: ModelFile) -> Model:
    return _Model(
        name=name,
        title=file.title,
        modality=file.modality,
        media_type=file.media_type,
        protocol=file.protocol,
        deadline_seconds=file.deadline_seconds,
        checked=_schema(file),
        priced=_rule(name, file.price),
        usual_seconds=file.expected_seconds,
        promised=_promise(file.result),
        example=file.example,
    )


def _schema(file: ModelFile) -> Schema:
    return Schema(
        {name: _keywords(parameter) for name, parameter in file.parameters.items()},
        title=file.title,
        required=[name for name, parameter in file.parameters.items() if parameter.required],
        takes_others=file.schema_ == "open",
    )


def _keywords(parameter: ItemFile) -> dict[str, Json]:
    """One parameter as JSON Schema: its keys in JSON Schema's spelling, without those that are ours."""
    keywords: dict[str, Json] = {}
    given = parameter.model_fields_set
    for name in type(parameter).model_fields:
        if name not in given or name in _OURS:
            continue
        value = getattr(parameter, name)
        head, *tail = name.split("_")
        spelling = head + "".join(map(str.capitalize, tail))
        keywords[spelling] = _keywords(value) if isinstance(value, ItemFile) else in_one_form(_plain(value))
    return keywords


_OURS = ("required", "source")


def _plain(value: Json | tuple[Json, ...]) -> Json:
    return list(value) if isinstance(value, tuple) else value


def _rule(model: str, price: PriceFile) -> PriceRule:
    match price:
        case FixedFile() | CeilingFile():
            return Flat(price.usd, is_ceiling=isinstance(price, CeilingFile))
        case ScaledFile():
            return Scaled(price.usd, price.at, price.minimum_usd or Decimal(0))
        case TableFile():
            return Table(price.by, dict(_rows(price.usd)), price.times)
        case UnknownFile():
            return Unknown(model, price.because)


def _rows(table: Mapping[str, Decimal | dict[str, Decimal]]) -> Iterator[tuple[tuple[str, ...], Decimal]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from (((key, inner), usd) for inner, usd in value.items())
        else:
            yield (key,), value


def _promise(result: ResultFile | None) -> Promise:
    if result is None:
        return Promise()
    promised = result.model_dump(exclude={"within"})
    return Promise(**promised, within=Tolerances(**result.within.model_dump(exclude_none=True)))


# What is well formed and makes no sense all the same: each with its place in the file.

_Nonsense = Iterator[tuple[Place, str]]


def _nonsense(path: Path, file: ModelFile) -> _Nonsense:
    if path.suffix != ".yaml" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", path.stem):
        yield (), f"{path.name} names no model: that takes a-z, 0-9, dots and dashes, and .yaml behind them"
    if file.schema_ == "closed" and not file.parameters:
        yield (), "a model without parameters takes nothing; if they are not known, say schema: open"
    in_parameters = [each for name in file.parameters for each in _in_parameter(name, file.parameters[name])]
    in_price = list(_in_price(file))
    yield from in_parameters
    yield from in_price
    yield from _in_result(file)
    if not in_parameters:
        yield from _in_example(file)
    if not in_price and file.deadline_seconds <= (slowest := _slowest_seconds(file)):
        yield (
            ("deadline_seconds",),
            f"is not longer than the {slowest:.0f} seconds that the largest request is expected to take",
        )


_BELONGS: Mapping[str, tuple[str, ...]] = {
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "multiple_of": ("integer", "number"),
    "min_length": ("string",),
    "max_length": ("string",),
    "pattern": ("string",),
    "format": ("string",),
    "items": ("array",),
    "min_items": ("array",),
    "max_items": ("array",),
}


def _in_parameter(name: str, parameter: ParameterFile) -> _Nonsense:
    place = ("parameters", name)
    in_item = list(_in_item(place, parameter))
    yield from in_item
    if "default" not in parameter.model_fields_set:
        return
    if parameter.required:
        yield (*place, "default"), "is for optional parameters, and this one is required"
    if not in_item:
        for problem in _problems(Schema({"value": _keywords(parameter)}), parameter.default):
            yield (*place, "default"), problem


def _in_item(place: Place, item: ItemFile) -> _Nonsense:
    given = item.model_fields_set
    for key, types in _BELONGS.items():
        if key in given and item.type not in types:
            yield (*place, key), f"is for {' and '.join(types)}, and this is {item.type}"
    for least, most in ("minimum", "maximum"), ("min_length", "max_length"), ("min_items", "max_items"):
        low, high = getattr(item, least), getattr(item, most)
        if low is not None and high is not None and low > high:
            yield (*place, most), f"{high:g} is below the {least}, {low:g}"
    keywords = _keywords(item)
    # What an option is, it is allowed to be: the rest has to allow it, too.
    options = keywords.pop("enum", ())
    try:
        checked = Schema({"value": keywords})
    except jsonschema_rs.ValidationError as error:
        yield place, f"is no JSON Schema: {error.message}"
        return
    for index, option in enumerate(options if isinstance(options, list) else ()):
        for problem in _problems(checked, option):
            yield (*place, "enum", index), problem
    if item.items:
        yield from _in_item((*place, "items"), item.items)


def _in_price(file: ModelFile) -> _Nonsense:
    match file.price:
        case ScaledFile(at=at):
            for name, value in at.items():
                at_name = ("price", "at", name)
                yield from _in_factor(file, name, at_name)
                if name in file.parameters:
                    checked = Schema({"value": _keywords(file.parameters[name])})
                    yield from ((at_name, problem) for problem in _problems(checked, value))
        case TableFile(by=by, usd=usd, times=times):
            for index, name in enumerate(times):
                yield from _in_factor(file, name, ("price", "times", index))
            options = []
            for index, name in enumerate(by):
                place = ("price", "by", index)
                yield from _in_price_parameter(file, name, place)
                options.append(_options(file.parameters.get(name)))
                if name in file.parameters and not options[-1]:
                    yield place, f"{name} has no enum to make a table of"
            if all(options):
                yield from _in_table(dict(_rows(usd)), set(itertools.product(*options)))


def _in_table(priced: Mapping[tuple[str, ...], Decimal], wanted: set[tuple[str, ...]]) -> _Nonsense:
    for row in sorted(wanted - set(priced)):
        yield ("price", "usd"), f"has no price for {' and '.join(row)}"
    for row in priced:
        if row not in wanted:
            like = remedy(" ".join(row), map(" ".join, wanted), otherwise="")
            yield ("price", "usd", *row), f"{' and '.join(row)} cannot be asked for{like}"


def _in_factor(file: ModelFile, name: str, place: Place) -> _Nonsense:
    """A price that is multiplied by a parameter has to stay above zero."""
    yield from _in_price_parameter(file, name, place)
    if parameter := file.parameters.get(name):
        least = min(parameter.enum) if _numbers(parameter.enum) else parameter.minimum
        if parameter.type not in {"integer", "number"}:
            yield place, f"{name} is {parameter.type}, which nothing can be multiplied by"
        elif least is None or least <= 0:
            yield place, f"{name} could make the price nothing; give it a minimum above 0"


def _in_price_parameter(file: ModelFile, name: str, place: Place) -> _Nonsense:
    parameter = file.parameters.get(name)
    if parameter is None:
        yield place, _no_parameter(file, name)
    elif not parameter.required and "default" not in parameter.model_fields_set:
        yield place, f"{name} may be left out and has no default, so there may be nothing to price"


_PROMISED_OF: Mapping[str, tuple[str, ...]] = {
    "width": ("video", "image"),
    "height": ("video", "image"),
    "seconds": ("video",),
    "frames": ("video",),
    "fps": ("video",),
    "audio": ("video",),
}
"""Of which kinds of media what can be looked at (`gateway/generation/inspection.py`)."""


def _in_result(file: ModelFile) -> _Nonsense:
    if file.result is None:
        return
    kind = file.media_type.partition("/")[0]
    for key, kinds in _PROMISED_OF.items():
        promised = getattr(file.result, key)
        if promised is not None and kind not in kinds:
            yield (
                ("result", key),
                f"is looked for in {' and '.join(kinds)}, and this model makes {file.media_type}",
            )
        if isinstance(promised, str):
            types = {"boolean"} if key == "audio" else {"integer", "number"}
            yield from _in_result_parameter(file, promised, ("result", key), types)
    if file.result.fps and not file.result.frames:
        yield ("result", "fps"), "says how long frames are, and there is no frames"
    if file.result.fps and file.result.seconds:
        yield ("result", "seconds"), "is what frames and fps say already"


def _in_result_parameter(file: ModelFile, name: str, place: Place, types: Collection[str]) -> _Nonsense:
    parameter = file.parameters.get(name)
    if parameter is None:
        yield place, _no_parameter(file, name)
    elif parameter.type not in types:
        yield place, f"{name} is {parameter.type}, which says no {place[-1]}"


def _no_parameter(file: ModelFile, name: str) -> str:
    return f"there is no parameter {name}{remedy(name, file.parameters, otherwise='')}"


def _in_example(file: ModelFile) -> _Nonsense:
    try:
        _schema(file).complete("", file.example)
    except InvalidParameters as error:
        for problem in error.problems:
            yield ("example", *problem.field.split("/")), problem.problem


def _problems(checked: Schema, value: Json) -> Iterator[str]:
    """What the JSON Schema of one parameter, called `value`, has against a value of it."""
    try:
        checked.complete("", {"value": value})
    except InvalidParameters as error:
        yield from (problem.problem for problem in error.problems)


def _options(parameter: ParameterFile | None) -> list[str]:
    if parameter is None:
        return []
    options = [True, False] if parameter.type == "boolean" else parameter.enum or ()
    return [as_key(in_one_form(option)) for option in options]


def _numbers(values: tuple[object, ...] | None) -> TypeGuard[tuple[int | float, ...]]:
    return bool(values) and values is not None and all(isinstance(value, int | float) for value in values)


def _slowest_seconds(file: ModelFile) -> float:
    """How long the largest request is expected to take, as far as the shape of requests is bounded."""
    if not isinstance(file.price, ScaledFile):
        return file.expected_seconds
    largest: dict[str, Json] = {}
    for name, value in file.price.at.items():
        parameter = file.parameters[name]
        largest[name] = max(parameter.enum) if _numbers(parameter.enum) else parameter.maximum or value
    return float(scaled(Decimal(str(file.expected_seconds)), file.price.at, largest))
