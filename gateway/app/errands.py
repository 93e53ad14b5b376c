"""What a gateway does from time to time, and which of it one process does for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.database.owners import Duty
from gateway.domain.clock import Clock
from gateway.generation.drift import BalanceWatch, ForeignSpend
from gateway.generation.housekeeping import Errand
from gateway.generation.reconciliation import Reconciliation
from gateway.generation.service import GenerationService
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_transfers import SqliteTransfers
from gateway.requests.sqlite import SqliteRequestRecords, SqliteTallies
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.upstream.segmind import SegmindUpstream


def standing_errands(
    settings: Settings,
    ledger: SqliteLedger,
    records: SqliteRequestRecords,
    tallies: SqliteTallies,
    transfers: SqliteTransfers,
    upstream: SegmindUpstream,
    service: GenerationService,
    metrics: Metrics,
    count_stores: Callable[[], None],
    duty: Duty,
    clock: Clock,
) -> Sequence[Errand]:
    reconciliation = Reconciliation(
        resolution=ledger,
        statements=ledger,
        history=upstream,
        clock=clock,
        history_lag_seconds=settings.reconcile.history_lag_seconds,
        result_lifetime_seconds=settings.upstream.recollect_seconds,
    )
    watch = BalanceWatch(ask_credits=upstream.credits, statements=ledger)
    foreign = ForeignSpend(history=upstream, resolution=ledger, statements=ledger, clock=clock)

    async def write_down_counts() -> None:
        count_stores()
        await tallies.keep_up()
        await transfers.flush()

    async def reconcile() -> None:
        # What is asked of the upstream is asked by one process for all.
        if duty.is_ours():
            await reconciliation.settle_unknowns()

    async def watch_the_account() -> None:
        if duty.is_ours():
            seen = await watch.look()
            metrics.upstream_credits.set(seen.credits.usd_number)
            metrics.upstream_drift.set(seen.drift.usd_number)

    async def watch_for_foreign_spend() -> None:
        if duty.is_ours():
            metrics.foreign_spend.set((await foreign.total()).usd_number)

    async def forget() -> None:
        await records.forget_before(clock() - settings.requests.retention_seconds)

    interval_seconds = settings.reconcile.interval_seconds
    return (
        # Three tries before a lease is up.
        Errand("renew", ledger.renew, settings.ledger.lease_seconds / 3),
        Errand("write down counts", write_down_counts, 1.0),
        Errand("resume", service.resume, 3.0),
        Errand("reconcile", reconcile, interval_seconds),
        Errand("watch the account", watch_the_account, interval_seconds),
        Errand("watch for foreign spend", watch_for_foreign_spend, max(interval_seconds, 600.0)),
        Errand("forget", forget, 3600.0),
    )
