"""Tells of budgets before they are used up: looks at the books, and raises each alert once."""

from __future__ import annotations

import asyncio
import json
import secrets
import string
from collections.abc import Callable, Iterator, Mapping, Sequence

from gateway.alerts.contract import PROJECTED, Alert, Alerts
from gateway.domain.balance import Balance
from gateway.domain.clock import Clock
from gateway.domain.errors import BudgetExceeded
from gateway.domain.generation import Json
from gateway.domain.json_forms import money, utc
from gateway.domain.money import Money
from gateway.domain.window import Per, quarter
from gateway.ledger.contract import Statements
from gateway.telemetry.logs import log_for
from gateway.telemetry.metrics import Metrics
from gateway.tenants.contract import Keys, Tenants

_USED_UP = 100
_LEAST_USED = 10
"""Hundredths of a limit below which nothing is projected: what the first purchases of a window cost tells little."""

_AT_ONCE = 100

_TERMS = ""
"""Nobody is called that: where the mark of all budgets themselves is kept."""

_Place = tuple[str, str, str]
"""Whose budget, which of them, and at which threshold."""

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24


class BudgetWatch:
    """Compares every budget with its thresholds.

    What is used is what is spent and what is held. A threshold is reached at `used >= threshold x limit`, to the
    micro-dollar; all of it (100) also by the first request that is refused for want of room, since a limit is seldom
    met exactly. A budget is projected to be passed when it runs out before its window ends at the pace of late, and a
    tenth of it is used.
    """

    def __init__(
        self,
        *,
        tenants: Tenants,
        keys: Keys,
        statements: Statements,
        alerts: Alerts,
        metrics: Metrics,
        clock: Clock,
        mark_of: Callable[[str], int],
        thresholds: Sequence[int],
        projected: bool,
        to_be_sent: bool,
    ) -> None:
        """`thresholds` (hundredths) are for budgets that name none; `to_be_sent`: there is somewhere to send alerts to.

        `mark_of`: the number that is another one after each change of what a name stands for, `tenant:NAME` for what a
        tenant and its keys have left.
        """
        self._tenants = tenants
        self._keys = keys
        self._statements = statements
        self._alerts = alerts
        self._metrics = metrics
        self._clock = clock
        self._mark_of = mark_of
        self._marks: Mapping[str, int] = {}
        self._thresholds = tuple(thresholds)
        self._projected = projected
        self._to_be_sent = to_be_sent
        self._refused: dict[tuple[str, str, int], Balance] = {}
        self._known: dict[_Place, int] = {}
        """Since when each alert is known to have been raised, in quarters of an hour: it need not be tried again."""
        self._log = log_for("accounting")

    async def look(self) -> None:
        """Look at every budget of which something has changed since the last look: for one process of all.

        Time alone reaches no threshold: without purchases what is used and the pace only fall, and another limit, or
        another key, is a change as well. Raises StorageUnavailable, and looks at the same again the next time.
        """
        now, tenants = self._clock(), [*self._tenants]
        # Before anything is read: what changes after that is another mark.
        marks = {tenant.name: self._mark_of(f"tenant:{tenant.name}") for tenant in tenants}
        marks[_TERMS] = self._keys.revision
        before = self._marks if self._marks.get(_TERMS) == marks[_TERMS] else {}
        changed = {name for name, mark in marks.items() if before.get(name) != mark}
        holders = [tenant.holder for tenant in tenants if tenant.name in changed]
        holders += [
            caller.holder
            for caller in self._keys.callers()
            if caller.terms.budgets and caller.tenant.name in changed
        ]
        balances = await self._statements.balances_of(holders, with_pace=True)
        # Beside the loop: there may be thousands.
        reached = await asyncio.to_thread(lambda: [*self._reached(balances, now)])
        await self._raise(reached, now)
        self._marks = marks

    def note(self, refusal: BudgetExceeded) -> None:
        """A request was refused: remembered until `tell_refused`, in whichever process it was."""
        balance, price = refusal.balance, refusal.price
        # What would not fit into all of it says nothing of what is left of it.
        could_fit = price <= balance.limit or not balance.limit
        if refusal.is_in_force and could_fit and not balance.budget.is_per_request:
            place = (balance.holder.name, balance.budget.label, balance.span.start)
            self._refused.setdefault(place, balance)

    async def tell_refused(self) -> None:
        """Raise what was noted in this process. Raises StorageUnavailable, and has then forgotten nothing."""
        refused = list(self._refused.items())
        used_up = [balance for _, balance in refused if _USED_UP in self._thresholds_of(balance)]
        reached = [(balance, str(_USED_UP)) for balance in used_up if self._is_news(balance, str(_USED_UP))]
        await self._raise(reached, self._clock())
        for place, _ in refused:
            del self._refused[place]

    def _reached(self, balances: Sequence[Balance], now: float) -> Iterator[tuple[Balance, str]]:
        """All that is reached and is not known to have been told."""
        for balance in balances:
            for threshold in self._thresholds_reached(balance, now):
                if self._is_news(balance, threshold):
                    yield balance, threshold

    def _thresholds_reached(self, balance: Balance, now: float) -> Iterator[str]:
        used, limit = balance.spent + balance.reserved, balance.limit
        if not limit:
            # Nothing may be spent: what there is to tell is the first request that would.
            return
        for threshold in self._thresholds_of(balance):
            if used * 100 >= limit * threshold:
                yield str(threshold)
        is_silent = balance.budget.alert_at == ()
        if self._projected and not is_silent and _will_be_passed(balance, used, now):
            yield PROJECTED

    def _thresholds_of(self, balance: Balance) -> Sequence[int]:
        own = balance.budget.alert_at
        return self._thresholds if own is None else own

    def _is_news(self, balance: Balance, threshold: str) -> bool:
        return self._known.get(_place(balance, threshold), -1) < balance.span.start

    async def _raise(self, reached: Sequence[tuple[Balance, str]], now: float) -> None:
        paths = {tenant.name: tenant.path for tenant in self._tenants} if reached else {}
        # The first look at a ledger with a history finds thousands: in pieces, so that nobody waits for all of them.
        for start in range(0, len(reached), _AT_ONCE):
            some = reached[start : start + _AT_ONCE]
            balances = {_alert(balance, threshold, now, paths): balance for balance, threshold in some}
            raised = await self._alerts.raise_once([*balances], to_be_sent=self._to_be_sent)
            for balance, threshold in some:
                self._known[_place(balance, threshold)] = balance.span.start
            for alert in raised:
                self._tell(alert, balances[alert], now)

    def _tell(self, alert: Alert, balance: Balance, now: float) -> None:
        self._metrics.alerts.labels(alert.tenant, alert.budget, alert.threshold).inc()
        self._log.warning(
            "budget threshold reached",
            alert=alert.id,
            tenant=alert.tenant,
            key_id=alert.key_id,
            budget=alert.budget,
            threshold=alert.threshold,
            limit_usd=str(balance.limit.usd),
            spent_usd=str(balance.spent.usd),
            reserved_usd=str(balance.reserved.usd),
            runs_out_at=utc(balance.runs_out_at(now)),
        )


