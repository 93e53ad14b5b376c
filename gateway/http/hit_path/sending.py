"""A part of a file to a socket, from kernel to kernel, beside the event loop's transport."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable

_MOST_AT_ONCE = 4 * 2**20
"""Bytes that are sent before others have their turn: a caller who reads fast must not keep the loop to itself."""

_NOBODY_HAS_LOOKED = -1

_STALLED_SECONDS = 60.0
"""How long a caller may take nothing at all before it is given up; nginx's send_timeout is as long."""


def push(out: socket.socket, head: bytes, file: int, offset: int, count: int) -> tuple[bytes, int]:
    """Send what can be sent now of a head, and of `count` bytes of a file behind it.

    Answers with what is left of the head, and how much of the file was sent: all of it, what the socket had room for,
    or what may be sent at once. Raises OSError for a socket that is broken, and for a file that has become shorter.
    """
    sent = 0
    count = min(count, _MOST_AT_ONCE)
    to = out.fileno()
    try:
        while head:
            # A caller who has yet to read what was sent before may leave no room for all of it.
            head = head[out.send(head, socket.MSG_MORE) :]
        # Once: had it taken less than all of it, the next call would only say that the socket is full.
        sent = os.sendfile(to, file, offset, count)
        if not sent and count:
            raise BrokenPipeError("the file is shorter than it was")
    except BlockingIOError:
        pass
    return head, sent


class Sending:
    """One answer on its way: a head, and `count` bytes of a file from `start` on.

    asyncio's own sendfile needs two thread-safe futures, a registration with the selector and a coroutine for each
    answer, and may not be used on the transport's own descriptor; this writes to a duplicate of it until it is full.
    Nobody else may write meanwhile, and the transport's buffer has to be empty.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        out: socket.socket,
        file: int,
        start: int,
        count: int,
        ended: Callable[[OSError | None], None],
    ) -> None:
        """`out` and `file` stay the caller's, and open until `ended` is called: with what broke it, if it broke."""
        self._loop = loop
        self._out = out
        self._file = file
        self._start = self._offset = start
        self._end = start + count
        self._ended = ended
        self._head = b""
        self._waits = False
        self._watch: asyncio.TimerHandle | None = None

    @property
    def sent_bytes(self) -> int:
        """How much of the file has been sent."""
        return self._offset - self._start

    def begin(self, head: bytes) -> None:
        """Go on as soon as the socket takes more, and so on until the end."""
        self._head = head
        self._waits = True
        self._loop.add_writer(self._out.fileno(), self._go_on)
        self._watch_from(_NOBODY_HAS_LOOKED)

    def cancel(self) -> None:
        """Give it up; `ended` is not called."""
        if self._waits:
            self._loop.remove_writer(self._out.fileno())
            self._waits = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _go_on(self) -> None:
        try:
            left = self._end - self._offset
            self._head, sent = push(self._out, self._head, self._file, self._offset, left)
        except OSError as error:
            self.cancel()
            self._ended(error)
            return
        self._offset += sent
        if self._offset == self._end:
            self.cancel()
            self._ended(None)

    def _watch_from(self, taken: int) -> None:
        self._watch = self._loop.call_later(_STALLED_SECONDS, self._look, taken)

    def _look(self, taken_before: int) -> None:
        taken = self._taken()
        if taken == taken_before:
            self.cancel()
            self._ended(TimeoutError("the caller has stopped reading"))
        else:
            self._watch_from(taken)

    def _taken(self) -> int:
        """How much has been sent, less what still lies in the socket: a socket takes more only when a third is empty."""
        waiting = fcntl.ioctl(self._out, termios.TIOCOUTQ, bytes(4))
        return self._offset - int.from_bytes(waiting, sys.byteorder)
