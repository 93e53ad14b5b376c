"""What the metrics read of the books at the moment somebody looks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.blobs.disk import DiskBlobStore
from gateway.cache.disk import DiskGenerationCache
from gateway.domain.balance import Balance
from gateway.domain.money import Money
from gateway.ledger.contract import State
from gateway.ledger.sqlite import SqliteLedger
from gateway.requests.sqlite import SqliteTallies
from gateway.telemetry.metrics import BudgetReading, Reading
from gateway.tenants.contract import Tenants


async def reading(
    tenants: Tenants,
    ledger: SqliteLedger,
    tallies: SqliteTallies,
    cache: DiskGenerationCache,
    blobs: DiskBlobStore,
    now: float,
) -> Reading:
    reserved: dict[str, Money] = {tenant.name: Money.ZERO for tenant in tenants}
    for (tenant_name, _), amount in (await ledger.reserved()).items():
        reserved[tenant_name] = reserved.get(tenant_name, Money.ZERO) + amount
    saved: dict[tuple[str, str, str], Money] = {}
    for place, tally in (await tallies.totals()).items():
        saved[*place, "hit"] = tally.saved_by_hits
        saved[*place, "collapsed"] = tally.saved_by_joining
    holders = [tenant.holder for tenant in tenants]
    balances = await ledger.balances_of(holders, with_pace=True)
    open_purchases = await ledger.counts()
    return Reading(
        spent=await ledger.spent(),
        saved=saved,
        reserved=reserved,
        unknown=await ledger.unknown(),
        paid_and_lost=await ledger.lost(),
        budgets=await asyncio.to_thread(_budgets, balances, now),
        cache_entries=cache.statistics().entries,
        blob_bytes=blobs.statistics().bytes_stored,
        in_flight=sum(count for state, count in open_purchases.items() if state is not State.UNKNOWN),
        waiting=open_purchases.get(State.QUEUED, 0),
    )


def _budgets(balances: Sequence[Balance], now: float) -> Sequence[BudgetReading]:
    return [
        BudgetReading(
            balance.holder.name,
            balance.budget.label,
            balance.limit,
            balance.remaining,
            None if (runs_out_at := balance.runs_out_at(now)) is None else runs_out_at.timestamp(),
        )
        for balance in balances
    ]
