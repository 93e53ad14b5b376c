"""What amounts and moments look like in JSON: in answers, in messages and in reports alike."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.domain.generation import Json
from gateway.domain.money import Money


def money(name: str, amount: Money) -> dict[str, Json]:
    """An amount twice: for people in dollars, and exactly."""
    return {f"{name}_usd": amount.usd_number, f"{name}_micros": amount.micros}


def utc(moment: datetime | float | None) -> str | None:
    """A moment to the second, in ISO 8601; None where there is none."""
    if isinstance(moment, float | int):
        moment = datetime.fromtimestamp(moment, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def day(moment: float | None) -> str | None:
    """The date in UTC: what is known from everybody's purchases is told no more exactly than that."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")
