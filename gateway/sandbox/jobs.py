"""The life of every job: it waits, is made, is charged once, and is forgotten; whoever hangs up or restarts meanwhile.

A job belongs to the sandbox, never to the connection that asked for it. Its end is on disk before anyone is told.
"""

from __future__ import annotations

import asyncio
import secrets

from gateway.domain.clock import Clock
from gateway.domain.errors import StorageUnavailable
from gateway.sandbox.accounts import Accounts
from gateway.sandbox.job import FILE_SECONDS, RECORD_SECONDS, Job, State
from gateway.sandbox.shape import Unmakeable
from gateway.sandbox.sqlite import Books
from gateway.sandbox.studio import Order, Studio

_DISK_RETRY_SECONDS = 1.0
MODERATED = "content_policy_violation"


class Jobs:
    def __init__(self, *, books: Books, accounts: Accounts, studio: Studio, clock: Clock) -> None:
        self._books = books
        self._accounts = accounts
        self._studio = studio
        self._clock = clock
        self._records: dict[str, Job] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._moderated: set[str] = set()

    async def open(self) -> None:
        """Go on with what was running when the sandbox ended, however it ended."""
        now = self._clock()
        await asyncio.to_thread(self._studio.sweep, await self._books.files_in_use(now - FILE_SECONDS))
        for job in await self._books.unfinished_or_newer(now - RECORD_SECONDS):
            self._records[job.id] = job
            if not job.ended:
                self._accounts.named(job.account).reserved += job.price
                self._begin(job)

    async def accept(self, job: Job) -> None:
        """Reserve its price, write it down, and let it live. The caller has seen that the account can pay."""
        account = self._accounts.named(job.account)
        account.reserved += job.price
        try:
            await self._books.open(job)
        except BaseException:
            account.reserved -= job.price
            raise
        self._forget_expired()
        self._records[job.id] = job
        self._begin(job)

    async def find(self, request_id: str) -> Job | None:
        """The job, of any age; what the caller may see of it is the caller's question."""
        return self._records.get(request_id) or await self._books.find(request_id)

    async def close(self) -> None:
        """Stop; what runs goes on after the next start."""
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        for job in self._records.values():
            job.done.set()

    def passes_moderation(self, order: Order) -> bool:
        """False the first time that an order is seen here, true from then on."""
        seen = order.name in self._moderated
        self._moderated.add(order.name)
        return seen

    def _begin(self, job: Job) -> None:
        life = asyncio.create_task(self._live(job), name=f"sandbox job {job.id}")
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)

    async def _live(self, job: Job) -> None:
        await asyncio.sleep(job.starts_at - self._clock())
        job.state = State.PROCESSING
        if job.doomed is not None:
            await asyncio.sleep(job.due_at - self._clock())
            await self._fail(job, job.doomed)
            return
        # The media are made while the simulated time goes by.
        making = asyncio.create_task(self._studio.make(_order(job)))
        try:
            await asyncio.sleep(job.due_at - self._clock())
            take = await making
        except Unmakeable as error:
            await self._fail(job, str(error))
            return
        except OSError as error:
            await self._fail(job, f"The output could not be written: {error.strerror}.")
            return
        finally:
            making.cancel()
        job.file, job.output = take.file, take.facts
        await self._complete(job)

    async def _complete(self, job: Job) -> None:
        account = self._accounts.named(job.account)
        job.finished_at = self._clock()
        while True:
            try:
                left = await self._books.complete(job)
                break
            except StorageUnavailable:
                await asyncio.sleep(_DISK_RETRY_SECONDS)
        if left is not None:
            account.credits -= job.price
        account.reserved -= job.price
        job.cost, job.credits_left = job.price, left
        job.state = State.COMPLETED
        job.done.set()

    async def _fail(self, job: Job, error: str) -> None:
        job.error, job.finished_at = error, self._clock()
        while True:
            try:
                await self._books.fail(job)
                break
            except StorageUnavailable:
                await asyncio.sleep(_DISK_RETRY_SECONDS)
        self._accounts.named(job.account).reserved -= job.price
        job.state = State.FAILED
        job.done.set()

    def _forget_expired(self) -> None:
        """Records are kept in the order of their submits, so that the oldest are seen first."""
        now = self._clock()
        while self._records:
            oldest = next(iter(self._records.values()))
            if not oldest.ended or oldest.submitted_at + RECORD_SECONDS > now:
                return
            del self._records[oldest.id]


def _order(job: Job) -> Order:
    faults = job.faults
    return Order(
        job.model,
        job.media_type,
        job.parameters,
        job.seed,
        off_grid=faults["off_grid"].text("mode") if "off_grid" in faults else "snap",
        halved="wrong_size" in faults,
        salt=secrets.token_hex(8) if "different_bytes" in faults else "",
    )
