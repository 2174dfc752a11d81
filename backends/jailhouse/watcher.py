# SPDX-License-Identifier: Apache-2.0
"""Watches all cells of a hypervisor by looking at sysfs: often when something happens, rarely when nothing does.

There is no notification: ``state`` cannot be polled with ``poll``, and a finished guest stays where it is. One look
serves all cells.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.jailhouse.sysfs import View

log = logging.getLogger(__name__)

#: Seconds between two looks right behind a change: a short guest's end is seen as soon as anybody could tell.
FAST: Final = 0.02
#: Seconds between two looks at cells that do nothing new: the longest that an end goes unnoticed. A look costs a
#: millisecond for each cell.
SLOW: Final = 0.5
#: How much longer each pause is than the one before.
GROWTH: Final = 1.5
#: Looks without an answer before the board is given up: each of them has waited ``reading.PATIENCE`` already.
SILENCES: Final = 2


def _no_matter(exc: BaseException) -> None:
    """Nothing depends on being called."""


class Look(NamedTuple):
    """What one watcher wants to hear.

    :ivar on_view: called after every look, with None when there is no answer.
    :ivar on_failure: called when nobody looks any more, or ``on_view`` itself has failed, and why.
    """

    on_view: Callable[[View | None], None]
    on_failure: Callable[[BaseException], None] = _no_matter


class Watcher:
    """One for a hypervisor; looks only while somebody watches.

    :param look: reads sysfs; raises BackendError when that does not answer.
    """

    def __init__(self, look: Callable[[], Awaitable[View]]) -> None:
        self._look = look
        self._watchers: dict[str, Look] = {}
        self._followers: list[Callable[[View | None], None]] = []
        self._tasks = OwnedTasks(self._broke)
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._pause = FAST
        #: how often sysfs was looked at, for tests
        self.looks = 0

    def watch(self, name: str, look: Look) -> None:
        """Call after every look, until ``unwatch`` or until that has failed."""
        self._watchers[name] = look
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._run(), "watch over the cells")
        self.hurry()

    def follow(self, on_view: Callable[[View | None], None]) -> None:
        """Call ``on_view`` after every look that others cause, for ever."""
        self._followers.append(on_view)

    def unwatch(self, name: str) -> None:
        """Stop calling for a name."""
        self._watchers.pop(name, None)
        if not self._watchers and self._task is not None:
            self._task.cancel()
            self._task = None

    def hurry(self) -> None:
        """Something was done: look at once, and often for a while."""
        self._pause = FAST
        self._soon.set()

    async def _run(self) -> None:
        before: View | None = None
        silences = 0
        while True:
            self._soon.clear()
            try:
                view: View | None = await self._look()
                silences = 0
            except BackendError as exc:
                silences += 1
                log.error("%s", exc)
                view = None
            self.looks += 1
            if view is not None or silences >= SILENCES:
                self._tell(view)
            if view != before:
                before, self._pause = view, FAST
            await self._rest()

    def _tell(self, view: View | None) -> None:
        for on_view in self._followers:
            try:
                on_view(view)
            except Exception:
                log.exception("cannot act on what sysfs shows")
        for name, look in tuple(self._watchers.items()):
            try:
                look.on_view(view)
            except Exception as exc:  # one container's trouble must not blind the others
                log.exception("%s: cannot act on what sysfs shows", name)
                self._fail(name, exc)

    def _broke(self, task: str, exc: BaseException) -> None:
        """Looking has failed: nobody who watches would ever hear of anything again."""
        for name in tuple(self._watchers):
            self._fail(name, exc)

    def _fail(self, name: str, exc: BaseException) -> None:
        look = self._watchers.get(name)
        self.unwatch(name)
        if look is not None:
            look.on_failure(exc)

    async def _rest(self) -> None:
        pause, self._pause = self._pause, min(self._pause * GROWTH, SLOW)
        try:
            async with asyncio.timeout(pause):
                await self._soon.wait()
        except TimeoutError:
            return
        await asyncio.sleep(FAST / 2)  # whoever is in a hurry again and again must not make us spin
