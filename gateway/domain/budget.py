"""Up to how much may be spent, over which stretch of time, and by whom."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.domain.money import Money
from gateway.domain.window import Span, Window


@dataclass(frozen=True, slots=True)
class TopUp:
    """A one-off addition to a budget's limit, in the window that holds `at`."""

    amount: Money
    at: float
    """Seconds since the epoch."""

    reason: str


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `limit` may be spent and held together within one window."""

    limit: Money
    per: Window
    name: str = ""
    """Another than its window's; no two budgets of one holder have the same."""

    models: frozenset[str] | None = None
    """The models that count in it, all together; None for every one."""

    alert_at: tuple[int, ...] | None = None
    """At which hundredths of the limit somebody is told; None: at those that the settings have."""

    top_ups: tuple[TopUp, ...] = ()

    @property
    def label(self) -> str:
        """What it is called where its holder is known."""
        return self.name or self.per.label

    def covers(self, model: str) -> bool:
        """Whether a generation by `model` counts in it."""
        return self.models is None or model in self.models

    def limit_in(self, span: Span) -> Money:
        """The limit, with the top-ups that were made within `span`."""
        return sum((each.amount for each in self.top_ups if span.holds(each.at)), start=self.limit)


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody with budgets: a tenant, or one of its keys."""

    tenant: str
    key_id: str
    """Empty for the tenant itself, with all below it."""

    budgets: tuple[Budget, ...]

    @property
    def name(self) -> str:
        """What it is called: `film`, or `film#1f2e3d` for a key."""
        return f"{self.tenant}#{self.key_id}" if self.key_id else self.tenant
