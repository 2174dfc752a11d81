# SPDX-License-Identifier: Apache-2.0
"""Waiting for room, the one way it is done here: whoever could not write is called once when it is worth trying again.

One rule for all of them: **what is lost wakes nobody.** Those who wait for it are forgotten, and so is whoever asks
afterwards; that it is lost is told by other ways.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Wakers:
    """Those who wait for room in something; true while there are any."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._lost = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room; never, if it is lost before."""
        if not self._lost:
            self._waiting.append(wake)

    def wake(self) -> None:
        """Call all who wait now, in the order they came; whoever asks anew from within waits for the next time."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()

    def pass_on(self, ask: Callable[[Callable[[], None]], None]) -> None:
        """Let all who wait here wait elsewhere: ``ask`` is called with each of them."""
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            ask(wake)

    def drop(self) -> None:
        """What they wait for is lost: forget them, and whoever may still ask."""
        self._lost = True
        self._waiting.clear()


class Writable:
    """Those who wait until a descriptor takes bytes, which the loop watches only as long as; true while there are any.

    :param fd: non-blocking, not owned; ``drop`` comes before it is closed. -1: it is lost already.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._wakers = Wakers()
        self._watched = False
        if fd < 0:
            self._wakers.drop()

    def __bool__(self) -> bool:
        return bool(self._wakers)

    def add(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when the descriptor takes bytes; never, if it is lost before."""
        self._wakers.add(wake)
        if self._wakers and not self._watched:
            self._watched = True
            self._loop.add_writer(self._fd, self._ready)

    def _ready(self) -> None:
        self._wakers.wake()
        # Whoever writes much has asked again by now: one system call for all of it instead of two for each piece.
        if not self._wakers:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_writer(self._fd)

    def drop(self) -> None:
        """The descriptor is lost or about to be closed: forget those who wait, and whoever may still ask."""
        self._wakers.drop()
        self._unwatch()
