# SPDX-License-Identifier: Apache-2.0
"""A person on a console: a socket that is fed as fast as it takes and skipped forward when it does not.

A slow client never slows the guest, the engine's stdio or another client (moby#41827, cri-o#7945); what it missed
is said in its own stream and counted. It may lag by so many bytes and by so many seconds, whichever comes first.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import struct
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from consoles.streams.journal import Journal

#: Largest piece of console output in one frame.
CHUNK: Final = 1 << 16
#: What a client that is skipped forward because of its age is shown at least: about a screenful.
LEAST: Final = 1 << 12
#: Words of ours that may wait for a client that does not read; the oldest give way.
WORDS: Final = 32
#: The age of what a client lags behind is known to this fraction of the age that is allowed.
STEPS: Final = 8


class AttachStatistics(NamedTuple):
    """Numbers of one client, in bytes; ``lag``: still to be sent; ``unread``: in the kernel's hands, about."""

    sent: int
    skipped: int
    lag: int
    unread: int


class Age:
    """How old the oldest byte is that a client has not been sent: where the journal ended at earlier times."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._ends: deque[tuple[float, int]] = deque()

    def note(self, now: float, tail: int) -> None:
        """The journal ends at ``tail`` now; called whenever it has grown."""
        if not self._ends or now - self._ends[-1][0] >= self._limit / STEPS:
            self._ends.append((now, tail))
            self._drop_old(now)

    def _drop_old(self, now: float) -> None:
        while len(self._ends) > 1 and self._ends[1][0] <= now - self._limit:
            self._ends.popleft()

    def onward(self, now: float, offset: int, tail: int) -> int:
        """Return where a client that stands at ``offset`` is to go on: there, or later if that is too old."""
        self._drop_old(now)
        if not self._ends or self._ends[0][0] > now - self._limit or self._ends[0][1] <= offset:
            return offset
        # Half of the limit ahead, so that a client that is slow for good is not skipped with every frame.
        young = next((end for when, end in self._ends if when >= now - self._limit / 2), tail)
        return max(offset, min(young, tail - LEAST))

    def forget(self) -> None:
        """The client has all."""
        self._ends.clear()


class AttachSink:
    """Feeds one attached client from the journal.

    :param sock: connected non-blocking stream socket; not owned.
    :param start: absolute offset of the first byte to show.
    :param limit: a client that lags more bytes than this is moved forward.
    :param on_gone: called once when the client's socket fails.
    :param age: a client that lags more seconds than this is moved forward, too.

    Frames are one type byte, a 32-bit big-endian length and the payload: ``A`` start offset, ``O`` output,
    ``K`` skipped (64-bit big-endian: offset it goes on at), and what ``push`` and ``tell`` are given.
    """

    def __init__(
        self,
        journal: Journal,
        sock: socket.socket,
        start: int,
        limit: int,
        on_gone: Callable[[], None],
        age: float = math.inf,
    ) -> None:
        self._journal = journal
        self._sock = sock
        self._fd = sock.fileno()
        self._limit = limit
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._age = Age(age)
        self._pending = memoryview(frame(b"A", struct.pack(">Q", start)))
        self._facts: dict[bytes, bytes] = {}
        self._words: deque[bytes] = deque(maxlen=WORDS)
        self._waiting = False
        self._closed = False
        self._idle = asyncio.Event()
        #: whether it is to be fed at once; whoever only watches can wait for a moment (``consoles.streams.hub``)
        self.eager = True
        self.offset = start
        self.sent = 0
        self.skipped = 0

    def statistics(self) -> AttachStatistics:
        """Return what the client got and missed so far."""
        return AttachStatistics(self.sent, self.skipped, self._journal.tail - self.offset, self._unread())

    def _unread(self) -> int:
        if self._closed:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def pump(self) -> None:
        """Send what there is, as far as the client takes it."""
        if self._waiting:
            self._age.note(self._loop.time(), self._journal.tail)
        elif not self._closed:
            self._send()

    def push(self, data: bytes) -> None:
        """Send a frame of another kind behind what is already on its way; too many of them push the oldest out."""
        if not self._closed:
            self._words.append(data)
            self.pump()

    def tell(self, kind: bytes, payload: bytes) -> None:
        """Send a frame of which only the latest of its kind counts."""
        if not self._closed:
            self._facts[kind] = frame(kind, payload)
            self.pump()

    def _next(self) -> bool:
        if self._facts:
            self._pending = memoryview(b"".join(self._facts.values()))
            self._facts.clear()
            return True
        if self._words:
            self._pending = memoryview(self._words.popleft())
            return True
        lag = self._journal.tail - self.offset
        if lag <= 0:
            self._age.forget()
            return False
        onward = self._onward(lag)
        if onward > self.offset:
            self.skipped += onward - self.offset
            self.offset = onward
            self._pending = memoryview(frame(b"K", struct.pack(">Q", onward)))
            return True
        data = self._journal.read(self.offset, CHUNK)
        self.offset += len(data)
        self._pending = memoryview(frame(b"O", data))
        return True

    def _onward(self, lag: int) -> int:
        """Return where to go on: at the next byte, or later if the client lags too far."""
        if lag > self._limit or self.offset < self._journal.base:
            return max(self._journal.base, self._journal.tail - self._limit // 2)
        return self._age.onward(self._loop.time(), self.offset, self._journal.tail)

    def _send(self) -> None:
        while self._pending or self._next():
            try:
                sent = self._sock.send(self._pending)
            except BlockingIOError:
                if not self._waiting:
                    self._waiting = True
                    self._idle.clear()
                    self._age.note(self._loop.time(), self._journal.tail)
                    self._loop.add_writer(self._fd, self._send)
                return
            except OSError:
                self.close()
                self._on_gone()
                return
            self.sent += sent
            self._pending = self._pending[sent:]
        self._stop_waiting()
        self._idle.set()

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)

    async def drained(self) -> None:
        """Wait until everything printed so far has been handed to the client's socket."""
        self.pump()
        if not self._closed:
            await self._idle.wait()

    def close(self) -> None:
        """Stop feeding; the socket stays the caller's."""
        self._closed = True
        self._stop_waiting()
        self._idle.set()


def frame(kind: bytes, payload: bytes) -> bytes:
    """Frame ``payload`` as the thin client reads it: type byte, 32-bit big-endian length, payload."""
    return kind + len(payload).to_bytes(4, "big") + payload
