"""What the hit path knows by heart: learnt from answers that the ordinary application gave, believed while marks last."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gateway.blobs.contract import BlobStore
from gateway.catalog.contract import Catalog
from gateway.database.marks import Marks
from gateway.domain.balance import remaining
from gateway.domain.clock import Clock
from gateway.domain.errors import GatewayError
from gateway.domain.generation import Blob, CacheStatus, Generation, GenerationRequest
from gateway.domain.identity import Digest, Fingerprint, PurchaseId
from gateway.domain.money import Money
from gateway.domain.tenant import Caller, Party
from gateway.generation import intake
from gateway.http import heads
from gateway.http.hit_path.recent import Recent
from gateway.http.hit_path.template import BLANK, template
from gateway.ledger.contract import Statements

T = TypeVar("T")
Question = tuple[str, str | None, bytes]
"""A model, the tenant for whom it is private, and what a body says (`intake.respelled`)."""

Identity = tuple[int, int, int, int]
"""By what a file is known again, whatever is done to it: inode, size, times of modification and of change."""

SMALL_BYTES = 64 * 2**10
"""Media up to this size are kept in memory; larger ones as open files."""

MOST_QUESTION_BYTES = 64 * 2**10
"""Bodies up to this size are known again by what they say."""

BELIEVED_SECONDS = 60.0
"""After this, what is asked for is learnt anew behind the answer's back: stores want to be told what is in use."""

_DOUBTED_SECONDS = 180.0
"""What could not be learnt anew for so long is not believed any more, whatever the marks say."""

LOOK_EVERY_SECONDS = 1.0
"""How often a file whose bytes are in memory is looked at: what somebody did to it by hand changes no mark."""

_QUESTION_BYTES = 300
"""What a body costs beside its own bytes: a tuple, a place in a table."""

_MOST_FILES = 512
_MOST_HITS = 100_000
_MOST_LINKS = 10_000
_MOST_BALANCES = 100_000


@dataclass(slots=True)
class Medium:
    """A blob that can be sent at once: its bytes, or a file that is open."""

    blob: Blob
    path: Path
    identity: Identity
    place: int
    mark: int
    learnt_at: float
    content: bytes | None
    descriptor: int = -1
    looked_at: float = 0.0
    _users: int = 1

    @property
    def digest(self) -> Digest:
        return self.blob.digest

    @property
    def size_bytes(self) -> int:
        return self.blob.size_bytes

    def hold(self) -> None:
        """Somebody sends it: its file stays open until `let_go`."""
        self._users += 1

    def let_go(self) -> None:
        self._users -= 1
        if not self._users and self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True, slots=True)
class Hit:
    """A generation that can be answered with at once, by its first medium."""

    digest: Digest
    purchase: PurchaseId
    made_at: float
    saved_micros: int
    limited: bytes
    """The template of the head: takes the request's id, the age, the remaining credits and the date."""

    unlimited: bytes
    """The same for a tenant whose credits have no limit."""

    marks: tuple[tuple[int, int], ...]
    learnt_at: float


@dataclass(frozen=True, slots=True)
class Link:
    """A target that leads to a blob until it runs out."""

    digest: Digest
    expires: float
    whole: bytes
    """The template of the head: takes the request's id and the date."""

    part: bytes
    """Takes the request's id, first byte, last byte, length and date."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What a caller can still spend."""

    caller: Caller
    party: Party
    """The same, as the books name it: put together once, and not for each hit."""

    marks: tuple[tuple[int, int], ...]
    """Of its tenant and of everybody above it: by place, what was read there."""

    since: float
    until: float
    """Between these times, by the clock; then a window of some budget above it is another one."""

    left: bytes | None
    """As its header has it; None where there is no limit."""


