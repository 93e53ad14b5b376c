"""`gateway purchases`"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import NoReturn

from cyclopts import App

from gateway.app.opening import opened_ledger
from gateway.cli.options import FILE_AND_ENVIRONMENT, Count, Flag, Options
from gateway.cli.tables import aligned, minute
from gateway.domain.identity import PurchaseId
from gateway.domain.money import Money
from gateway.ledger.contract import Purchase, Resolution, State
from gateway.upstream.answers import usable_ticket

purchases = App(
    name="purchases",
    help="List, show and resolve purchases. A running gateway goes on with what was resolved.",
)

_HEADER = ("ID", "STATE", "TENANT", "MODEL", "HELD", "COST", "RESERVED", "TICKET")


@purchases.command(name="list")
def list_(
    *,
    state: State | None = None,
    tenant: str | None = None,
    limit: Count = 100,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """List purchases, newest first.

    Parameters
    ----------
    state
        Only those in this state.
    tenant
        Only those of this tenant.
    limit
        At most so many.
    """
    states: Collection[State] = () if state is None else (state,)

    async def look() -> Sequence[Purchase]:
        async with opened_ledger(options.settings()) as ledger:
            return await ledger.purchases(states=states, tenant=tenant, limit=limit)

    for line in aligned(_HEADER, map(_cells, asyncio.run(look())), right=("HELD", "COST")):
        print(line)


def _cells(purchase: Purchase) -> Sequence[object]:
    return (
        purchase.id,
        purchase.state.value,
        purchase.tenant,
        purchase.request.model,
        purchase.request.price,
        "-" if purchase.cost is None else purchase.cost,
        minute(purchase.reserved_at),
        purchase.ticket or "-",
    )


@purchases.command
def show(id: str, *, parameters: Flag = False, options: Options = FILE_AND_ENVIRONMENT) -> None:  # noqa: A002 -- what the command line calls it
    """Show everything about one purchase, but for what was asked for.

    Parameters
    ----------
    id
        The purchase, as `gateway purchases list` shows it.
    parameters
        Show what was asked for as well: prompts are their callers' own.
    """

    async def look() -> Purchase | None:
        async with opened_ledger(options.settings()) as ledger:
            return await ledger.purchase(PurchaseId(id))

    purchase = asyncio.run(look()) or _refuse(_unknown(id))
    for name, value in _facts(purchase):
        print(f"{name:<13}{value}")
    if parameters:
        print(json.dumps(dict(purchase.request.parameters), indent=2, ensure_ascii=False))


@purchases.command
def resolve(
    id: str,  # noqa: A002 -- what the command line calls it
    *,
    reason: str,
    ticket: str | None = None,
    not_bought: Flag = False,
    lost: Flag = False,
    cost_usd: str | None = None,
    options: Options = FILE_AND_ENVIRONMENT,
) -> None:
    """Say what became of an unknown purchase. Exactly one of --ticket, --not-bought and --lost.

    Parameters
    ----------
    id
        The purchase, as `gateway purchases list --state unknown` shows it.
    reason
        How it is known; kept with a purchase that is released or lost.
    ticket
        It was bought, and this is the upstream's id for it: the gateway collects it.
    not_bought
        It was not, or is not billed: the money goes back.
    lost
        It was, and nothing will come of it: the money is spent.
    cost_usd
        What was charged for what is lost; what was held, if it is left out.
    """
    if [ticket is not None, not_bought, lost].count(True) != 1:
        _refuse("say exactly one of --ticket, --not-bought and --lost.")
    if cost_usd is not None and not lost:
        _refuse("--cost-usd goes with --lost alone: of anything else the upstream says the cost.")
    if not reason.strip():
        _refuse("--reason is empty: say how it is known.")
    cost = None if cost_usd is None else _amount(cost_usd)

    async def settle() -> str:
        async with opened_ledger(options.settings()) as ledger:
            purchase = await ledger.purchase(PurchaseId(id))
            if purchase is None:
                _refuse(_unknown(id))
            if purchase.state is not State.UNKNOWN:
                _refuse(_not_unknown(purchase))
            if ticket is not None:
                said = await _bought(ledger, purchase, ticket)
            elif not_bought:
                done = await ledger.resolve_not_bought(purchase.id, reason)
                said = f"released, and {purchase.request.price} given back" if done else None
            else:
                done = await ledger.resolve_lost(purchase.id, cost, reason)
                said = f"lost, and {purchase.request.price if cost is None else cost} spent" if done else None
            if said is None:
                _refuse(f"purchase {id} has just been resolved by somebody else: look again.")
            return said

    print(f"Purchase {id}: {asyncio.run(settle())}.")


async def _bought(ledger: Resolution, purchase: Purchase, given: str) -> str | None:
    ticket = usable_ticket(given)
    if ticket is None:
        _refuse(f"{given!r} cannot be a ticket of the upstream's.")
    if ticket != purchase.ticket and await ledger.known_tickets([ticket]):
        _refuse(f"ticket {ticket} is another purchase's: one call cannot stand for two.")
    done = await ledger.resolve_bought(purchase.id, ticket)
    return f"bought under ticket {ticket}; a running gateway collects it within seconds" if done else None


def _amount(usd: str) -> Money:
    try:
        amount = Money.exactly(usd)
    except ValueError:
        amount = None
    if amount is None or amount < Money.ZERO:
        _refuse(f"--cost-usd {usd}: not an amount of dollars such as 0.416.")
    return amount


def _facts(purchase: Purchase) -> Iterator[tuple[str, object]]:
    yield "id", purchase.id
    yield "state", purchase.state.value
    yield "tenant", purchase.tenant
    if purchase.path != purchase.tenant:
        yield "path", purchase.path
    yield "key", purchase.key_id
    yield "model", purchase.request.model
    yield "fingerprint", purchase.request.fingerprint
    if purchase.request.seed is not None:
        yield "seed", purchase.request.seed
    yield "held", purchase.request.price
    if purchase.cost is not None:
        yield "cost", purchase.cost
    yield "ticket", purchase.ticket or "-"
    for name, moment in (
        ("reserved", purchase.reserved_at),
        ("sent", purchase.sent_at),
        ("ended", purchase.ended_at),
    ):
        if moment is not None:
            yield name, datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if purchase.reason is not None:
        yield "reason", purchase.reason
    for blob in purchase.generation.blobs if purchase.generation else ():
        yield "blob", f"{blob.digest} {blob.media_type} {blob.size_bytes} bytes"


def _unknown(purchase: str) -> str:
    return f"no purchase {purchase}: `gateway purchases list` shows what there is."


def _not_unknown(purchase: Purchase) -> str:
    return f"purchase {purchase.id} is {purchase.state.value}: only an unknown one can be resolved."


def _refuse(why: str) -> NoReturn:
    sys.exit(f"gateway: {why}")
