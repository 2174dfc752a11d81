# SPDX-License-Identifier: Apache-2.0
"""What a container's streams tell its guest: the size of the terminal, the end of input; and what they tell of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from consoles.streams import terminal
from runphi_async.errors import BackendError
from runphi_async.events import ConsoleBack, ConsoleGone

if TYPE_CHECKING:
    import anyio

    from backends.base import Driver
    from runphi_async.container.recorded import Recorded
    from runphi_async.events import AnyEvent
    from runphi_async.terminals.console import Console

log = logging.getLogger(__name__)

#: Seconds between two looks at the size of a guest's terminal. Nobody tells us: the pty is no one's controlling
#: terminal here, so no SIGWINCH comes (docs/reference/engines.md).
SIZE_PERIOD: Final = 0.5


class GuestTerminal:
    """The guest at the other end of the streams: their ``Owner``.

    :param ended: set when nobody is there any more.
    """

    def __init__(self, container: Recorded, driver: Driver, ended: anyio.Event) -> None:
        self.record = container.record
        self._container = container
        self._driver = driver
        self._ended = ended
        #: what the guest was told last
        self._size = terminal.Size(0, 0)

    @property
    def directory(self) -> str:
        """The record directory."""
        return self._container.directory

    def note(self, event: AnyEvent) -> None:
        """Write an event."""
        self._container.note(event)

    def console_changed(self, reason: str | None) -> None:
        """The far end of a console that is no FIFO is gone, or back."""
        self.note(ConsoleBack() if reason is None else ConsoleGone(reason=reason))

    def resize(self, rows: int, cols: int) -> None:
        """The terminal of `run`'s client or of whoever types has this size.

        With an engine's terminal that one counts: the engine's user sees the same screen, and cannot be told.
        """
        if self.record.engine_terminal or self._ended.is_set():
            return
        guest = self._driver.abilities.resizes
        if guest is None:
            return
        try:
            guest.resize(rows, cols)
        except BackendError as exc:  # the guest's init does not listen: its terminal keeps its size
            log.info("%s: %s", self.record.name, exc)

    def look(self, console: Console) -> None:
        """Tell the guest the size of the engine's terminal if it is news."""
        if self._ended.is_set():
            return
        guest = self._driver.abilities.resizes
        try:
            size = terminal.get_size(console.tty)
        except (OSError, ValueError):
            return  # hung up, or let go of already: there is no terminal to have a size
        if size != self._size and size.rows and size.cols and guest is not None:
            self._size = size
            try:
                guest.resize(size.rows, size.cols)
            except BackendError as exc:
                log.warning("%s: %s", self.record.name, exc)

    async def watch(self, console: Console) -> None:
        """Pass the size of the engine's terminal on whenever it has changed."""
        while True:
            await self._container.shared.clock.sleep(SIZE_PERIOD)
            self.look(console)

    def end_of_input(self, total: int) -> None:
        """The engine's stdin has ended, behind ``total`` bytes of input."""
        guest = self._driver.abilities.takes_eof
        if guest is not None and not self.record.terminal and not self._ended.is_set():
            try:
                guest.end_of_input(total)
            except BackendError as exc:
                log.warning("%s: %s", self.record.name, exc)
