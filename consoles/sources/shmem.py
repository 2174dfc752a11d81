# SPDX-License-Identifier: Apache-2.0
"""A channel in shared memory as a source: looked at often while bytes flow and rarely while none do.

Where the device has a doorbell, its interrupt wakes us and the looking is only a safety net. What a crash between
storing bytes and giving their room back costs: nothing where the owner says how much is stored (``stored``), else up
to one ring of output comes twice. Input that was taken by ``write`` is in the ring and survives us. While paused the
ring fills and the guest waits; ``docs/reference/shared-memory.md`` says how it can tell.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from consoles.sharedmem.regions import open_region
from consoles.sharedmem.shmem import GUEST_CLOSED, GUEST_OPEN, Channel
from consoles.wakers import Wakers

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sharedmem.regions import Region
    from consoles.sharedmem.shmem import ChannelStatistics
    from consoles.sources.base import Listener

#: Seconds between two looks while bytes flow: the loop's own clock is no finer.
FAST: Final = 0.001
#: The same at rest: the longest that a byte waits on a guest which has been silent.
SLOW: Final = 0.04
#: Seconds without a byte after which the looks begin to grow rare, twice as rare each time.
GRACE: Final = 0.05
#: Looks at rest where a doorbell tells of news: only a guest that forgets to ring waits that long.
SAFETY: Final = 1.0
#: A guest that comes and goes faster than this many seconds is believed only so often.
STEADY: Final = 1.0
#: Largest piece handed on at once.
CHUNK: Final = 1 << 18


class Bell(Protocol):
    """A doorbell between the two sides of a region."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the guest has rung."""
        ...

    def answer(self) -> None:
        """Take the ring, so that the next one is heard."""
        ...

    def ring(self) -> None:
        """Ring at the guest's."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class ShmemStatistics(NamedTuple):
    """Numbers of a source: the channel's own, and how it is looked at.

    :ivar looks: how often that was.
    :ivar pace: seconds between two looks now.
    :ivar noticed: whether the guest was seen in it.
    """

    channel: ChannelStatistics
    looks: int
    pace: float
    noticed: bool


class ShmemSource:
    """The host's end of a channel as ``consoles.sources.base.Source``.

    :param place: where the memory is (``consoles.sharedmem.regions.parse_place``), or what finds that out; called off
        the loop.
    :param stored: bytes of this channel that an earlier supervisor stored; None: unknown.
    :param violation: told what the guest did wrong; may be called at every look.
    :param open_bell: opens the doorbell that the memory has; called off the loop.
    :param fresh: the memory may hold an earlier guest's channel, which means nothing.
    """

    def __init__(
        self,
        place: str | Callable[[], str],
        name: str,
        size: int,
        *,
        stored: int | None = None,
        violation: Callable[[str], None] | None = None,
        open_bell: Callable[[], Bell] | None = None,
        fresh: bool = False,
    ) -> None:
        self._place = place
        self._fresh = fresh
        self._name = name
        self._size = size
        self._stored = stored
        self._violation = violation
        self._open_bell = open_bell
        self._bell: Bell | None = None
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakers = Wakers()
        self._paused = False
        self._delay = FAST
        self._active = 0.0
        self._looks = 0
        self._guest: tuple[int, bool] | None = None
        self._believed = -STEADY
        self._channel: Channel | None = None

    async def open(self, listener: Listener) -> None:
        """Map the memory, lay the channel out or go on with it, and begin to look."""
        region, bell = await asyncio.to_thread(self._reach)
        try:
            channel = Channel(region, self._name, self._size, self._violation, fresh=self._fresh)
        except BaseException:
            region.close()
            if bell is not None:
                bell.close()
            raise
        self._bell = bell
        if self._stored is not None:
            channel.settle(self._stored)
        self._channel, self._listener = channel, listener
        if self._bell is not None:
            self._loop.add_reader(self._bell.fileno(), self._rang)
        self._active = self._loop.time()
        self._schedule(0)

    def _reach(self) -> tuple[Region, Bell | None]:
        region = open_region(self._place if isinstance(self._place, str) else self._place())
        try:
            return region, self._open_bell() if self._open_bell is not None else None
        except BaseException:
            region.close()
            raise

    def statistics(self) -> ShmemStatistics | None:
        """Return the numbers, None before ``open`` and after ``close``."""
        if self._channel is None:
            return None
        return ShmemStatistics(self._channel.statistics(), self._looks, self._delay, self._guest is not None)

    # Section: looking

    def _schedule(self, delay: float) -> None:
        self._forget_timer()
        self._timer = self._loop.call_later(delay, self.look)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Take what has come and tell of what has changed; the next look is planned by how much that was."""
        self._forget_timer()
        if self._channel is None:
            return
        self._looks += 1
        moved = False
        try:
            self._channel.beat()
            moved = self._move()
            if not moved:
                self._notice()
        finally:  # also when whoever takes the bytes fails: it may take them the next time
            if self._channel is not None:
                self._schedule(self._next(moved))

    def _next(self, moved: bool) -> float:
        """Return the seconds until the next look."""
        now = self._loop.time()
        if moved:
            self._active, self._delay = now, FAST
            # A ring that was half full is full again by the time a timer has run out.
            return 0
        if now - self._active > GRACE:
            slowest = SAFETY if self._bell is not None and not self._wakers else SLOW
            self._delay = min(self._delay * 2, slowest)
        return self._delay

    def _rang(self) -> None:
        assert self._bell is not None
        self._bell.answer()
        self.look()

    def _move(self) -> bool:
        """Hand on what came, and tell whoever waits that there is room; return whether anything moved."""
        assert self._channel is not None
        moved = False
        if not self._paused:
            moved = self.flush(CHUNK)
        if self._wakers and self._channel is not None and self._channel.writable() > 0:
            self._wakers.wake()
            moved = True
        return moved

    def flush(self, limit: int = 1 << 30) -> bool:
        """Hand on what is in the ring now, at most one ring of it; return whether there was anything."""
        if self._channel is None or self._listener is None:
            return False
        data = self._channel.peek(limit)
        if not data:
            return False
        self._listener.received(data)
        self._channel.release(len(data))
        if self._bell is not None:
            self._bell.ring()
        return True

    def _notice(self) -> None:
        """Tell when the guest has closed the channel or opened it again, as a guest that is reset does."""
        assert self._channel is not None
        assert self._listener is not None
        generation, state = self._channel.guest()
        if state not in (GUEST_OPEN, GUEST_CLOSED):
            return  # it has not come yet
        now, before = (generation, state == GUEST_OPEN), self._guest
        if now == before or self._loop.time() - self._believed < STEADY:
            return
        self._guest = now
        if before is None:
            return
        self._believed = self._loop.time()
        if before[1]:
            self._listener.gone("the guest closed it" if not now[1] else "the guest opened it anew")
        if now[1]:
            self._listener.back()

    # Section: the owner's side

    def pause(self) -> None:
        """Take nothing more out of the ring: when it is full the guest waits."""
        self._paused = True

    def resume(self) -> None:
        """Go on after ``pause``."""
        self._paused = False
        self._hurry()

    def write(self, data: bytes) -> int:
        """Put into the ring what it takes at once."""
        if self._channel is None:
            return 0
        count = self._channel.write(data)
        if count:
            if self._bell is not None:
                self._bell.ring()
            self._hurry()  # an answer is likely to come
        return count

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once the guest has made room."""
        self._wakers.add(wake)
        self._hurry()

    def _hurry(self) -> None:
        if self._channel is not None:
            self._active = self._loop.time()
            if self._delay > FAST or self._timer is None:
                self._delay = FAST
                self._schedule(FAST)

    async def close(self) -> None:
        """Stop looking, hand on what the ring still holds, and unmap."""
        self.flush()
        self.abandon()

    def abandon(self) -> None:
        """Let go as a supervisor does that is killed: the ring keeps what it holds."""
        self._forget_timer()
        self._wakers.drop()
        if self._bell is not None:
            if self._channel is not None:
                self._loop.remove_reader(self._bell.fileno())
            self._bell.close()
            self._bell = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