class Memory:
    """What can be answered without asking anybody.

    Nothing is put in here but by `learn_…`, which reads the marks first and asks the stores and the books afterwards,
    so that whatever changes from then on changes a mark. Everything is bounded; what is forgotten is answered by the
    ordinary application, and learnt again.
    """

    def __init__(
        self,
        *,
        marks: Marks,
        catalog: Catalog,
        look_up: Callable[[Fingerprint], Awaitable[Generation | None]],
        blobs: BlobStore,
        statements: Statements,
        clock: Clock,
        monotonic: Callable[[], float],
        most_bytes: int,
    ) -> None:
        """`most_bytes`: of media and of request bodies, each."""
        self._marks = marks
        self._catalog = catalog
        self._look_up = look_up
        self._blobs = blobs
        self._statements = statements
        self._clock = clock
        self._monotonic = monotonic
        self._most_bytes = most_bytes
        self._hits: Recent[Fingerprint, Hit] = Recent(_MOST_HITS)
        self._questions: Recent[Question, Fingerprint] = Recent(
            most_bytes, lambda question: len(question[2]) + _QUESTION_BYTES
        )
        self.media: OrderedDict[Digest, Medium] = OrderedDict()
        self._media_bytes = self._files = 0
        self._links: Recent[str, Link] = Recent(_MOST_LINKS)
        self._balances: Recent[str, Balance] = Recent(_MOST_BALANCES)
        self._lessons: dict[tuple[str, str], asyncio.Task[None]] = {}

    def close(self) -> None:
        """Forget everything; files that are being sent are closed when they have been."""
        for lesson in list(self._lessons.values()):
            lesson.cancel()
        for digest in list(self.media):
            self._forget_medium(digest)

    # --- What is known

    def hit(self, scope: str | None, model: str, said: bytes, now: float) -> tuple[Hit, Medium] | None:
        """What answers a request whose body says this (`intake.respelled`), if that is known and still true.

        `now` is monotonic.
        """
        question = (model, scope, said)
        fingerprint = self._questions.get(question)
        if fingerprint is None:
            fingerprint = self._read(scope, model, said)
            if fingerprint is None or fingerprint not in self._hits:
                return None
            self._note_question(question, fingerprint)
        return self._believed(fingerprint, now)

    def _read(self, scope: str | None, model: str, body: bytes) -> Fingerprint | None:
        try:
            return intake.fingerprint_of_plain(scope, self._catalog.find(model), body)
        except GatewayError:
            return None

    def _believed(self, fingerprint: Fingerprint, now: float) -> tuple[Hit, Medium] | None:
        hit = self._hits.get(fingerprint)
        if hit is None:
            return None
        read = self._marks.read
        for place, mark in hit.marks:
            if read(place) != mark:
                return None
        medium = self.media.get(hit.digest)
        if medium is None:
            return None
        age_seconds = now - hit.learnt_at
        if age_seconds > BELIEVED_SECONDS:
            self._learn(("hit", fingerprint), self._study_generation, fingerprint)
            if age_seconds > _DOUBTED_SECONDS:
                return None
        return hit, medium

    def balance(self, caller: Caller) -> Balance | None:
        """What the caller can still spend, if that is known and still true."""
        balance = self._balances.get(caller.key_id)
        if (
            balance is None
            or balance.caller is not caller
            or not balance.since <= self._clock() < balance.until
        ):
            return None
        read = self._marks.read
        for place, mark in balance.marks:
            if read(place) != mark:
                return None
        if self._clock() - balance.since > BELIEVED_SECONDS:
            self._learn(("balance", caller.key_id), self._study_balance, caller)
        return balance

    def link(self, target: str, now: float) -> tuple[Link, Medium] | None:
        """Where a target leads, if that is known and still true; `now` is monotonic."""
        link = self._links.get(target)
        if link is None or self._clock() > link.expires:
            return None
        medium = self.media.get(link.digest)
        return (link, medium) if medium is not None and self._is_believed(medium, now) else None

    def _is_believed(self, medium: Medium, now: float) -> bool:
        if self._marks.read(medium.place) != medium.mark:
            return False
        age_seconds = now - medium.learnt_at
        if age_seconds > BELIEVED_SECONDS:
            self._learn(("blob", medium.digest), self._study_medium, medium.blob)
        return age_seconds <= _DOUBTED_SECONDS

    def is_sound(self, medium: Medium, now: float) -> bool:
        """Whether its file is what it was: asked of an open file always, of one whose bytes are here now and then."""
        try:
            if medium.content is None:
                return _identity_of(os.fstat(medium.descriptor)) == medium.identity
            if now - medium.looked_at < LOOK_EVERY_SECONDS:
                return True
            medium.looked_at = now
            return _identity_at(medium.path) == medium.identity
        except OSError:
            return False

    # --- What is learnt

    def learn_hit(self, caller: Caller, request: GenerationRequest, body: bytes) -> None:
        """The ordinary application has answered this with a hit: it can be done from memory next time."""
        tenant = caller.tenant
        said = intake.respelled(body)
        self._note_question((request.model, tenant.cache_scope, said), request.fingerprint)
        if self._believed(request.fingerprint, self._monotonic()) is None:
            self._learn(("hit", request.fingerprint), self._study_generation, request.fingerprint)
        if self.balance(caller) is None:
            self._learn(("balance", caller.key_id), self._study_balance, caller)

    def learn_link(self, target: str, blob: Blob, expires: float) -> None:
        """The ordinary application has sent this blob for this target, which is good until `expires`."""
        if target not in self._links:
            size = str(blob.size_bytes)
            headers = {**heads.of_link(blob.media_type, request=BLANK), **heads.of_blob(blob.digest)}
            part = {**headers, "Content-Range": heads.content_range(BLANK, BLANK, size)}
            link = Link(
                blob.digest,
                expires,
                whole=template("200 OK", headers, size),
                part=template("206 Partial Content", part, BLANK),
            )
            self._links.note(target, link)
        medium = self.media.get(blob.digest)
        if medium is None or not self._is_believed(medium, self._monotonic()):
            self._learn(("blob", blob.digest), self._study_medium, blob)

    def _learn(self, what: tuple[str, str], study: Callable[[T], Awaitable[object]], of: T) -> None:
        """One lesson about a thing at a time, behind the answer's back."""
        if what in self._lessons:
            return

        async def lesson() -> None:
            with suppress(
                GatewayError, OSError
            ):  # not learnt, then: the next request is answered as this one was
                await study(of)

        task = asyncio.create_task(lesson())
        self._lessons[what] = task
        task.add_done_callback(lambda _: self._lessons.pop(what, None))

    async def _study_generation(self, fingerprint: Fingerprint) -> None:
        marks = [self._mark(Marks.place(f"entry:{fingerprint}"))]
        known = await self._look_up(fingerprint)
        if known is None:
            return
        if others := known.blobs[1:]:
            marks += [self._mark(_place_of(blob)) for blob in others]
            known = await self._look_up(fingerprint)
        medium = await self._study_medium(known.blob) if known else None
        if known is None or medium is None:
            return
        marks.append((medium.place, medium.mark))
        limited = {
            **heads.of_generation(
                known, CacheStatus.HIT, request=BLANK, charged=Money.ZERO, age=BLANK, left=BLANK
            ),
            **heads.of_blob(medium.digest),
        }
        unlimited = {name: value for name, value in limited.items() if name != heads.REMAINING}
        size = str(medium.size_bytes)
        hit = Hit(
            medium.digest,
            known.purchase,
            known.made_at,
            known.cost.micros,
            limited=template("200 OK", limited, size),
            unlimited=template("200 OK", unlimited, size),
            marks=tuple(marks),
            learnt_at=self._monotonic(),
        )
        self._hits.note(fingerprint, hit)

    async def _study_medium(self, blob: Blob) -> Medium | None:
        place, mark = self._mark(_place_of(blob))
        located = await self._blobs.locate(blob.digest)
        if located is None:
            return None
        content, descriptor, identity = await asyncio.to_thread(_open, located.path, blob)
        medium = Medium(blob, located.path, identity, place, mark, self._monotonic(), content, descriptor)
        if content is None:
            # What was opened is what the store vouches for if it still lies there after the store has looked again.
            vouched = False
            try:
                again = await self._blobs.locate(blob.digest)
                vouched = (
                    again is not None and await asyncio.to_thread(_identity_at, located.path) == identity
                )
            finally:
                if not vouched:
                    medium.let_go()
            if not vouched:
                return None
        self._note_medium(medium)
        return medium

    def _mark(self, place: int) -> tuple[int, int]:
        return place, self._marks.read(place)

    async def _study_balance(self, caller: Caller) -> None:
        marks = tuple(self._mark(Marks.place(f"tenant:{tenant.name}")) for tenant in caller.tenant.chain)
        now, holders = self._clock(), caller.holders
        left = remaining(holders, await self._statements.balances_of(holders))
        budgets = [budget for holder in holders for budget in holder.budgets]
        ends = [end for budget in budgets if (end := budget.per.turns_at(now)) is not None]
        balance = Balance(
            caller,
            caller.party,
            marks,
            since=now,
            until=min([*ends, now + _DOUBTED_SECONDS]),
            left=None if left is None else heads.usd(left).encode(),
        )
        self._balances.note(caller.key_id, balance)

    # --- Bounds

    def _note_question(self, question: Question, fingerprint: Fingerprint) -> None:
        if len(question[2]) <= MOST_QUESTION_BYTES:
            self._questions.note(question, fingerprint)

    def _note_medium(self, medium: Medium) -> None:
        self._forget_medium(medium.digest)
        self.media[medium.digest] = medium
        self._account_for(medium, 1)
        while self._files > _MOST_FILES or self._media_bytes > self._most_bytes:
            self._forget_medium(next(iter(self.media)))

    def _forget_medium(self, digest: Digest) -> None:
        medium = self.media.pop(digest, None)
        if medium is not None:
            self._account_for(medium, -1)
            medium.let_go()

    def _account_for(self, medium: Medium, times: int) -> None:
        if medium.content is None:
            self._files += times
        else:
            self._media_bytes += times * medium.size_bytes


def _place_of(blob: Blob) -> int:
    return Marks.place(f"blob:{blob.digest}")


def _open(path: Path, blob: Blob) -> tuple[bytes | None, int, Identity]:
    """The bytes of a small file, or a descriptor of a larger one. FileNotFoundError where it is not the blob."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened = False
    try:
        identity = _identity_of(os.fstat(descriptor))
        if blob.size_bytes > SMALL_BYTES:
            content, opened = None, identity[1] == blob.size_bytes
        else:
            content = os.pread(descriptor, SMALL_BYTES + 1, 0)
        if not opened and (content is None or hashlib.sha256(content).hexdigest() != blob.digest):
            raise FileNotFoundError(path)
    finally:
        if not opened:
            os.close(descriptor)
    return content, descriptor if opened else -1, identity


def _identity_of(seen: os.stat_result) -> Identity:
    return seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _identity_at(path: Path) -> Identity:
    return _identity_of(path.lstat())
