# SPDX-License-Identifier: Apache-2.0
"""A libxenvchan server in a Xen guest as a source: we are its client, whenever it serves.

What a crash costs: the chunk that was read and not yet in the journal. What the guest wrote and we did not read stays
in its rings as long as its server does (``server_persist``), and while paused the ring fills and the guest waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from consoles.sharedmem.vchan import Vchan, load
from consoles.sources.link import DRAIN_MAX, Backoff, Returning, open_off_loop
from consoles.wakers import Wakers

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sharedmem.vchan import Library
    from consoles.sources.base import Listener

#: Chunks taken in one turn of the loop: a guest that never stops must leave others theirs.
TURN: Final = 4
#: Seconds between two looks for a server at most: it may come at any time of the guest's life.
LONGEST_PAUSE: Final = 1.0


class VchanLink:
    """One connection, see ``consoles.sources.link.Connection``; owns ``vchan``.

    :param received: given every chunk.
    :param lost: called once when the guest has closed it.
    """

    def __init__(self, vchan: Vchan, received: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self._vchan = vchan
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._open = True
        self._due = False
        self._wakers = Wakers()
        #: why the connection was lost, "" while it holds
        self.reason = ""
        self._loop.add_reader(vchan.fd, self._rang)

    def pause(self) -> None:
        """Leave what comes in the ring."""
        self._reading = False

    def resume(self) -> None:
        """Take what comes, and what is there already: no event will tell of it."""
        self._reading = True
        self._look_soon()

    def _rang(self) -> None:
        if self._vchan.wait():
            self._look()
        else:
            self.lose("its event channel failed")

    def _look_soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._look_now)

    def _look_now(self) -> None:
        self._due = False
        self._look()

    def _look(self) -> None:
        """Take what is there, and tell whoever waits that there is room."""
        for _ in range(TURN):
            if not self._reading or not self._holds:
                break
            data = self._vchan.read()
            if data is None:
                self.lose("the guest closed it")
                return
            if not data:
                break
            self._received(data)
        else:
            self._look_soon()
        if self._wakers and self._holds and self._vchan.has_room():
            self._wakers.wake()

    @property
    def _holds(self) -> bool:
        return self._open and not self.reason

    def lose(self, reason: str) -> None:
        """The guest is gone."""
        if self._holds:
            self.reason = reason
            self._loop.remove_reader(self._vchan.fd)
            self._wakers.drop()
            self._lost()

    def write(self, data: bytes) -> int:
        """Put into the ring what it takes at once."""
        if not self._holds:
            return 0
        count = self._vchan.write(data)
        if count is None:
            # Not from within the caller's own write; and what is left to read comes first.
            self._loop.call_soon(self.lose, "the guest closed it")
            return 0
        return count

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once the guest has made room; a connection that is lost wakes nobody."""
        if self._holds:
            self._wakers.add(wake)
            self._look_soon()

    async def close(self) -> None:
        """Deliver the rest, up to a bound, and disconnect."""
        if not self._open:
            return
        self._loop.remove_reader(self._vchan.fd)
        self._wakers.drop()
        left = DRAIN_MAX
        while left > 0 and (data := self._vchan.read()):
            left -= len(data)
            self._received(data)
        self._open = False
        self._vchan.close()


class VchanSource(Returning):
    """The host's end of a guest's vchan; it is no loss that the guest does not serve it yet.

    :param node: tells where in XenStore the server is; called off the loop.
    :param find: loads the library; called off the loop.
    """

    def __init__(
        self, node: Callable[[], str], find: Callable[[], Library] = load, backoff: Backoff | None = None
    ) -> None:
        super().__init__(backoff or Backoff(longest=LONGEST_PAUSE))
        self._node = node
        self._find = find
        self._library: Library | None = None

    async def open(self, listener: Listener) -> None:
        """Begin to look for the server, and from then on connect whenever there is one.

        :raises SourceError: libxenvchan cannot be had.
        """
        self._library = await asyncio.to_thread(self._find)
        self._listener = listener
        self._away = False
        self._task = asyncio.create_task(self._serve(), name=type(self).__name__)

    async def _serve(self) -> None:
        self._begin(await self._again())
        await self._keep()

    async def _connect(self) -> VchanLink:
        return VchanLink(await open_off_loop(self._dial, Vchan.close), self._deliver, self._lost.set)

    def _dial(self) -> Vchan:
        assert self._library is not None
        return self._library.connect(self._node())
