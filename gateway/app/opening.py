"""The files of a gateway, opened: for itself, and for commands beside it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

from gateway.catalog.contract import Catalog
from gateway.catalog.yaml_files import load_catalog
from gateway.database.marks import Marks
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.domain.errors import CannotStart
from gateway.ledger.sqlite import SqliteLedger
from gateway.settings import Settings
from gateway.tenants.contract import Declared
from gateway.tenants.sqlite import SqliteDirectory
from gateway.tenants.yaml_files import load_tenants

SYSTEM_CLOCK: Clock = time.time  # noqa: TID251 -- here it becomes the argument that everybody else is given

LEDGER = "ledger.sqlite3"
"""The database under storage.directory: ledger, requests and tenants."""


def declared(settings: Settings) -> tuple[Catalog, Sequence[Declared]]:
    """The models and the tenants in the files that the settings name. Raises DocumentInvalid."""
    catalog = load_catalog(settings.models)
    return catalog, load_tenants(settings.tenants, models=[model.name for model in catalog])


@asynccontextmanager
async def opened_directory(
    settings: Settings, *, applying: bool = True, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[SqliteDirectory]:
    """The tenants and their keys alone, for commands; a gateway may be running on the same ledger.

    With `applying`, the file of tenants is applied where none ever was: keys can be made before the first start.
    """
    with (
        opened_database(prepared(settings.storage.directory)) as database,
        closing(SqliteDirectory(database, clock=clock)) as directory,
    ):
        if applying and not await directory.was_applied():
            _, said = declared(settings)
            await directory.apply(said, who="first use", if_other=True)
        yield directory


@asynccontextmanager
async def opened_ledger(settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[SqliteLedger]:
    """The ledger alone, for commands; a gateway may be running on it. Raises CannotStart if there is none yet."""
    with existing_database(settings.storage.directory) as database:
        yield SqliteLedger(
            database,
            clock=clock,
            owner="command",
            is_alive=lambda _owner: True,
            lease_seconds=settings.ledger.lease_seconds,
        )


@contextmanager
def opened_database(directory: Path) -> Iterator[SqliteDatabase]:
    """The database for a command: a gateway that is running on it is told what the command changes."""
    with (
        closing(Marks(directory / "marks")) as marks,
        closing(SqliteDatabase(directory / LEDGER, marks=marks)) as database,
    ):
        yield database


@contextmanager
def existing_database(directory: Path) -> Iterator[SqliteDatabase]:
    """The same, of a gateway that has run: a new one would be empty, and in perfect order. Raises CannotStart."""
    if not (directory / LEDGER).is_file():
        raise CannotStart(
            f"There is no ledger in storage.directory {directory}: no gateway has run on it yet."
        )
    with opened_database(directory) as database:
        yield database


def prepared(directory: Path) -> Path:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"storage.directory {directory} cannot be made: {error.strerror}.") from error
    return directory
