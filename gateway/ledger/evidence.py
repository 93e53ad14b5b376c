"""What purchases of a model cost and took of late: read from the journal through an index of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from gateway.domain.estimate import Settled
from gateway.domain.money import Money

_LATELY = 5000
"""Among so many of a model's purchases one shape is looked for, so that a rare one takes no longer than that."""

_OF_THE_MODEL = "model = :model AND state = 'settled' AND cost_reported = 1"
_OLDEST_OF_LATE = (
    f"SELECT serial FROM purchases WHERE {_OF_THE_MODEL} ORDER BY serial DESC LIMIT 1 OFFSET :lately"
)


def settled(connection: sqlite3.Connection, model: str, shape: str | None, most: int) -> Sequence[Settled]:
    """The newest of one shape, or of any; what the upstream called free or did not price is no evidence."""
    found = connection.execute(
        "SELECT cost_micros, MAX(0.0, ended_at - bought_at), ended_at FROM purchases "
        f"WHERE {_OF_THE_MODEL} AND serial > COALESCE(({_OLDEST_OF_LATE}), 0) "
        "AND cost_micros > 0 AND bought_at IS NOT NULL AND (:shape IS NULL OR shape = :shape) "
        "ORDER BY serial DESC LIMIT :most",
        {"model": model, "shape": shape, "lately": _LATELY, "most": most},
    )
    return [Settled(Money(cost), seconds, ended_at) for cost, seconds, ended_at in found]
