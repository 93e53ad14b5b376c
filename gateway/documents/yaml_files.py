"""YAML that people write by hand: read strictly, remembered by line and column.

The scalars are those of JSON, so that none of them surprises: `null`, `true`, `false` and numbers as JSON writes
them. Everything else is text as it stands: `NO`, `on`, `12:30`, `010`, `1_000`, `2026-01-01`. Keys are
always text. Duplicate keys, tags and endless aliases are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from gateway.domain.generation import Json

Place = tuple[str | int, ...]
"""The way to an entry of a document: keys of mappings, indices of lists."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with a document."""

    where: str
    """`file:line:column`, counted from 1, as editors do; or whatever else set the value: `--set a.b`."""

    problem: str
    """What is wrong, and what would be right."""

    place: Place = ()
    """The entry that it is about; empty for the document."""

    def __str__(self) -> str:
        return ": ".join(filter(None, [self.where, dotted(self.place), self.problem]))


class DocumentInvalid(ValueError):
    """Everything that is wrong with one or more documents; the text has one line a mistake."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document that still knows where each of its entries was written."""

    name: str
    """What it is called in messages: its path, as it was given."""

    value: Json
    """What is written in it; an empty document is an empty mapping."""

    marks: Mapping[Place, str]
    """Where each entry is written, in the order in which they are written."""

    def where(self, place: Sequence[str | int]) -> str:
        """`file:line:column` of the entry's key (of a list's item: the item), or of the nearest entry around it."""
        for length in range(len(place), -1, -1):
            if mark := self.marks.get(tuple(place[:length])):
                return mark
        return self.name

    def invalid(self, problems: Iterable[tuple[Place, str]]) -> DocumentInvalid:
        """The error that says what is wrong with these entries, in the order in which they are written."""
        order = {where: index for index, where in enumerate(self.marks.values())}
        mistakes = [Mistake(self.where(place), problem, place) for place, problem in problems]
        return DocumentInvalid(sorted(mistakes, key=lambda mistake: order.get(mistake.where, -1)))

    def having(self, place: Sequence[str], value: Json, *, where: str) -> Document:
        """This document with one entry set from elsewhere, and `where` (`--set listen.port`) to blame for it.

        Mappings on the way are made as needed. Raises DocumentInvalid where something else is in the way.
        """
        marks = {place_: mark for place_, mark in self.marks.items() if place_[: len(place)] != tuple(place)}
        root = inner = dict(_mapping(self.value, (), where))
        for depth, key in enumerate(place[:-1], start=1):
            marks.setdefault(tuple(place[:depth]), where)
            inner[key] = within = dict(_mapping(inner.get(key), tuple(place[:depth]), where))
            inner = within
        inner[place[-1]] = value
        marks[tuple(place)] = where
        return Document(self.name, root, marks)


def read(path: Path) -> Document:
    """The document in the file `path`; DocumentInvalid, with everything that is wrong, if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DocumentInvalid([Mistake(str(path), f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise DocumentInvalid([Mistake(str(path), "is not UTF-8 text")]) from error
    return read_text(text, name=str(path))


def read_text(text: str, *, name: str) -> Document:
    """The document that `text` is; DocumentInvalid, with everything that is wrong, if it is none."""
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        context = f" ({error.context})" if error.context else ""
        raise DocumentInvalid([Mistake(where, f"is not YAML: {error.problem}{context}")]) from error
    except yaml.YAMLError as error:
        raise DocumentInvalid([Mistake(name, f"is not YAML: {error}")]) from error
    reading = _Reading(name)
    value = reading.value(root, (), root) if root else None
    if reading.mistakes:
        raise DocumentInvalid(reading.mistakes)
    if value is None:
        return Document(name, {}, {(): f"{name}:1:1"})
    return Document(name, value, reading.marks)


def dotted(place: Sequence[str | int]) -> str:
    """`place` for people: `budgets[0].limit_usd`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")


def _mapping(value: Json, place: Place, where: str) -> dict[str, Json]:
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise DocumentInvalid([Mistake(where, "is a plain value, which has no entries to set", place)])


# In C where PyYAML was built with it, which its wheels are: several times as fast, and the gateway starts that much
# sooner.
_QUICK_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def _compose(text: str) -> yaml.Node | None:
    try:
        return _composed(text, _QUICK_LOADER)
    except yaml.YAMLError:
        # What is wrong is told by the other one, which points to where it begins and not to where it was noticed.
        return _composed(text, yaml.BaseLoader)


def _composed(text: str, kind: type[yaml.BaseLoader]) -> yaml.Node | None:
    # A BaseLoader resolves nothing: what a scalar means is decided below, by the rules of JSON.
    loader = kind(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


_WORDS: Mapping[str, Json] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LONGEST_INTEGER = 100
"""Digits: Python refuses to read integers of thousands of them."""


class _Reading:
    """One pass over the nodes of a document."""

    def __init__(self, name: str) -> None:
        self.marks: dict[Place, str] = {}
        self.mistakes: list[Mistake] = []
        self._name = name
        self._around: list[yaml.Node] = []

    def value(self, node: yaml.Node, place: Place, marked: yaml.Node) -> Json:
        """What `node` says; its place is remembered as that of `marked`: its key, where it has one."""
        where = self.marks[place] = self._where(marked)
        if node in self._around:
            self.mistakes.append(Mistake(where, "holds itself", place))
            return None
        self._around.append(node)
        try:
            return self._read(node, place, where)
        finally:
            self._around.pop()

    def _read(self, node: yaml.Node, place: Place, where: str) -> Json:
        match node:
            case yaml.ScalarNode(tag="tag:yaml.org,2002:str"):
                return _scalar(node)
            case yaml.SequenceNode(tag="tag:yaml.org,2002:seq"):
                return [self.value(item, (*place, index), item) for index, item in enumerate(node.value)]
            case yaml.MappingNode(tag="tag:yaml.org,2002:map"):
                return dict(self._entries(node, place))
        self.mistakes.append(
            Mistake(where, f"the tag {node.tag} is not understood here; leave it out", place)
        )
        return None

    def _entries(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Json]]:
        first: dict[str, str] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.mistakes.append(Mistake(self._where(key), "a key has to be plain text", place))
                continue
            name = str(key.value)
            if name in first:
                problem = f"is given twice, first at {first[name]}"
                self.mistakes.append(Mistake(self._where(key), problem, (*place, name)))
                continue
            first[name] = self._where(key)
            yield name, self.value(value, (*place, name), key)

    def _where(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _scalar(node: yaml.ScalarNode) -> Json:
    text = str(node.value)
    if node.style:  # quoted, or a block: text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) <= _LONGEST_INTEGER:
        return int(text)
    if _NUMBER.fullmatch(text) and abs(number := float(text)) != float("inf"):
        return number
    return text
