"""`gateway ledger`"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App

from gateway.app.opening import opened_ledger
from gateway.cli.options import FILE_AND_ENVIRONMENT, Options
from gateway.ledger.contract import Discrepancy

ledger = App(name="ledger", help="Examine the ledger, or copy it. A gateway may be running on it.")


@ledger.command
def verify(options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Derive every balance anew from the purchases. Ends with 1, and a line for each place where it does not fit."""

    async def examine() -> Sequence[Discrepancy]:
        async with opened_ledger(options.settings()) as books:
            return await books.verify()

    try:
        discrepancies = asyncio.run(examine())
    except sqlite3.DatabaseError as error:
        discrepancies = [Discrepancy("the database file", str(error))]
    if discrepancies:
        for discrepancy in discrepancies:
            print(f"{discrepancy.where}: {discrepancy.problem}")
        sys.exit(1)
    print("The ledger is in order: every balance follows from its purchases.")


@ledger.command
def backup(file: Path, *, options: Options = FILE_AND_ENVIRONMENT) -> None:
    """Copy the ledger, whole and consistent, to a new file: purchases, requests and the hashes of keys.

    Parameters
    ----------
    file
        Where to. Nothing may be there yet.
    """

    async def copy() -> None:
        async with opened_ledger(options.settings()) as books:
            await books.backup(file)

    # What callers asked for is in it: for its owner alone.
    os.umask(0o077)
    try:
        asyncio.run(copy())
    except (OSError, sqlite3.Error) as error:
        sys.exit(f"gateway: the ledger was not copied to {file}: {error}")
    print(f"Copied the ledger to {file} ({file.stat().st_size} bytes).")
