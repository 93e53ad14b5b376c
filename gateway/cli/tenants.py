"""`gateway tenants`"""

from __future__ import annotations

import asyncio
import json as json_
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import yaml
from cyclopts import App

from gateway.app.opening import declared, opened_directory
from gateway.cli.options import FILE_AND_ENVIRONMENT, Count, Flag, Options, whoever_runs_this
from gateway.cli.tables import aligned, minute
from gateway.domain.generation import Json
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Tenant, TopUp
from gateway.http import members
from gateway.settings import Settings
from gateway.tenants.contract import AuditEntry, Change, Declared
from gateway.tenants.declarations import changes, declared_from_json, declared_to_json, one_line

tenants = App(
    name="tenants", help="Apply, list, move and top up tenants. A running gateway knows of it at once."
)

_AUDIT = ("SERIAL", "AT", "WHO", "ACTION", "WHAT")


@tenants.command
def apply(file: Path, *, dry_run: Flag = False, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Let a file be what is said of tenants, and show what is different.

    Parameters
    ----------
    file
        The file, as config/tenants.example.yaml shows it.
    dry_run
        Show only; nothing is changed.
    """
    settings = options.having(f"tenants={file.absolute()}").settings()
    _show(asyncio.run(applied(settings, who=whoever_runs_this(), dry_run=dry_run)), dry_run=dry_run)


async def applied(settings: Settings, *, who: str, dry_run: bool = False) -> Sequence[Change]:
    """Apply the file of tenants that the settings name: what is different now. Raises DocumentInvalid."""
    _, said = await asyncio.to_thread(declared, settings)
    async with opened_directory(settings, applying=False) as directory:
        return await directory.apply(said, who=who, dry_run=dry_run)


@tenants.command
def export(*, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Print what is in force as a file that can be applied: how a change made otherwise gets into version control."""

    async def look() -> Sequence[Declared]:
        async with opened_directory(options.settings()) as directory:
            return await directory.declared()

    said = {"tenants": {each.name: declared_to_json(each) for each in asyncio.run(look())}}
    print(yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110), end="")


