"""A connection that answers by itself what it knows by heart, and hands everything else to aiohttp's own."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import RequestHandler

from gateway.database.marks import Marks
from gateway.domain.clock import Clock
from gateway.domain.errors import GatewayError
from gateway.domain.tenant import Caller, Role
from gateway.generation import intake
from gateway.http import ranges
from gateway.http.hit_path.memory import (
    LOOK_EVERY_SECONDS,
    MOST_QUESTION_BYTES,
    Medium,
    Memory,
)
from gateway.http.hit_path.plain import Ask, Fetch, Head, read_head
from gateway.http.hit_path.repeats import Repeat, Repeats, repeat_of
from gateway.http.hit_path.sending import Sending, push
from gateway.http.hit_path.served import Served
from gateway.http.request_ids import RequestIds
from gateway.tenants.contract import KEYS_MARK, Keys

_END_OF_HEAD = b"\r\n\r\n"
_HELD_SECONDS = 0.05
"""How long a head waits here for its body: clients that write the two apart write the second at once."""

_MOST_HEADS = 10_000
_MOST_REMEMBERED_HEAD_BYTES = 2048
"""Nobody has to have a key to send heads: all that are remembered take 30 MB at most."""

KEYS_PLACE = Marks.place(KEYS_MARK)


class HitPath:
    """What the connections of one listener share."""

    def __init__(
        self,
        memory: Memory,
        repeats: Repeats,
        marks: Marks,
        served: Served,
        keys: Keys,
        request_ids: RequestIds,
        clock: Clock,
        max_body_bytes: int,
        call_soon: Callable[[Callable[[], object]], object],
    ) -> None:
        self.memory = memory
        self.repeats = repeats
        self.marks = marks
        self.served = served
        self.request_ids = request_ids
        self.clock = clock
        self.max_body_bytes = max_body_bytes
        self.heads: dict[bytes, Head] = {}
        """A client's requests have the same head again and again: read once, it is known by its bytes."""
        self.revision = -1
        """Of the keys, as of `looked_at`."""
        self.looked_at = -math.inf
        self._keys = keys
        self._call_soon = call_soon
        self._second = -1
        self._date = b""
        self.unsent: list[tuple[asyncio.Transport, bytes]] = []

    def send(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Write it when this turn of the loop is over, together with all others of the turn.

        A caller is woken by its answer, and to wake somebody costs more than to answer: callers that are woken one
        right after the other are still awake.
        """
        if not self.unsent:
            self._call_soon(self.send_all)
        self.unsent.append((transport, answer))

    def send_all(self) -> None:
        """Write what is to be written: to be called before anything else may write to one of these transports."""
        if not self.unsent:
            return
        unsent, self.unsent = self.unsent, []
        for transport, answer in unsent:
            transport.write(answer)

    def caller(self, ask: Ask, now: float) -> Caller | None:
        """Who asks; None for whom the ordinary application is to refuse, or to count how often it asks."""
        try:
            # Before the key is looked at: what is revoked after that is another revision.
            self.revision = self._keys.revision
            if ask.known_by != self.revision:
                caller = self._keys.authenticate(ask.key)
                ask.caller = caller if _may_always_ask(caller, ask.model) else None
                ask.known_by = self.revision
        except GatewayError:
            return None
        self.looked_at = now
        return ask.caller

    def date(self, at: float) -> bytes:
        """The time `at`, which is now, as the Date header has it."""
        second = int(at)
        if second != self._second:
            self._second, self._date = second, rfc822_formatted_time().encode()
        return self._date


def _age(made_at: float, moment: float) -> bytes:
    """Whole seconds since then."""
    return b"%d" % max(0.0, moment - made_at)


def _may_always_ask(caller: Caller, model: str) -> bool:
    return caller.terms.role is Role.CALLER and caller.terms.rate is None and caller.may_use(model)


class HitConnection(RequestHandler):
    """aiohttp's connection, with a way to the wire of its own for plain and whole requests.

    Such a request is answered here while nothing else is under way on the connection, and handed on whole otherwise.
    As soon as anything arrives of which it is not certain where it ends, the connection is aiohttp's for good: two
    readers must not have different opinions of where a request begins (request smuggling).

    This rests on a few attributes of aiohttp's RequestHandler that are not its public interface, which is why its
    version is pinned; `listen.hit_path: false` does without.
    """

    __slots__ = (
        "_aligned",
        "_answered",
        "_held",
        "_held_until",
        "_held_whole_bytes",
        "_out",
        "_path",
        "_sending",
        "_under_way",
    )

    def __init__(self, path: HitPath, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._path = path
        self._aligned = True
        """Whether aiohttp's parser stands between two requests whenever none is under way."""
        self._answered = 0
        """How many of the requests that aiohttp's parser has counted have been answered."""
        self._held = b""
        self._held_whole_bytes = 0
        self._held_until: asyncio.TimerHandle | None = None
        self._sending: Sending | None = None
        self._under_way: tuple[Medium, Callable[[int], None]]
        self._out: socket.socket | None = None

    # --- What arrives

    def data_received(self, data: bytes) -> None:
        if not self._aligned or self._force_close or self._close:
            super().data_received(data)
            return
        if self._request_count != self._answered and not self._is_written():
            self._queue(data)
            return
        if self._held_until is not None:
            self._take_up(data)
            return
        now = self._loop.time()
        repeat = self._path.repeats.get(data)
        if repeat is not None and self._answer_again(repeat, now, together=False):
            return
        end = data.find(_END_OF_HEAD) + 4
        head = (self._path.heads.get(data[:end]) or self._read_head(data[:end])) if end > 3 else None
        if head is None:
            self._hand_on(data)
            return
        missing = end + head.body_bytes - len(data)
        if not missing:
            answered = (isinstance(head, Ask) and self._answer(head, data, end, now)) or (
                isinstance(head, Fetch) and self._fetch(head, now)
            )
            if not answered:
                self._hand_on_whole(data)
        elif missing > 0 and isinstance(head, Ask) and head.body_bytes <= MOST_QUESTION_BYTES:
            self._hold(data, missing)
        else:
            self._hand_on(data)

    def _is_written(self) -> bool:
        """Whether the one request under way has all of its answer on the wire, and only its handler has yet to end.

        A caller in a hurry asks again before it has; without this, it would meet the ordinary application for good.
        """
        request = self._current_request
        return (
            request is not None
            and self._request_count == self._answered + 1
            and isinstance(request.writer, StreamWriter)
            and request.writer._eof  # noqa: SLF001 -- what is to be known has no public name
        )

    def _queue(self, data: bytes) -> None:
        """A request is under way, if only to its last line: whatever this is, it waits its turn with aiohttp."""
        end = data.find(_END_OF_HEAD) + 4
        head = self._path.heads.get(data[:end]) or self._read_head(data[:end])
        if head is not None and end + head.body_bytes == len(data):
            self._hand_on_whole(data)
        else:
            self._hand_on(data)

    def _read_head(self, written: bytes) -> Head | None:
        head = read_head(written)
        if head is not None and len(written) <= _MOST_REMEMBERED_HEAD_BYTES:
            heads = self._path.heads
            if len(heads) >= _MOST_HEADS:
                heads.clear()
            heads[written] = head
        return head

    def _hand_on(self, data: bytes) -> None:
        self._path.send_all()
        if data:  # else aiohttp goes on by itself with what it has
            self._aligned = False
        super().data_received(data)

    def _hand_on_whole(self, data: bytes) -> None:
        self._path.send_all()
        known = self._request_count
        super().data_received(data)
        # One request was handed on; a parser that has found none or two has another opinion of where it ends. What is
        # too large is refused, and the connection with it.
        self._aligned = self._request_count == known + 1 and len(data) <= self._path.max_body_bytes

    async def finish_response(self, *args: Any) -> tuple[web.StreamResponse, bool]:
        try:
            return await super().finish_response(*args)
        finally:
            self._answered += 1

    # --- A body that comes after its head

    def _hold(self, data: bytes, missing: int) -> None:
        self._held, self._held_whole_bytes = data, len(data) + missing
        self._held_until = self._loop.call_later(_HELD_SECONDS, self._hand_on_held)

    def _take_up(self, data: bytes) -> None:
        missing = self._held_whole_bytes - len(self._held) - len(data)
        if missing > 0:
            # The time goes on as it was: a body that comes byte by byte is no reason to wait longer.
            self._held += data
        elif missing == 0:
            self.data_received(self._let_go_of_held() + data)
        else:
            # As it came: what is wrong with what lies beyond the end is told after the answer to what lies before it.
            self._hand_on_held()
            self.data_received(data)

    def _hand_on_held(self) -> None:
        # aiohttp has the time that a slow body takes, and the answer when it takes too long.
        self._hand_on(self._let_go_of_held())

    def _let_go_of_held(self) -> bytes:
        if self._held_until is not None:
            self._held_until.cancel()
            self._held_until = None
        held, self._held = self._held, b""
        return held

    # --- Answers

    def _answer_again(self, repeat: Repeat, now: float, *, together: bool) -> bool:
        """Answer what was answered before, `together` with others or at once; False for what has to be looked at anew.

        An answer to known bytes is made faster than its caller falls asleep: that one need not wait for others.
        """
        path, transport = self._path, self.transport
        moment = path.clock()
        medium = path.memory.media.get(repeat.digest)
        if (
            repeat.marks_of(path.marks.page) != repeat.marks
            or repeat.revision != path.revision
            or now - path.looked_at > LOOK_EVERY_SECONDS
            or not repeat.since <= moment < repeat.until
            or now > repeat.good_until
            or medium is None
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size()
        ):
            return False
        content = medium.content
        if content is None:
            if self._request_in_progress or not path.memory.is_sound(medium, now):
                return False
        elif now - medium.looked_at > LOOK_EVERY_SECONDS:
            return False
        head = repeat.head % (path.request_ids.next_bytes(), _age(repeat.made_at, moment), path.date(moment))
        if content is None:
            self._send_file(
                transport, head, medium, 0, medium.size_bytes, now, partial(self._count_again, repeat, now)
            )
            return True
        if together:
            path.send(transport, head + content)
        else:
            if path.unsent:
                path.send_all()
            transport.write(head + content)
        self._next_keepalive_close_time = now + self._keepalive_timeout
        repeat.counted.add(repeat.saved_micros, self._loop.time() - now, len(content))
        return True

    def _count_again(self, repeat: Repeat, since: float, sent_bytes: int) -> None:
        repeat.counted.add(repeat.saved_micros, self._loop.time() - since, sent_bytes)

    def _answer(self, ask: Ask, data: bytes, end: int, now: float) -> bool:
        """Answer what is known; `data` is all of the request, and its body begins at `end`."""
        path = self._path
        if ask.body_bytes > path.max_body_bytes:
            return False
        said = intake.respelled(data[end:])
        question = (ask.key, ask.model, said)
        repeat = path.repeats.by_question.get(question)
        if repeat is not None and self._answer_again(repeat, now, together=True):
            path.repeats.meet(data, repeat)
            return True
        keys_mark = path.marks.read(KEYS_PLACE)
        caller = path.caller(ask, now)
        if caller is None:
            return False
        known = path.memory.hit(caller.tenant.cache_scope, ask.model, data[end:], now)
        balance = path.memory.balance(caller)
        if known is None or balance is None:
            return False
        hit, medium = known
        counted = path.served.hits(balance.party, ask.model, hit.purchase)
        moment = path.clock()
        request, age, date = path.request_ids.next_bytes(), _age(hit.made_at, moment), path.date(moment)
        if balance.left is None:
            head = hit.unlimited % (request, age, date)
        else:
            head = hit.limited % (request, age, balance.left, date)

        def sent(sent_bytes: int) -> None:
            counted.add(hit.saved_micros, self._loop.time() - now, sent_bytes)

        if not self._send(head, medium, 0, medium.size_bytes, now, sent):
            return False
        if len(said) <= MOST_QUESTION_BYTES:
            repeat = repeat_of(hit, balance, (KEYS_PLACE, keys_mark), path.revision, counted)
            path.repeats.note(question, repeat)
            path.repeats.meet(data, repeat)
        return True

    def _fetch(self, fetch: Fetch, now: float) -> bool:
        known = self._path.memory.link(fetch.target, now)
        if known is None:
            return False
        link, medium = known
        request, date = self._path.request_ids.next_bytes(), self._path.date(self._path.clock())
        match ranges.wanted(fetch.range, medium.size_bytes):
            case None:
                start, count = 0, medium.size_bytes
                head = link.whole % (request, date)
            case (_, 0):
                return False
            case (start, count):
                span = (b"%d" % start, b"%d" % (start + count - 1), b"%d" % count)
                head = link.part % (request, *span, date)
        return self._send(head, medium, start, count, now, self._path.served.fetched)

    def _send(
        self,
        head: bytes,
        medium: Medium,
        start: int,
        count: int,
        now: float,
        sent: Callable[[int], None],
    ) -> bool:
        """Send it, or refuse to: whoever is refused has been sent nothing. `sent` is told how much went out."""
        transport = self.transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        if not self._path.memory.is_sound(medium, now):
            return False
        if medium.content is None:
            if self._request_in_progress:
                return False
            self._send_file(transport, head, medium, start, count, now, sent)
            return True
        content = medium.content if count == medium.size_bytes else medium.content[start : start + count]
        self._path.send(transport, head + content)
        self._next_keepalive_close_time = now + self._keepalive_timeout
        sent(count)
        return True

    def _send_file(
        self,
        transport: asyncio.Transport,
        head: bytes,
        medium: Medium,
        start: int,
        count: int,
        now: float,
        sent: Callable[[int], None],
    ) -> None:
        if self._path.unsent:
            self._path.send_all()
        if self._out is None:
            self._out = transport.get_extra_info("socket").dup()
        try:
            head, pushed = push(self._out, head, medium.descriptor, start, count)
        except OSError:
            transport.abort()
            sent(0)
            return
        if pushed == count:
            self._next_keepalive_close_time = now + self._keepalive_timeout
            sent(count)
            return
        medium.hold()
        self._under_way = (medium, lambda sent_since: sent(pushed + sent_since))
        # Whoever shuts down waits for it, as for any other request.
        self._request_in_progress = True
        # What the caller asks next waits in its socket.
        transport.pause_reading()
        self._sending = Sending(
            self._loop, self._out, medium.descriptor, start + pushed, count - pushed, self._sent
        )
        self._sending.begin(head)

    def _sent(self, error: OSError | None) -> None:
        self._let_go()
        if self.transport is None:
            return
        if error is not None:
            # The length was promised: a body that is short must not look like a whole one.
            self.transport.abort()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self.transport.resume_reading()

    def _let_go(self) -> None:
        medium, sent = self._under_way
        medium.let_go()
        if self._sending is not None:
            # An answer counts, as everywhere, whether or not the caller has stayed for all of it.
            sent(self._sending.sent_bytes)
            self._sending = None
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)

    def _process_keepalive(self) -> None:
        if self._sending is None:
            super()._process_keepalive()
        else:
            # aiohttp takes the connection for idle.
            self._keepalive_handle = self._loop.call_later(self._keepalive_timeout, self._process_keepalive)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 -- aiohttp's signature
        self._path.send_all()
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._let_go_of_held()
        if self._sending is not None:
            self._sending.cancel()
            self._let_go()
        if self._out is not None:
            self._out.close()
        super().connection_lost(exc)


class HitRunner(web.AppRunner):
    """Serves an application over connections that take the hit path where they can."""

    def __init__(self, application: web.Application, path: HitPath, **options: Any) -> None:
        super().__init__(application, **options)
        self._path = path

    async def _make_server(self) -> web.Server:
        ordinary = await super()._make_server()
        return _HitServer(
            self._path,
            ordinary.request_handler,
            request_factory=ordinary.request_factory,
            handler_cancellation=ordinary.handler_cancellation,
            **ordinary._kwargs,  # noqa: SLF001 -- what a connection is made with is said nowhere else
        )


class _HitServer(web.Server):
    def __init__(self, path: HitPath, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._path = path

    def __call__(self) -> RequestHandler:
        return HitConnection(self._path, self, loop=self._loop, **self._kwargs)
