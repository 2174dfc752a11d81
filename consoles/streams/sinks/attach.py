# SPDX-License-Identifier: Apache-2.0
"""A person on a console: an outlet that is fed as fast as it takes and skipped forward when it does not.

A slow client never slows the guest, the engine's stdio or another client (moby#41827, cri-o#7945); what it missed
is said in its own stream and counted. It may lag by so many bytes and by so many seconds, whichever comes first.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
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
    """Numbers of one client, in bytes; ``lag``: still to be sent; ``unread``: on its way, about."""

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


class Outlet(Protocol):
    """Where a person's console comes out: a connection that has words of its own for what it is told."""

    @property
    def full(self) -> bool:
        """Whether it has not got rid of what it was given, or has gone; until it has, it is given nothing more."""
        ...

    @property
    def gone(self) -> bool:
        """Whether nobody is there any more."""
        ...

    @property
    def sent(self) -> int:
        """Bytes that it has sent."""
        ...

    @property
    def unread(self) -> int:
        """Bytes that were sent and have not been read, about."""
        ...

    def when_room(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` whenever ``full`` has become false, and when it has gone; None: nobody any more."""
        ...

    def start(self, offset: int) -> None:
        """The console begins at this byte."""
        ...

    def output(self, data: bytes) -> None:
        """The guest printed this."""
        ...

    def skip(self, offset: int) -> None:
        """It goes on at this byte."""
        ...

    def notice(self, text: bytes) -> None:
        """Lines for the person, not the guest's."""
        ...

    def role(self, name: bytes) -> None:
        """What the person may do from now on."""
        ...


class AttachSink:
    """Feeds one attached client from the journal.

    :param start: absolute offset of the first byte to show.
    :param limit: a client that lags more bytes than this is moved forward.
    :param age: a client that lags more seconds than this is moved forward, too.
    """

    def __init__(self, journal: Journal, outlet: Outlet, start: int, limit: int, age: float = math.inf) -> None:
        self._journal = journal
        self._outlet = outlet
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._age = Age(age)
        self._begun = False
        self._role: bytes | None = None
        self._notices: deque[bytes] = deque(maxlen=WORDS)
        self._closed = False
        self._idle = asyncio.Event()
        outlet.when_room(self._go_on)
        #: whether it is to be fed at once; whoever only watches can wait for a moment (``consoles.streams.hub``)
        self.eager = True
        self.offset = start
        self.skipped = 0

    def statistics(self) -> AttachStatistics:
        """Return what the client got and missed so far."""
        outlet = self._outlet
        return AttachStatistics(outlet.sent, self.skipped, self._journal.tail - self.offset, outlet.unread)

    def pump(self) -> None:
        """Send what there is, as far as the client takes it."""
        if self._closed:
            return
        if self._outlet.full:
            self._wait()
        else:
            self._feed()

    def notice(self, text: bytes) -> None:
        """Send lines to the person behind what is already on its way; too many of them push the oldest out."""
        if not self._closed:
            self._notices.append(text)
            self.pump()

    def role(self, name: bytes) -> None:
        """Send what the person may do; only the latest counts."""
        if not self._closed:
            self._role = name
            self.pump()

    def _feed(self) -> None:
        more = True
        while more:
            more = self._next()
            if self._outlet.full:
                self._wait()
                return
        self._idle.set()

    def _wait(self) -> None:
        """Look again when there is room; how old grows what waits meanwhile?"""
        if not self._closed:
            self._idle.clear()
            self._age.note(self._loop.time(), self._journal.tail)

    def _go_on(self) -> None:
        if self._outlet.gone:
            self.close()
        elif not self._closed:
            self._feed()

    def _next(self) -> bool:
        """Give the outlet one thing, if there is one; return whether there may be more."""
        if not self._begun:
            self._begun = True
            self._outlet.start(self.offset)
            return True
        if self._role is not None:
            name, self._role = self._role, None
            self._outlet.role(name)
            return True
        if self._notices:
            self._outlet.notice(self._notices.popleft())
            return True
        lag = self._journal.tail - self.offset
        if lag <= 0:
            self._age.forget()
            return False
        onward = self._onward(lag)
        if onward > self.offset:
            self.skipped += onward - self.offset
            self.offset = onward
            self._outlet.skip(onward)
            return True
        data = self._journal.read(self.offset, CHUNK)
        self.offset += len(data)
        self._outlet.output(data)
        if len(data) < lag:
            return True
        self._age.forget()
        return False

    def _onward(self, lag: int) -> int:
        """Return where to go on: at the next byte, or later if the client lags too far."""
        if lag > self._limit or self.offset < self._journal.base:
            return max(self._journal.base, self._journal.tail - self._limit // 2)
        return self._age.onward(self._loop.time(), self.offset, self._journal.tail)

    async def drained(self) -> None:
        """Wait until everything printed so far has been handed to the client's connection, or it has gone."""
        self.pump()
        if not self._closed:
            await self._idle.wait()

    def close(self) -> None:
        """Stop feeding; the outlet stays the caller's, and completes what it was given."""
        if not self._closed:
            self._closed = True
            self._outlet.when_room(None)
            self._idle.set()
