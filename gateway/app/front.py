"""What callers reach: the front, and the short way to what is cached."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from gateway.blobs.disk import DiskBlobStore
from gateway.catalog.contract import Catalog
from gateway.database.marks import Marks
from gateway.database.pace import Pace
from gateway.domain.clock import Clock
from gateway.domain.errors import BudgetExceeded, CannotStart
from gateway.generation.estimating import Estimator
from gateway.generation.purchasing import OnUnknown, Purchasing
from gateway.generation.quoting import Quoting
from gateway.generation.scheduling import FairSlots
from gateway.generation.service import GenerationService
from gateway.http import routes
from gateway.http.account import Account
from gateway.http.blobs import Blobs
from gateway.http.front_door import FrontDoor
from gateway.http.generations import Generations
from gateway.http.hit_path.connection import HitPath
from gateway.http.hit_path.memory import Memory
from gateway.http.hit_path.repeats import Repeats
from gateway.http.hit_path.served import Served
from gateway.http.links import Links
from gateway.http.models import Models
from gateway.http.quotes import Quotes
from gateway.http.request_ids import RequestIds
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.sqlite_transfers import SqliteTransfers
from gateway.requests.sqlite import SqliteTallies
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.tenants.sqlite import SqliteDirectory

_LINK_SECRET_BYTES = 32


def opened_front_door(
    settings: Settings,
    directory: Path,
    stack: AsyncExitStack,
    keys: SqliteDirectory,
    metrics: Metrics,
    clock: Clock,
    on_refused: Callable[[BudgetExceeded], None],
) -> FrontDoor:
    """What every request passes through, on whichever listener it comes."""
    pace = Pace(directory / "pace")
    stack.callback(pace.close)
    return FrontDoor(
        keys=keys,
        metrics=metrics,
        request_ids=RequestIds(),
        pace=pace,
        clock=clock,
        max_body_bytes=settings.listen.max_body_bytes,
        body_timeout_seconds=settings.listen.body_timeout_seconds,
        on_refused=on_refused,
    )


def opened_front(
    settings: Settings,
    directory: Path,
    stack: AsyncExitStack,
    marks: Marks,
    catalog: Catalog,
    front_door: FrontDoor,
    administration: Sequence[web.RouteDef],
    keys: SqliteDirectory,
    purchasing: Purchasing,
    service: GenerationService,
    estimator: Estimator,
    slots: FairSlots,
    blobs: DiskBlobStore,
    ledger: SqliteLedger,
    tallies: SqliteTallies,
    transfers: SqliteTransfers,
    metrics: Metrics,
    clock: Clock,
) -> tuple[web.Application, HitPath | None]:
    """What callers reach, and the short way to what is cached, where that is wanted."""
    memory = Memory(
        marks=marks,
        catalog=catalog,
        look_up=purchasing.look_up,
        blobs=blobs,
        statements=ledger,
        clock=clock,
        monotonic=asyncio.get_running_loop().time,
        most_bytes=settings.listen.hit_path_max_bytes,
    )
    stack.callback(memory.close)
    hit_path: HitPath | None = None
    if settings.listen.hit_path:
        served = Served(
            metrics, tallies, clock, keys.note_use, transfers.used if settings.chargeback.hit_price else None
        )
        tallies.feed_from(served.hand_over)
        repeats = Repeats(settings.listen.hit_path_max_bytes)
        hit_path = HitPath(
            memory,
            repeats,
            marks,
            served,
            keys,
            front_door.request_ids,
            clock,
            settings.listen.max_body_bytes,
            asyncio.get_running_loop().call_soon,
        )
    links = Links(_link_secret(directory), lifetime_seconds=settings.links.lifetime_seconds, clock=clock)
    front = routes.front(
        front_door=front_door,
        generations=Generations(
            front_door=front_door,
            catalog=catalog,
            service=service,
            blobs=blobs,
            statements=ledger,
            links=links,
            public_url=settings.listen.public_url,
            clock=clock,
            on_hit=memory.learn_hit if hit_path else lambda *_: None,
        ),
        quotes=Quotes(
            front_door,
            catalog,
            Quoting(
                purchasing=purchasing,
                custody=ledger,
                statements=ledger,
                estimator=estimator,
                slots=slots,
                clock=clock,
                on_unknown=OnUnknown(settings.reconcile.on_unknown),
            ),
            clock,
        ),
        models=Models(front_door, catalog, ledger),
        account=Account(front_door, ledger, tallies, clock),
        blobs=Blobs(blobs, links, on_fetch=memory.learn_link if hit_path else lambda *_: None),
        administration=administration,
    )
    return front, hit_path


def _link_secret(directory: Path) -> bytes:
    """What links to media are signed with: made at the first start, so that links outlive the process."""
    path = directory / "links.key"
    if not path.exists():
        # Several may start at once: it gets its name when it is whole, and the first stays.
        with tempfile.NamedTemporaryFile(dir=directory) as file, suppress(FileExistsError):
            file.write(secrets.token_bytes(_LINK_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
            path.hardlink_to(file.name)
    secret = path.read_bytes()
    if len(secret) != _LINK_SECRET_BYTES:
        raise CannotStart(
            "links.key under storage.directory is not whole: remove it, and links will be made anew."
        )
    return secret
