"""What budgets leave, and whether a price fits into all that are above a caller: read from the sums, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache

from gateway.domain.balance import Balance, Prospect, pace_seconds
from gateway.domain.errors import BudgetExceeded
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Caller, Holder
from gateway.domain.window import SECONDS_PER_QUARTER, Per, Span, Window, quarter
from gateway.ledger import sums

_NEVER = datetime.max.replace(tzinfo=UTC)


def balances(connection: sqlite3.Connection, now: float, holder: Holder) -> Iterator[Balance]:
    """All budgets of the holder that are in force, but for those of a single request."""
    for budget in holder.budgets:
        balance = None if budget.is_per_request else _balance(connection, now, holder, budget)
        if balance is not None:
            yield balance


def with_pace(connection: sqlite3.Connection, now: float, balance: Balance) -> Balance:
    """The balance with what was spent and is held of late."""
    holder, budget = balance.holder, balance.budget
    lately = Span(quarter(now - pace_seconds(budget.per)))
    recent = sums.within(connection, holder.tenant, holder.key_ids, budget.models, lately)
    return replace(balance, recent=Money(sum(recent)))


def refusal(
    connection: sqlite3.Connection, now: float, caller: Caller, model: str, price: Money
) -> BudgetExceeded | None:
    """None if the price fits. Otherwise the budget that has room again last: only then does it help to come back."""
    refused = [
        each for holder in caller.holders for each in _refused(connection, now, caller, holder, model, price)
    ]
    if not refused:
        return None
    last = max(refused, key=lambda each: each.resets_at or _NEVER)
    if last.is_in_force and not last.balance.budget.is_per_request:
        last.runs_out_at = with_pace(connection, now, last.balance).runs_out_at(now)
    return last


def prospects(
    connection: sqlite3.Connection, now: float, caller: Caller, model: str, price: Money
) -> Iterator[Prospect]:
    """Every budget above the caller that is in force, those of a single request too, or stands in the way for not being."""
    for holder in caller.holders:
        # What costs nothing needs no room.
        refused = _refused(connection, now, caller, holder, model, price) if price else ()
        obstacles = {refusal.balance.budget: refusal for refusal in refused}
        for budget in holder.budgets:
            obstacle = obstacles.get(budget)
            if obstacle is not None and not obstacle.is_in_force:
                ended = obstacle.balance
                yield Prospect(ended, ended, fits=False, resets_at=obstacle.resets_at, is_in_force=False)
                continue
            balance = _balance(connection, now, holder, budget)
            if balance is None:
                continue
            before = after = with_pace(connection, now, balance)
            if budget.covers(model) and not budget.is_per_request and before.recent is not None:
                after = replace(before, reserved=before.reserved + price, recent=before.recent + price)
            resets_at = obstacle.resets_at if obstacle else budget.per.resets_at(now)
            yield Prospect(before, after, fits=obstacle is None, resets_at=resets_at)


def _refused(
    connection: sqlite3.Connection, now: float, caller: Caller, holder: Holder, model: str, price: Money
) -> Iterator[BudgetExceeded]:
    covering = [budget for budget in holder.budgets if budget.covers(model)]
    # A limit of each request is none of them all: where those that count over time are over, nothing is bought.
    counting = [budget for budget in covering if not budget.is_per_request] or covering
    if counting and all(_span(budget.per, quarter(now)) is None for budget in counting):
        begins = [(budget.per.resets_at(now) or _NEVER, budget) for budget in counting]
        at, budget = min(begins, key=lambda each: each[0])
        yield BudgetExceeded(
            caller=caller,
            balance=Balance(budget, Money.ZERO, Money.ZERO, holder, Span(0, 0)),
            price=price,
            resets_at=None if at is _NEVER else at,
            runs_out_at=None,
            in_force=False,
        )
    for budget in covering:
        balance = _balance(connection, now, holder, budget)
        if balance is not None and price > balance.remaining:
            yield BudgetExceeded(
                caller=caller,
                balance=balance,
                price=price,
                resets_at=_has_room_at(connection, now, balance, price),
                runs_out_at=None,
            )


def _balance(connection: sqlite3.Connection, now: float, holder: Holder, budget: Budget) -> Balance | None:
    """None while it is not in force."""
    span = _span(budget.per, quarter(now))
    if span is None:
        return None
    spent, held = sums.within(connection, holder.tenant, holder.key_ids, budget.models, span)
    return Balance(budget, Money(spent), Money(held), holder, span)


@lru_cache(4096)
def _span(window: Window, at: int) -> Span | None:
    """What counts within the whole of a quarter: no window turns in the middle of one."""
    return window.span(at * SECONDS_PER_QUARTER)


def _has_room_at(
    connection: sqlite3.Connection, now: float, balance: Balance, price: Money
) -> datetime | None:
    holder, budget = balance.holder, balance.budget
    if budget.per.per is not Per.ROLLING:
        return budget.per.resets_at(now)
    if price > budget.limit:
        return None
    # A top-up is forgotten as well, so it is not counted on. What is missing without it is forgotten at some time.
    missing = balance.spent + balance.reserved + price - budget.limit
    at = sums.frees_at(
        connection,
        holder.tenant,
        holder.key_ids,
        budget.models,
        balance.span,
        shortfall_micros=missing.micros,
        rolling_seconds=budget.per.rolling_seconds,
    )
    return None if at is None else datetime.fromtimestamp(at * SECONDS_PER_QUARTER, UTC)
