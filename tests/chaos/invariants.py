"""What has to be true when the dust has settled, whatever happened before."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import av

from gateway.app.upstream import SANDBOX_KEY
from gateway.ledger.contract import State
from tests.chaos.callers import Received
from tests.chaos.processes import World
from tests.journeys.running import PRICE_MICROS

_CREDITS_MICROS = 1_000_000_000
"""What the sandbox's first account begins with."""


@dataclass(frozen=True)
class Figures:
    """What a run came to."""

    purchases: int
    payments: int
    lost: int
    billed_micros: int
    drift_micros: int


async def examined(
    world: World, session: aiohttp.ClientSession, received: Received, *, lost_at_most: int = 0
) -> Figures:
    """The bill against the books, and the media against each other. No gateway may be running.

    `lost_at_most`: how many purchases may be written off, because the upstream's only copy of their media was broken.
    """
    bill = await world.bill(session)
    books = await world.books()
    async with session.get(
        f"{world.sandbox_url}/v1/get-user-credits", headers={"x-api-key": SANDBOX_KEY}
    ) as answer:
        credits_micros = round((await answer.json())["credits"] * 1_000_000)
    story = _story(bill, books.purchases)

    # The books fit together, and nothing is open.
    assert list(books.discrepancies) == [], story
    assert (books.held_micros, books.unknown_micros) == (0, 0), story
    assert not [purchase for purchase in books.purchases if purchase.state.is_open], story

    # They are the bill, to the micro-dollar and purchase by purchase.
    billed = {job["request_id"]: job for job in bill["jobs"] if job["cost_micros"]}
    paid = {p.ticket: p for p in books.purchases if p.state in (State.SETTLED, State.LOST)}
    assert set(billed) == set(paid), story
    for ticket, purchase in paid.items():
        assert purchase.cost is not None
        assert purchase.cost.micros == billed[str(ticket)]["cost_micros"] == PRICE_MICROS, story
    assert books.spent_micros == bill["total"]["cost_micros"] == _CREDITS_MICROS - credits_micros, story

    # Each request was paid for once; again only after what came of it was lost for good.
    payments = Counter(_name(job["parameters"]) for job in billed.values())
    lost = Counter(_name(p.request.parameters) for p in paid.values() if p.state is State.LOST)
    # What the gateway sends is what it was asked for with every default filled in.
    assert sum(lost.values()) <= lost_at_most, story
    assert {name: times for name, times in payments.items() if times - lost[name] > 1} == {}, story
    assert books.lost_micros == sum(lost.values()) * PRICE_MICROS, story

    # Whoever asked for the same has the same, and it is a video.
    assert {name: len(digests) for name, digests in received.digests.items() if len(digests) != 1} == {}
    for medium in received.media.values():
        assert _shape(medium) == (256, 256, 9)

    # Nothing lies about.
    assert world.left_over() == []
    assert sorted(path.name for path in (world.storage / "blobs" / "incoming").iterdir()) == []
    return Figures(
        purchases=len(books.purchases),
        payments=len(billed),
        lost=sum(lost.values()),
        billed_micros=bill["total"]["cost_micros"],
        drift_micros=_CREDITS_MICROS - credits_micros - books.spent_micros,
    )


def _name(parameters: Mapping[str, Any]) -> str:
    return json.dumps(dict(parameters), sort_keys=True)


def _shape(medium: bytes) -> tuple[int, int, int]:
    with av.open(io.BytesIO(medium), mode="r") as container:
        stream = container.streams.video[0]
        frames = len(list(container.decode(stream)))
        return stream.width, stream.height, frames


def _story(bill: Any, purchases: Any) -> str:
    """Both sides of the account, for whoever has to find out."""
    jobs = [
        f"  job {job['request_id']} {job['state']} {job['cost_micros']} seed {job['parameters'].get('seed')} "
        f"{job['submitted_at']} {','.join(job['faults'])}"
        for job in bill["jobs"]
    ]
    rows = [
        f"  purchase {p.id[:8]} {p.state.value} ticket {p.ticket} seed {p.request.parameters.get('seed')} "
        f"sent {p.sent_at} ended {p.ended_at} cost {p.cost} reason {p.reason}"
        for p in purchases
    ]
    return "\n".join(["", "the bill:", *jobs, "the books:", *rows])
