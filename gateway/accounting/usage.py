"""Who has used how much: the ledger, the tallies and the transfers, put together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.accounting.asking import Asked, By
from gateway.domain.balance import Balance
from gateway.domain.clock import Clock
from gateway.domain.money import Money
from gateway.domain.tenant import Party
from gateway.ledger.contract import Statements
from gateway.ledger.reports import Booked, Place, Reports
from gateway.ledger.transfers import Moved, Transfers
from gateway.requests.contract import Tallies, Tally
from gateway.tenants.contract import Keys, Tenants


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is counted."""

    booked: Booked = field(default_factory=Booked)
    moved: Moved = field(default_factory=Moved)
    tally: Tally = field(default_factory=Tally)

    def __add__(self, other: Figures) -> Figures:
        return Figures(self.booked + other.booked, self.moved + other.moved, self.tally + other.tally)

    @property
    def net(self) -> Money:
        """What was spent, with what is owed to others and without what others owe. Over everybody it is what was spent."""
        return self.booked.spent + self.moved.charged - self.moved.credited


AMOUNTS: Mapping[str, Callable[[Figures], Money]] = {
    "spent": lambda figures: figures.booked.spent,
    "reserved": lambda figures: figures.booked.reserved,
    "unknown": lambda figures: figures.booked.unknown,
    "lost": lambda figures: figures.booked.lost,
    "saved_by_hits": lambda figures: figures.tally.saved_by_hits,
    "saved_by_joining": lambda figures: figures.tally.saved_by_joining,
    "charged": lambda figures: figures.moved.charged,
    "credited": lambda figures: figures.moved.credited,
    "net": lambda figures: figures.net,
}
"""What each column with money has."""

COUNTS: Mapping[str, Callable[[Figures], int]] = {
    "hits": lambda figures: figures.tally.hits,
    "misses": lambda figures: figures.tally.misses,
    "collapsed": lambda figures: figures.tally.collapsed,
    "bypasses": lambda figures: figures.tally.bypasses,
}
"""What each column with a number of answers has."""


@dataclass(frozen=True, slots=True)
class Line:
    """What has one organisation, team, key, model and day in common, as far as was asked for."""

    group: tuple[str, ...]
    """Their names, in the order in which they were asked for."""

    figures: Figures


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to what was asked."""

    asked: Asked
    made_at: float
    lines: Sequence[Line]
    """In the order of their groups; none where nothing was asked for to tell them apart."""

    total: Figures
    budgets: Sequence[Balance]
    """Every budget of those it is about, as it stands when the report is made; none where lines are told apart."""


class Usage:
    """Makes reports. Nobody who buys waits for one."""

    def __init__(
        self,
        *,
        reports: Reports,
        transfers: Transfers,
        tallies: Tallies,
        statements: Statements,
        tenants: Tenants,
        keys: Keys,
        clock: Clock,
    ) -> None:
        self._reports = reports
        self._transfers = transfers
        self._tallies = tallies
        self._statements = statements
        self._tenants = tenants
        self._keys = keys
        self._clock = clock

    async def report(self, asked: Asked) -> Report:
        """Raises TenantUnknown for a tenant that there is not, and of which the books know nothing either."""
        spans = asked.spans
        # Before the transfers: whoever hands over hits to be counted hands over what they cost.
        tallies = await self._tallies.by_key(spans)
        moved = await self._transfers.moved(spans)
        booked = await self._reports.booked(spans)
        lines, total = await asyncio.to_thread(_added_up, asked, booked, moved, tallies)
        if asked.tenant is not None and not lines:
            self._tenants.find(asked.tenant)
        budgets = [] if asked.by else await self._budgets(asked.tenant)
        return Report(asked, self._clock(), lines if asked.by else [], total, budgets)

    async def _budgets(self, tenant: str | None) -> Sequence[Balance]:
        everybody = [
            *((each.path.split("/"), each.holder) for each in self._tenants),
            *((caller.tenant.path.split("/"), caller.holder) for caller in self._keys.callers()),
        ]
        wanted = [
            (path, holder)
            for path, holder in everybody
            if holder.budgets and (tenant is None or tenant in path)
        ]
        # Everybody behind the one above it, and keys behind their tenant.
        wanted.sort(key=lambda each: (each[0], bool(each[1].key_id)))
        return await self._statements.balances_of([holder for _, holder in wanted], with_pace=True)


def _added_up(
    asked: Asked, booked: Mapping[Place, Booked], moved: Mapping[Place, Moved], tallies: Mapping[Place, Tally]
) -> tuple[Sequence[Line], Figures]:
    days = [str(day) for day in asked.days]
    total, groups = Figures(), dict[tuple[str, ...], Figures]()
    for place in {*booked, *moved, *tallies}:
        party, model, number = place
        if asked.tenant is not None and asked.tenant not in party.path.split("/"):
            continue
        figures = Figures(booked.get(place, Booked()), moved.get(place, Moved()), tallies.get(place, Tally()))
        group = tuple(_name(by, party, model, days[number]) for by in asked.by)
        groups[group] = groups.get(group, Figures()) + figures
        total += figures
    return [Line(group, groups[group]) for group in sorted(groups)], total


def _name(by: By, party: Party, model: str, day: str) -> str:
    match by:
        case By.ORGANISATION:
            return party.organisation
        case By.TEAM:
            return party.path
        case By.KEY:
            return party.key_id
        case By.MODEL:
            return model
        case By.DAY:
            return day
