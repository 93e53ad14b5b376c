"""`gateway keys`"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from cyclopts import App

from gateway.app import opened_directory
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.tenants.contract import Key

keys = App(name="keys", help="Make, list and revoke tenants' keys. A running gateway knows of it at once.")


@keys.command
def create(tenant: str, *, name: str = "", options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Make a key for a tenant, and print it: the only time that it is seen.

    Parameters
    ----------
    tenant
        One of the tenants of the configuration.
    name
        What the key is for, for whoever lists it later.
    """

    async def make() -> str:
        async with opened_directory(options.settings()) as registry:
            return await registry.create(tenant, name)

    print(asyncio.run(make()))


@keys.command(name="list")
def list_(tenant: str | None = None, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """List the keys that were made, of all tenants or of one; never the keys themselves.

    Parameters
    ----------
    tenant
        One of the tenants of the configuration; all of them if it is left out.
    """

    async def look() -> list[Key]:
        async with opened_directory(options.settings()) as registry:
            return list(await registry.listed(tenant))

    print(_ROW.format("ID", "TENANT", "KEY", "CREATED", "REVOKED", "NAME"))
    for key in asyncio.run(look()):
        print(
            _ROW.format(
                key.id, key.tenant, f"{key.hint}…", _when(key.created_at), _when(key.revoked_at), key.name
            ).rstrip()
        )


@keys.command
def revoke(key: str, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """End a key, at once and for good.

    Parameters
    ----------
    key
        Its id or its beginning, as `gateway keys list` shows them, or the key itself.
    """

    async def end() -> Key:
        async with opened_directory(options.settings()) as registry:
            return await registry.revoke(key.removesuffix("…"))

    ended = asyncio.run(end())
    print(f"Revoked {ended.id} ({ended.hint}…) of tenant {ended.tenant}.")


_ROW = "{:<14}{:<16}{:<15}{:<18}{:<18}{}"


def _when(moment: float | None) -> str:
    return "-" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
