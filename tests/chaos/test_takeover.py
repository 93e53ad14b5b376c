"""What one process leaves, another ends: what chaos has found, made small."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from gateway.app.opening import opened_ledger
from gateway.catalog.yaml_files import load_catalog
from gateway.domain.money import Money
from gateway.domain.tenant import Budget, Tenant
from gateway.domain.tenant import Caller as Buyer
from gateway.domain.window import Window
from gateway.generation import intake
from gateway.ledger.contract import Held, State
from gateway.settings import load_settings
from tests.chaos.callers import Caller, Received, requests, seeded
from tests.chaos.invariants import examined
from tests.chaos.processes import world
from tests.journeys.running import MODEL, House, video

QUICK = {
    "reconcile.interval_seconds": 0.1,
    "reconcile.history_lag_seconds": 2,
    "reconcile.wait_seconds": 60,
}


async def _leave_a_purchase(house: House, tenant: str, *, unknown: bool) -> None:
    """As a process does that dies before its request has left: still being sent, or known to be unknown."""
    settings = load_settings(house.config, overrides=[], environment={})
    buyer = Buyer(Tenant(tenant, (Budget(Money.exactly("1"), Window.TOTAL),)), "a key")
    asked = intake.name(buyer, load_catalog(house.models).find(MODEL), video())
    async with opened_ledger(settings) as ledger:
        held = await ledger.reserve(buyer, asked, newest_known=None)
        assert isinstance(held, Held)
        sent = await ledger.send(held)
        if unknown:
            await ledger.mark_unknown(sent, "its process stopped")


async def _until_it_is_taken_up(house: House) -> None:
    settings = load_settings(house.config, overrides=[], environment={})
    async with asyncio.timeout(30), opened_ledger(settings) as ledger:
        while not await ledger.unknown():
            await asyncio.sleep(0.01)


async def test_a_caller_who_joins_what_a_dead_process_left_is_sold_it_once_it_proves_not_bought(
    tmp_path: Path,
) -> None:
    async with House(tmp_path, settings=QUICK).open() as house:
        await house.stop()
        await _leave_a_purchase(house, "demo", unknown=False)
        await house.start()
        await _until_it_is_taken_up(house)
        answers = await asyncio.gather(house.make(), house.submit())
        ended = await house.ended(answers[1])
        bill = await house.bill()

    assert [answer.status for answer in answers] == [200, 200]
    assert ended.json["status"] == "COMPLETED"
    assert bill.total["completed"] == 1


async def test_a_passenger_is_not_refused_for_the_empty_budget_of_the_tenant_who_took_off(
    tmp_path: Path,
) -> None:
    budget = {"budgets": [{"limit_usd": 25, "per": "month"}]}
    tenants = {"poor": {"budgets": [{"limit_usd": "0.001", "per": "total"}]}, "rich": budget}
    async with House(tmp_path, tenants=tenants, settings=QUICK).open() as house:
        await house.stop()
        await _leave_a_purchase(house, "poor", unknown=True)
        await house.start(reconcile__history_lag_seconds=3600)
        rich = await house.new_key("rich")
        poor_waits = asyncio.create_task(house.make())
        await house.until_pending(1)
        rich_waits = asyncio.create_task(house.make(key=rich))
        await house.until_pending(2)
        # Now the history cannot lag any more, and shows nothing.
        house.clock.ahead_seconds = 3601
        poor, got = await asyncio.gather(poor_waits, rich_waits)
        bill = await house.bill()

    poor.refused(406, "budget_exceeded")
    assert got.status == 200, got.body
    assert bill.total["completed"] == 1


async def test_an_id_that_outlives_its_process_is_told_that_its_generation_failed(tmp_path: Path) -> None:
    received = Received()
    (request,) = requests(1).values()
    # Should it die before it was sent after all, that is to be known soon.
    quick = {"reconcile.history_lag_seconds": 1}
    async with world(tmp_path, settings=quick) as here, aiohttp.ClientSession() as session:
        gateway = await here.start()
        await here.faults(session, {"failed": {"count": 1}, "cold_start": {"count": 1, "seconds": 3}})
        async with session.post(
            f"{gateway.url}/v2/{MODEL}", json=request, headers={"x-api-key": here.key}
        ) as answer:
            identity = (await answer.json())["request_id"]
        async with asyncio.timeout(60):
            while (await here.books()).purchases[0].state in {State.QUEUED, State.SENDING}:
                await asyncio.sleep(0.05)
        gateway.kill_all()
        await gateway.ended()
        gateway = await here.start()
        caller = Caller(here, session, received, url=lambda: gateway.url, chance=seeded(1))
        async with asyncio.timeout(60):
            outcome = await caller.outcome(identity)
        gateway.process.terminate()
        assert await gateway.ended() == 0
        figures = await examined(here, session, received)

    assert outcome == "FAILED"
    assert figures.payments == 0
