"""Tenants, as config/tenants.yaml declares them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gateway.documents.pydantic_models import parse
from gateway.documents.spelling import remedy
from gateway.documents.yaml_files import Document, Place, read
from gateway.tenants.contract import Declared
from gateway.tenants.declarations import (
    MODELS_LISTED,
    Reading,
    TenantEntry,
    Weekday,
    Zone,
    mistakes_in_entry,
    mistakes_in_keys,
    mistakes_in_name,
    mistakes_in_tree,
)


class TenantsFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    zone: Zone = "UTC"
    week_starts: Weekday = "monday"
    groups: dict[str, list[str]] = {}
    tenants: dict[str, TenantEntry]


def load_tenants(path: Path, *, models: Collection[str]) -> Sequence[Declared]:
    """The tenants in the file `path`, none of which may name a model outside `models`.

    A file stands by itself: parents are in it, too. Raises DocumentInvalid with every mistake that there is.
    """
    return tenants_in(read(path), models=models)


def tenants_in(document: Document, *, models: Collection[str]) -> Sequence[Declared]:
    """The same of a file that was read already, or came over the wire."""
    file = parse(document, TenantsFile, entry="entry")
    reading = Reading(zone=file.zone, week_starts=file.week_starts, groups=file.groups)
    declared = {name: reading.declared(name, entry) for name, entry in file.tenants.items()}
    if mistakes := [*_mistakes(file, declared, models)]:
        raise document.invalid(mistakes)
    return [*declared.values()]


def _mistakes(
    file: TenantsFile, declared: dict[str, Declared], models: Collection[str]
) -> Iterator[tuple[Place, str]]:
    for group, members in file.groups.items():
        if group in models:
            yield ("groups", group), f"{group} is a model: call the group something else"
        for index, model in enumerate(members):
            if model not in models:
                yield (
                    ("groups", group, index),
                    f"unknown model {model}{remedy(model, models, otherwise=MODELS_LISTED)}",
                )
    if not file.tenants:
        # Whom a file leaves out it removes: what a template made of nothing would lock everybody out.
        yield ("tenants",), "names nobody, and would remove everybody: name at least one"
    known = {*models, *file.groups}
    for name, entry in file.tenants.items():
        yield from mistakes_in_name(name, ("tenants", name))
        yield from mistakes_in_entry(entry, ("tenants", name), known)
    for name, problem in mistakes_in_tree(declared):
        yield ("tenants", name, "parent"), problem
    for name, index, problem in mistakes_in_keys(declared):
        yield ("tenants", name, "keys", index, "hash"), problem
