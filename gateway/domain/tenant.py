"""Who may ask, and up to which budget."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gateway.domain.money import Money


class Window(enum.Enum):
    """Over which stretch of time a budget counts; calendar windows are UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"

    def start(self, now: float) -> datetime | None:
        """When the window that holds `now` began; None for a window that has no beginning."""
        moment = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        match self:
            case Window.DAY:
                return moment
            case Window.MONTH:
                return moment.replace(day=1)
            case Window.TOTAL:
                return None

    def resets_at(self, now: float) -> datetime | None:
        """When the next window begins; None for a window that never ends."""
        start = self.start(now)
        match self:
            case Window.TOTAL:
                return None
            case Window.DAY:
                return start and start + timedelta(days=1)
            case Window.MONTH:
                # The 1st plus 32 days is always in the next month.
                return start and (start + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit` may be spent and held together within one window."""

    limit: Money
    per: Window


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays."""

    name: str
    budgets: tuple[Budget, ...]
    """Every one of them must have room; an empty tuple is no limit, and has to be written down to be had."""

    models: frozenset[str] | None = None
    """The models that this tenant may use; None for all."""

    private_cache: bool = False
    """Whether this tenant's generations are kept from others, and others' from it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant as it arrived: with which of its keys."""

    tenant: Tenant
    key_id: str
