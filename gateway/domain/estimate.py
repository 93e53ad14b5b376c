"""What a request is likely to cost and to take, learned from purchases of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from gateway.domain.money import Money

Value = TypeVar("Value", Money, float)

ENOUGH = 20
"""So many settled purchases of a shape are believed against the rule of its price."""

A_FEW = 5
"""So many say what is usual; nothing is held on their word alone."""

_HELD, _USUAL, _MUCH = 97, 50, 95
"""Per cent of the purchases. Of 200 that leaves the six dearest out of what is held.

Where one bill in a hundred is odd, say five times the usual, more than two of 200 are a third of the time: held at
the 99th per cent, every purchase would then hold five times too much and refuse callers for whom there is room.
"""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one purchase."""

    cost: Money
    """As the upstream reported it: from what was only held nothing can be learned."""

    seconds: float
    """From the ticket to the end."""

    ended_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one request will cost and take, and how that is known."""

    held: Money
    """What to hold for it: seldom less than it will cost."""

    expected: Money
    """What it will cost most likely."""

    seconds_p50: float
    seconds_p95: float
    purchases: int
    """How many like it are the evidence."""

    since: float | None
    """When the oldest of them ended, in seconds since the epoch; None: there are none."""

    until: float | None
    """When the newest of them ended."""

    rule: Money
    """What the rule in the catalogue says, without any evidence."""


@dataclass(frozen=True, slots=True)
class Lately:
    """What purchases cost and took of late."""

    cost_p50: Money
    cost_p95: Money
    seconds_p50: float
    seconds_p95: float
    purchases: int
    since: float
    """When the oldest of them ended, in seconds since the epoch."""

    until: float


def lately(settled: Sequence[Settled]) -> Lately | None:
    """What is usual and what is much, of purchases in any order; None where there are too few to say."""
    if len(settled) < A_FEW:
        return None
    costs = sorted((each.cost for each in settled), key=lambda cost: cost.micros)
    seconds = sorted(each.seconds for each in settled)
    ended = [each.ended_at for each in settled]
    return Lately(
        cost_p50=_nearest_rank(costs, _USUAL),
        cost_p95=_nearest_rank(costs, _MUCH),
        seconds_p50=_nearest_rank(seconds, _USUAL),
        seconds_p95=_nearest_rank(seconds, _MUCH),
        purchases=len(settled),
        since=min(ended),
        until=max(ended),
    )


def estimate(
    rule: Money, rule_seconds: float, settled: Sequence[Settled], *, enough: int | None = ENOUGH
) -> Estimate:
    """The estimate from the newest purchases of one shape, in any order.

    Until there are `enough` (None: for ever), no less is held than the rule says, and more where some cost more. A result is always what
    one of the purchases really cost, and so never finer than a micro-dollar.
    """
    costs = sorted((each.cost for each in settled), key=lambda cost: cost.micros)
    seconds = sorted(each.seconds for each in settled)
    ended = [each.ended_at for each in settled]
    known = len(settled) >= A_FEW
    held = _nearest_rank(costs, _HELD) if costs else rule
    believed = enough is not None and len(costs) >= enough
    return Estimate(
        held=held if believed else max(rule, held),
        expected=_nearest_rank(costs, _USUAL) if known else rule,
        seconds_p50=_nearest_rank(seconds, _USUAL) if known else rule_seconds,
        seconds_p95=_nearest_rank(seconds, _MUCH) if known else rule_seconds,
        purchases=len(settled),
        since=min(ended, default=None),
        until=max(ended, default=None),
        rule=rule,
    )


def _nearest_rank(ordered: Sequence[Value], percent: int) -> Value:
    """The smallest of them that `percent` of them do not pass."""
    return ordered[-(-len(ordered) * percent // 100) - 1]
