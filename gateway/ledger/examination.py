"""Whether the books are in order: every figure derived anew from the purchases, and held against what is kept."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from gateway.ledger import sqlite_transfers, sums
from gateway.ledger.contract import Discrepancy


def discrepancies(connection: sqlite3.Connection) -> Sequence[Discrepancy]:
    """All that is not as it has to be; looks at every purchase."""
    found = []
    (integrity,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if integrity != "ok":
        found.append(Discrepancy("the database file", integrity))
    found += sums.discrepancies(connection)
    found += sqlite_transfers.discrepancies(connection)
    for identity, fingerprint, cost_micros, kept in connection.execute(
        "SELECT id, fingerprint, cost_micros, generation FROM purchases WHERE state = 'settled'"
    ):
        generation = json.loads(kept)
        if generation.get("fingerprint") != fingerprint:
            found.append(Discrepancy(f"purchase {identity}", "its generation is another request's"))
        if generation.get("cost_micros") != cost_micros:
            found.append(Discrepancy(f"purchase {identity}", "its generation cost something else"))
    for (identity,) in connection.execute(
        "SELECT id FROM purchases WHERE serial NOT IN (SELECT serial FROM purchase_parameters)"
    ):
        found.append(Discrepancy(f"purchase {identity}", "what was asked for is not there"))
    for ticket, count in connection.execute(
        "SELECT ticket, COUNT(*) FROM purchases WHERE ticket IS NOT NULL GROUP BY ticket HAVING COUNT(*) > 1"
    ):
        found.append(Discrepancy(f"ticket {ticket}", f"{count} purchases have it"))
    return found
