"""What is left of a budget, and until when at the present pace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Holder
from gateway.domain.window import SECONDS_PER_QUARTER, Per, Span, Window

_HOUR, _DAY = 3600, 86_400
_OUT_OF_SIGHT_SECONDS = 100 * 366 * _DAY


@dataclass(frozen=True, slots=True)
class Balance:
    """One budget, now."""

    budget: Budget
    spent: Money
    reserved: Money
    holder: Holder
    """Whose it is."""

    span: Span = Span()  # noqa: RUF009 -- a value: nothing changes it
    """What is counted."""

    recent: Money | None = None
    """What was spent and is held of the last `pace_seconds(budget.per)`; None: nobody has asked."""

    @property
    def limit(self) -> Money:
        """With the top-ups of this window."""
        return self.budget.limit_in(self.span)

    @property
    def remaining(self) -> Money:
        """What is left; less than nothing where the upstream charged more than was held, or the limit was lowered."""
        return self.limit - self.spent - self.reserved

    def runs_out_at(self, now: float) -> datetime | None:
        """When nothing is left, at the pace of `recent`, to the second; `now` where nothing is.

        None where it does not run out before it is reset, where a rolling window forgets as fast as it is filled, where
        nothing was bought of late, and where nobody has asked what was.
        """
        left = self.remaining.micros
        if left <= 0:
            return datetime.fromtimestamp(int(now), UTC)
        if not self.recent:
            return None
        window, pace = self.budget.per, pace_seconds(self.budget.per)
        if window.per is Per.ROLLING and self.recent * window.rolling_seconds <= self.limit * pace:
            return None
        seconds = left * pace // self.recent.micros
        at = int(now) + seconds
        ends = None if self.span.end is None else self.span.end * SECONDS_PER_QUARTER
        if seconds > _OUT_OF_SIGHT_SECONDS or (ends is not None and at >= ends):
            return None
        return datetime.fromtimestamp(at, UTC)


@dataclass(frozen=True, slots=True)
class Prospect:
    """One budget before and after a purchase that nobody has made."""

    before: Balance
    after: Balance
    """The same where the purchase does not count in this budget."""

    fits: bool
    resets_at: datetime | None
    """When it begins anew; where the purchase does not fit, when it has room for it. None: never, or nobody can say."""

    is_in_force: bool = True
    """False for a budget with dates whose holder has none that is in force: then nothing can be bought."""


def pace_seconds(window: Window) -> int:
    """Over how long the present pace is taken: six hours where a day counts or less, else a day."""
    short = window.per is Per.DAY or (window.per is Per.ROLLING and window.rolling_seconds <= _DAY)
    return 6 * _HOUR if short else _DAY


def remaining(holders: Iterable[Holder], balances: Iterable[Balance]) -> Money | None:
    """What the holders can still spend, whose balances these are: what the tightest budget leaves; None without a limit.

    A holder that has budgets, and none that is in force, leaves nothing. What a single request may cost is no balance,
    and left out.
    """
    counting = [balance for balance in balances if not balance.budget.is_per_request]
    in_force = {balance.holder for balance in counting}
    for holder in holders:
        if holder not in in_force and not all(budget.is_per_request for budget in holder.budgets):
            return Money.ZERO
    return min((balance.remaining for balance in counting), default=None)