@tenants.command(name="list")
def list_(*, json: Flag = False, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """List the tenants, each below its parent, with its budgets.

    Parameters
    ----------
    json
        Print what is said of them as JSON, in the form of a file that can be applied.
    """

    async def look() -> tuple[Sequence[Tenant], Json]:
        async with opened_directory(options.settings()) as directory:
            said: Json = {each.name: declared_to_json(each) for each in await directory.declared()}
            return [*directory], {"tenants": said}

    found, said = asyncio.run(look())
    if json:
        print(json_.dumps(said, indent=2))
        return
    for tenant in sorted(found, key=lambda tenant: tenant.path.split("/")):
        budgets = "; ".join(map(_budget, tenant.budgets)) or "no limit of its own"
        print(f"{'  ' * (len(tenant.chain) - 1) + tenant.name:<30}  {budgets}")


@tenants.command
def show(name: str, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Show everything that is said of one tenant.

    Parameters
    ----------
    name
        The tenant, as `gateway tenants list` shows it.
    """

    async def look() -> Tenant:
        async with opened_directory(options.settings()) as directory:
            return directory.find(name)

    for fact, value in _facts(asyncio.run(look())):
        print(f"{fact:<10}{value}")


@tenants.command
def move(
    name: str,
    *,
    to: str | None = None,
    to_the_top: Flag = False,
    dry_run: Flag = False,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Put a tenant, with all below it, below another. What it has spent stays its own, and where it was spent.

    Parameters
    ----------
    name
        The tenant.
    to
        Below whom.
    to_the_top
        Below nobody.
    dry_run
        Show only; nothing is changed.
    """
    if (to is None) != to_the_top:
        _refuse("say one of --to and --to-the-top.")

    async def change() -> Sequence[Change]:
        async with opened_directory(options.settings()) as directory:
            return await directory.move(name, parent=to, who=whoever_runs_this(), dry_run=dry_run)

    _show(asyncio.run(change()), dry_run=dry_run)


@tenants.command
def top_up(
    name: str,
    *,
    usd: str,
    reason: str,
    budget: str | None = None,
    key: str | None = None,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Add to a budget once, in the window that it is in now.

    Parameters
    ----------
    name
        The tenant.
    usd
        How much, in dollars.
    reason
        Why; kept in the audit log.
    budget
        Which of its budgets, as `gateway tenants show` calls it; may be left out where there is one.
    key
        One of its keys, whose budget it is, by id or beginning.
    """
    if not reason.strip():
        _refuse("--reason is empty: say why.")
    try:
        one_line(reason)
    except ValueError as error:
        _refuse(f"--reason {error}.")

    async def add() -> TopUp:
        async with opened_directory(options.settings()) as directory:
            return await directory.top_up(
                name, _amount(usd), reason=reason, who=whoever_runs_this(), budget=budget, key=key
            )

    print(f"Added {asyncio.run(add()).amount} to {'the key' if key else name}.")


@tenants.command
def audit(
    *,
    limit: Count = 50,
    json: Flag = False,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Show who changed what of tenants and keys, newest first.

    Parameters
    ----------
    limit
        At most so many changes.
    json
        Print them as JSON, as GET /admin/audit has them: with what was said before and after each.
    """

    async def look() -> Sequence[AuditEntry]:
        async with opened_directory(options.settings()) as directory:
            return await directory.audit(limit=limit)

    found = asyncio.run(look())
    if json:
        told = [members.audit_entry(entry) for entry in found]
        print(json_.dumps(told, indent=2, ensure_ascii=False))
        return
    rows = (
        (
            entry.serial,
            minute(entry.at),
            entry.who,
            entry.action,
            what,
        )
        for entry in found
        for what in _told(entry)
    )
    for line in aligned(_AUDIT, rows, right=("SERIAL",)):
        print(line)


def _told(entry: AuditEntry) -> Iterator[str]:
    """What was changed, a line for each thing."""
    if entry.action == "tenant changed":
        said = [{entry.what: declared_from_json(entry.what, each)} for each in (entry.before, entry.after)]
        for change in changes(*said):
            yield f"{change.what}: {_difference(change.before, change.after)}"
    else:
        yield f"{entry.what}  {_difference(entry.before, entry.after)}".strip()


def _show(made: Sequence[Change], *, dry_run: bool) -> None:
    for change in made:
        sign = "+" if change.before is None else "-" if change.after is None else "~"
        print(f"{sign} {change.what}: {_difference(change.before, change.after)}")
    many = f"{len(made)} change{'s' * (len(made) != 1)}" if made else "no change"
    print(f"{many}; dry run: nothing was changed." if dry_run and made else f"{many}.")


def _difference(before: Json, after: Json) -> str:
    if before is None or after is None:
        return _text(after if before is None else before)
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        return "; ".join(f"{name} {_text(before.get(name))} -> {_text(after.get(name))}" for name in names)
    return f"{_text(before)} -> {_text(after)}"


def _text(value: Json) -> str:
    match value:
        case None:
            return "-"
        case dict():
            return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
        case list():
            return "[" + "; ".join(map(_text, value)) + "]"
    return str(value)


def _facts(tenant: Tenant) -> Iterator[tuple[str, str]]:
    yield "tenant", tenant.name
    yield "path", tenant.path
    yield (
        "models",
        "all that those above it may" if tenant.models is None else ", ".join(sorted(tenant.models)),
    )
    scope = tenant.cache_scope
    yield "cache", f"private to {scope}" if scope else "shared"
    for holder in tenant.chain:
        for budget in holder.budgets:
            yield "budget", f"{holder.name}: {_budget(budget)}"
            for added in budget.top_ups:
                at = minute(added.at)
                yield "top-up", f"{holder.name}: {added.amount} at {at}: {added.reason}"


def _budget(budget: Budget) -> str:
    window = budget.per
    said = [f"{budget.limit} per {window.label}" if budget.limit else f"nothing per {window.label}"]
    if window.zone != "UTC":
        said.append(f"in {window.zone}")
    if window.first_day is not None:
        said.append(f"from {window.first_day}")
    if window.last_day is not None:
        said.append(f"to {window.last_day}")
    if budget.models is not None:
        said.append(f"for {', '.join(sorted(budget.models))}")
    if budget.name:
        said.append(f"({budget.name})")
    return " ".join(said)


def _amount(usd: str) -> Money:
    try:
        amount = Money.exactly(usd)
    except ValueError:
        amount = Money.ZERO
    if amount <= Money.ZERO:
        _refuse(f"--usd {usd}: not an amount of dollars such as 50 or 12.50.")
    return amount


def _refuse(why: str) -> NoReturn:
    sys.exit(f"gateway: {why}")
