"""Who owes whom, and the reports that say so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal

from gateway.accounting.usage import Usage
from gateway.app.opening import SYSTEM_CLOCK, opened_database, opened_directory, opened_ledger
from gateway.database.sqlite import SqliteDatabase
from gateway.domain.clock import Clock
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_reports import SqliteReports
from gateway.ledger.sqlite_transfers import SqliteTransfers
from gateway.requests.sqlite import SqliteTallies
from gateway.settings import Settings
from gateway.tenants.sqlite import SqliteDirectory


def transfers_in(database: SqliteDatabase, settings: Settings) -> SqliteTransfers:
    """The journal of what tenants owe each other; the ledger's tables have to be there."""
    ours = settings.chargeback
    return SqliteTransfers(
        database,
        split=ours.payers == "split",
        # A float stands for the shortest decimal that names it.
        hit_price=Decimal(repr(ours.hit_price)),
    )


def opened_transfers(database: SqliteDatabase, settings: Settings, stack: AsyncExitStack) -> SqliteTransfers:
    """The same, written down when `stack` is left: after everything that was put on it later has handed over its hits."""
    transfers = transfers_in(database, settings)
    stack.push_async_callback(transfers.flush)
    return transfers


def usage_of(
    database: SqliteDatabase,
    ledger: SqliteLedger,
    transfers: SqliteTransfers,
    tallies: SqliteTallies,
    tenants: SqliteDirectory,
    clock: Clock,
) -> Usage:
    return Usage(
        reports=SqliteReports(database),
        transfers=transfers,
        tallies=tallies,
        statements=ledger,
        tenants=tenants,
        keys=tenants,
        clock=clock,
    )


def upstream_name(settings: Settings) -> str:
    """Whose invoice is divided."""
    return settings.upstream.kind.capitalize()


@asynccontextmanager
async def opened_usage(settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Usage]:
    """The reports alone, for commands; a gateway may be running on the same ledger.

    Raises CannotStart if there is no ledger yet.
    """
    async with opened_ledger(settings, clock=clock) as ledger, opened_directory(settings) as tenants:
        with opened_database(settings.storage.directory) as database:
            transfers, tallies = transfers_in(database, settings), SqliteTallies(database)
            yield usage_of(database, ledger, transfers, tallies, tenants, clock)