def _place(balance: Balance, threshold: str) -> _Place:
    return balance.holder.name, balance.budget.label, threshold


def _will_be_passed(balance: Balance, used: Money, now: float) -> bool:
    # Of a window without an end nothing comes "before it ends"; what is used up is no projection.
    if balance.span.end is None or balance.remaining <= Money.ZERO:
        return False
    return used * 100 >= balance.limit * _LEAST_USED and balance.runs_out_at(now) is not None


def _alert(balance: Balance, threshold: str, now: float, paths: Mapping[str, str]) -> Alert:
    holder, budget = balance.holder, balance.budget
    is_rolling = budget.per.per is Per.ROLLING
    data: dict[str, Json] = {
        "tenant": holder.tenant,
        "path": paths.get(holder.tenant, holder.tenant),
        "key_id": holder.key_id or None,
        "budget": budget.label,
        "window": budget.per.label,
        "threshold_percent": None if threshold == PROJECTED else int(threshold),
        **money("limit", balance.limit),
        **money("spent", balance.spent),
        **money("reserved", balance.reserved),
        **money("remaining", balance.remaining),
        "resets_at": utc(budget.per.resets_at(now)),
        "runs_out_at": utc(balance.runs_out_at(now)),
    }
    kind = "budget.projected_to_run_out" if threshold == PROJECTED else "budget.threshold_reached"
    return Alert(
        id="msg_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH)),
        raised_at=now,
        tenant=holder.tenant,
        key_id=holder.key_id,
        budget=budget.label,
        threshold=threshold,
        window_start=quarter(now) if is_rolling else balance.span.start,
        same_since=balance.span.start,
        message=json.dumps({"type": kind, "timestamp": utc(now), "data": data}),
    )
