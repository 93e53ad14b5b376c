"""Tables for people."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime


def aligned(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()
) -> Iterator[str]:
    """Columns as wide as they have to be, whatever is in them; those whose names are in `right` end together."""
    lines = [[*header], *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def minute(moment: datetime | float | None, *, never: str = "-") -> str:
    """A moment in a table, in UTC; `never` where there is none."""
    if moment is None:
        return never
    at = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
