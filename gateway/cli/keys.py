"""`gateway keys`"""

from __future__ import annotations

import asyncio
import json as json_
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal, NoReturn

from cyclopts import App, Parameter

from gateway.app.opening import SYSTEM_CLOCK, opened_directory
from gateway.catalog.yaml_files import load_catalog
from gateway.cli.options import FILE_AND_ENVIRONMENT, Flag, Options, whoever_runs_this
from gateway.cli.tables import aligned, minute
from gateway.documents.yaml_files import DocumentInvalid, Mistake
from gateway.domain.generation import Json
from gateway.http import members
from gateway.tenants import key_format
from gateway.tenants.contract import Key
from gateway.tenants.declarations import one_line, terms_from_json

keys = App(
    name="keys", help="Make, list, rotate and revoke tenants' keys. A running gateway knows of it at once."
)

Several = Annotated[tuple[str, ...], Parameter(negative=())]


@keys.command
def create(
    tenant: str,
    *,
    name: str = "",
    role: Literal["caller", "reader", "admin"] = "caller",
    models: Several = (),
    budget: Several = (),
    rate: str | None = None,
    burst: int | None = None,
    expires: str | None = None,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Make a key for a tenant, and print it: the only time that it is seen.

    Parameters
    ----------
    tenant
        One of the tenants of the gateway.
    name
        What the key is for, for whoever lists it later.
    role
        caller buys; reader looks at usage, models and requests; admin administers tenants and keys as well.
    models
        The model that it may ask for, of those that its tenant may; may be repeated.
    budget
        What may be spent with it: 5/day, 20/month, 50/rolling 30d, 100/total; may be repeated.
    rate
        How often it may be used: 60/minute; of second, minute, hour and day.
    burst
        How many of these may come at once; all of them, if it is left out.
    expires
        When it ends: a length (12h, 30d, 4w) or a day (2026-12-31, where UTC has it begin).
    """
    called = _line("--name", name)
    settings = options.settings()
    said: dict[str, Json] = {"role": role}
    if models:
        said["models"] = [*models]
    if budget:
        said["budgets"] = [_budget(each) for each in budget]
    if rate is not None:
        said["rate"] = _rate(rate, burst)
    elif burst is not None:
        _refuse("--burst goes with --rate: say how often on average.")
    ends = None if expires is None else _end(expires)
    if ends is not None and ends <= SYSTEM_CLOCK():
        _refuse(f"--expires {expires} is over: say a later day, or a length such as 30d.")
    known = [model.name for model in load_catalog(settings.models)] if models else None
    try:
        terms = replace(terms_from_json(said, models=known), expires_at=ends)
    except DocumentInvalid as error:
        by_member = {
            "models": ("--models", models),
            "budgets": ("--budget", budget),
            "rate": ("--rate", (rate or "",)),
        }
        _refuse("\n".join(_told(mistake, by_member) for mistake in error.mistakes))

    async def make() -> str:
        async with opened_directory(settings) as directory:
            return await directory.create(tenant, called, terms=terms, who=whoever_runs_this())

    print(asyncio.run(make()))


@keys.command(name="list")
def list_(
    tenant: str | None = None,
    *,
    json: Flag = False,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """List the keys that were made, of all tenants or of one; never the keys themselves.

    Parameters
    ----------
    tenant
        One of the tenants of the gateway; all of them if it is left out.
    json
        Print all that is known of them as JSON, as GET /admin/keys has it.
    """

    async def look() -> Sequence[Key]:
        async with opened_directory(options.settings()) as directory:
            found = await directory.listed(tenant)
            if tenant is not None and not found:
                directory.find(tenant)
            return found

    found = asyncio.run(look())
    if json:
        print(json_.dumps([members.key(key) for key in found], indent=2, ensure_ascii=False))
        return
    for line in aligned(_HEADER, map(_cells, found)):
        print(line)


@keys.command
def rotate(key: str, *, overlap: str = "24h", options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Make a key in place of another, with the same name and terms, and print it: the only time that it is seen.

    Parameters
    ----------
    key
        The old key: its id or its beginning, as `gateway keys list` shows them, or the key itself.
    overlap
        How long the old one stays good: 24h, 7d; 0h ends it at once.
    """
    overlap_seconds = _length(overlap)
    if overlap_seconds is None:
        _refuse(f"--overlap {overlap}: not a length such as 24h or 7d.")

    async def make() -> str:
        async with opened_directory(options.settings()) as directory:
            return await directory.rotate(
                key.removesuffix("…"), overlap_seconds=overlap_seconds, who=whoever_runs_this()
            )

    print(asyncio.run(make()))


@keys.command
def expire(key: str, *, at: str, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Say when a key ends.

    Parameters
    ----------
    key
        Its id or its beginning, as `gateway keys list` shows them, or the key itself.
    at
        A length from now (12h, 30d, 4w) or a day (2026-12-31, where UTC has it begin); never.
    """
    ends = None if at == "never" else _end(at)

    async def amend() -> Key:
        async with opened_directory(options.settings()) as directory:
            return await directory.amend(
                key.removesuffix("…"),
                change=lambda terms: replace(terms, expires_at=ends),
                who=whoever_runs_this(),
            )

    amended = asyncio.run(amend())
    print(
        f"Key {amended.id} ({amended.hint}…) of tenant {amended.tenant} ends: {minute(ends, never='never')}."
    )


@keys.command
def label(key: str, name: str, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Say otherwise what a key is for.

    Parameters
    ----------
    key
        Its id or its beginning, as `gateway keys list` shows them, or the key itself.
    name
        What the key is for, for whoever lists it later.
    """
    said = _line("NAME", name)

    async def amend() -> Key:
        async with opened_directory(options.settings()) as directory:
            return await directory.amend(key.removesuffix("…"), name=said, who=whoever_runs_this())

    amended = asyncio.run(amend())
    print(f"Key {amended.id} ({amended.hint}…) of tenant {amended.tenant} is called: {amended.name}.")


@keys.command
def revoke(key: str, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """End a key, at once and for good.

    Parameters
    ----------
    key
        Its id or its beginning, as `gateway keys list` shows them, or the key itself.
    """

    async def end() -> Key:
        async with opened_directory(options.settings()) as directory:
            return await directory.revoke(key.removesuffix("…"), who=whoever_runs_this())

    ended = asyncio.run(end())
    print(f"Revoked {ended.id} ({ended.hint}…) of tenant {ended.tenant}.")


@keys.command(name="hash")
def hash_(*, new: Flag = False) -> None:
    """Print what a file of tenants says of a key that was made elsewhere; the key itself is kept nowhere.

    Parameters
    ----------
    new
        Make a key, and print it before its hash. Without this, the key is read from standard input.
    """
    if new:
        key = key_format.made()
        print(key)
    else:
        key = sys.stdin.readline().strip()
        if not key_format.is_well_formed(key):
            _refuse(
                f"what was read is no key of a gateway ({key_format.PREFIX}, 39 letters and digits, the last of which are a "
                "checksum); `gateway keys hash --new` makes one."
            )
    print(key_format.hash_text(key))


_HEADER = ("ID", "TENANT", "KEY", "ROLE", "CREATED", "USED", "EXPIRES", "REVOKED", "NAME")


def _cells(key: Key) -> Sequence[object]:
    moments = (key.created_at, key.last_used_at, key.terms.expires_at, key.revoked_at)
    return (key.id, key.tenant, f"{key.hint}…", key.terms.role.value, *map(minute, moments), key.name)


def _line(called: str, text: str) -> str:
    try:
        return one_line(text)
    except ValueError as error:
        _refuse(f"{called} {error}.")


def _told(mistake: Mistake, said: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """What is wrong, with the option of which it is said."""
    member, *within = mistake.place
    option, values = said[str(member)]
    number = next((step for step in within if isinstance(step, int)), 0)
    words = [step for step in within if isinstance(step, str)]
    return ": ".join([f"{option} {values[number]}", *words, mistake.problem])


def _budget(text: str) -> Json:
    limit, slash, window = text.partition("/")
    if not slash:
        _refuse(f"--budget {text}: not an amount and a window such as 5/day.")
    if window.startswith("rolling"):
        return {"limit_usd": limit, "rolling": window.removeprefix("rolling").strip(" -")}
    return {"limit_usd": limit, "per": window}


def _rate(text: str, burst: int | None) -> Json:
    requests, _, per = text.partition("/")
    if not requests.isdecimal():
        _refuse(f"--rate {text}: not a number of requests in a time, such as 60/minute.")
    return {"requests": int(requests), "per": per, "burst": burst}


def _end(text: str) -> float:
    seconds = _length(text)
    if seconds is not None:
        return SYSTEM_CLOCK() + seconds
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        _refuse(f"{text}: neither a length such as 12h, 30d, 4w nor a day such as 2026-12-31.")


def _length(text: str) -> float | None:
    hours = {"h": 1, "d": 24, "w": 168}
    match = re.fullmatch(r"([0-9]{1,5})([hdw])", text)
    return None if match is None else int(match[1]) * hours[match[2]] * 3600.0


def _refuse(why: str) -> NoReturn:
    sys.exit(f"gateway: {why}")
