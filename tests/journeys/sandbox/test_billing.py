"""The bill: every job once, failures not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.journeys.sandbox.running import MODEL, PAGE, SMALL, SMALL_MICROS, RunningSandbox


async def test_the_pages_own_example_costs_the_pages_own_price(sandbox: RunningSandbox) -> None:
    record = await sandbox.result(PAGE)
    bill = await sandbox.bill()

    assert record["metrics"]["cost"] == 0.416
    assert await sandbox.credits() == 999.584
    assert bill["total"]["cost_micros"] == 416_000
    assert bill["accounts"]["default"]["credits_micros"] == 999_584_000


async def test_an_item_says_who_asked_for_what_and_when(sandbox: RunningSandbox) -> None:
    request_id = await sandbox.submit(SMALL | {"seed": -1, "stranger": True})
    bill = await sandbox.settled_bill()

    (item,) = bill["jobs"]
    assert item["seed"] >= 0
    assert item["submitted_at"] <= item["finished_at"]
    assert item | {"seed": 0, "submitted_at": "", "finished_at": ""} == {
        "request_id": request_id,
        "account": "default",
        "model": MODEL,
        "api": "v2",
        "parameters": SMALL | {"seed": -1, "stranger": True},
        "submitted_at": "",
        "finished_at": "",
        "state": "COMPLETED",
        "error": None,
        "seed": 0,
        "faults": [],
        "cost_micros": SMALL_MICROS,
        "cost_usd": 0.004,
    }
    assert "SG_" not in str(bill)


async def test_a_job_is_billed_though_nobody_polls(sandbox: RunningSandbox) -> None:
    await sandbox.submit()

    assert (await sandbox.settled_bill())["total"]["cost_micros"] == SMALL_MICROS


async def test_polling_and_fetching_again_costs_nothing(sandbox: RunningSandbox) -> None:
    record = await sandbox.result()
    request_id = record["video"]["file_name"].removesuffix(".mp4")
    for _ in range(3):
        await sandbox.ask("GET", f"/v2/requests/{request_id}")
        await (await sandbox.session.get(record["output"])).read()

    assert (await sandbox.bill())["total"]["cost_micros"] == SMALL_MICROS


async def test_equal_submits_are_jobs_of_their_own(sandbox: RunningSandbox) -> None:
    headers = {"Idempotency-Key": "the same"}
    ids = {await sandbox.submit(SMALL, headers=headers) for _ in range(3)}

    assert len(ids) == 3
    assert (await sandbox.settled_bill())["total"]["cost_micros"] == 3 * SMALL_MICROS


async def test_a_v1_job_is_billed_though_its_caller_has_hung_up(tmp_path: Path) -> None:
    async with RunningSandbox(tmp_path, time_scale=0.2) as sandbox:
        call = asyncio.create_task(sandbox.ask("POST", f"/v1/{MODEL}", json=SMALL))
        bill = await sandbox.bill_when(lambda total: bool(total["jobs"]))
        assert bill["total"]["running"] == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        bill = await sandbox.settled_bill()

    assert (bill["total"]["completed"], bill["total"]["cost_micros"]) == (1, SMALL_MICROS)


async def test_the_balance_does_not_dip_while_a_job_runs_but_its_price_is_reserved(
    slow_sandbox: RunningSandbox,
) -> None:
    await slow_sandbox.open_account("small", "SG_small", 0.01)
    key = {"x-api-key": "SG_small"}

    codes = [(await slow_sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL, headers=key))[0] for _ in range(3)]

    assert codes == [200, 200, 402]
    assert await slow_sandbox.credits("SG_small") == 0.01


async def test_many_at_once_cannot_spend_more_than_there_is(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("small", "SG_small", 0.04)
    key = {"x-api-key": "SG_small"}

    answers = await asyncio.gather(
        *[sandbox.ask("POST", f"/v2/{MODEL}", json=SMALL | {"seed": seed}, headers=key) for seed in range(50)]
    )
    accepted = sum(code == 200 for code, _ in answers)
    bill = await sandbox.settled_bill()

    assert accepted >= 10
    assert bill["accounts"]["small"]["credits_micros"] == 0
    assert bill["accounts"]["small"]["cost_micros"] == 40_000
    assert accepted == 10


async def test_a_reservation_ends_with_a_failure(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("small", "SG_small", 0.004)
    key = {"x-api-key": "SG_small"}
    await sandbox.set_faults(failed={"count": 2})
    for _ in range(2):
        code, _ = await sandbox.ask("POST", f"/v1/{MODEL}", json=SMALL, headers=key)
        assert code == 500

    async with sandbox.session.post(f"{sandbox.url}/v1/{MODEL}", json=SMALL, headers=key) as response:
        assert (response.status, response.headers["x-remaining-credits"]) == (200, "0")


async def test_accounts_pay_for_themselves(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("other", "SG_other", 5)
    await sandbox.submit(SMALL, headers={"x-api-key": "SG_other"})
    await sandbox.submit(SMALL)
    await sandbox.submit(SMALL)
    bill = await sandbox.settled_bill()

    assert {name: totals["cost_micros"] for name, totals in bill["accounts"].items()} == {
        "default": 2 * SMALL_MICROS,
        "other": SMALL_MICROS,
    }
    assert await sandbox.credits("SG_other") == 4.996
    assert await sandbox.credits() == 999.992


async def test_setting_an_account_again_sets_its_key_and_its_credits(sandbox: RunningSandbox) -> None:
    await sandbox.open_account("other", "SG_first", 5)
    await sandbox.open_account("other", "SG_second", 7)

    assert await sandbox.credits("SG_second") == 7
    code, _ = await sandbox.ask("GET", "/v1/get-user-credits", headers={"x-api-key": "SG_first"})
    assert code == 401


@pytest.mark.parametrize(
    "account",
    [
        {},
        {"name": "a", "key": "SG_a"},
        {"name": "a", "key": "", "credits_usd": 1},
        {"name": "a", "key": "SG_a", "credits_usd": "much"},
        {"name": "a", "key": "SG_a", "credits_usd": 0.0000001},
        {"name": "a", "key": "SG_a", "credits_usd": True},
        {"name": "a", "key": "SG_a", "credits_usd": 1, "model": "x"},
        {"name": "a", "key": "SG_0123456789abcdef", "credits_usd": 1},
    ],
)
async def test_half_an_account_is_none(sandbox: RunningSandbox, account: dict[str, object]) -> None:
    code, answer = await sandbox.ask("POST", "/sandbox/accounts", json=account)

    assert (code, set(answer)) == (400, {"error"})
    assert set((await sandbox.bill())["accounts"]) == {"default"}


async def test_a_thousand_jobs_run_at_once(slow_sandbox: RunningSandbox) -> None:
    slots = asyncio.Semaphore(50)

    async def submit(seed: int) -> str:
        async with slots:
            return await slow_sandbox.submit(SMALL | {"seed": seed})

    ids = await asyncio.gather(*[submit(seed) for seed in range(1000)])

    assert len(set(ids)) == 1000
    assert (await slow_sandbox.bill())["total"]["running"] == 1000


async def test_the_bill_needs_no_key(sandbox: RunningSandbox) -> None:
    async with aiohttp.ClientSession() as stranger, stranger.get(f"{sandbox.url}/sandbox/bill") as response:
        assert response.status == 200
