# SPDX-License-Identifier: Apache-2.0
"""Makes a console of any ``Source``: what it brings goes into a hub, what is typed goes to it.

For a guest's main console (``runphi_async.terminals.console``), and for everything else that is a console: a named
channel, a board on a serial port. Logs, the engine's stdio and people are added to the hub.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from consoles.errors import SourceError
from consoles.sources.base import Breaks, OneWay
from consoles.sources.link import Backoff
from consoles.streams.hub import Hub, Spliced
from consoles.streams.input import KEY, Input

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Source
    from consoles.streams.journal import Journal

#: Seconds a break lasts: long enough for any line speed.
BREAK: Final = 0.25


class Feed:
    """Between a source (owned) and a hub.

    :param changed: told that the far end is gone (and why), or is back (``None``); for events.
    :param marks: whether both are also said in the console; a stream that a program reads holds the guest's bytes only.
    :ivar hub: reads what the source brings.
    :ivar input: what is typed.
    """

    def __init__(
        self,
        journal: Journal,
        source: Source,
        *,
        window: int,
        replay: int,
        changed: Callable[[str | None], None] = lambda reason: None,
        marks: bool = True,
    ) -> None:
        self._source = source
        self._marks = marks
        self._changed = changed
        self._closed = False
        #: set when the far end was reached for the first time, or could not be
        self.tried = asyncio.Event()
        source.pause()  # until the hub starts
        self.hub = Hub(journal, source, window=window, replay=replay)
        self.input = Input(source)

    async def open(self) -> None:
        """Reach the far end now.

        :raises SourceError: it cannot be reached.
        """
        try:
            await self._source.open(self)
        finally:
            self.tried.set()
        if self._closed:  # meanwhile: nobody would close what was opened just now
            await self._source.close()

    async def run(self) -> None:
        """Reach the far end, and try until it can be reached: for guests that exist already. Ends when it is."""
        backoff = Backoff()
        away = False
        while not self._closed:
            try:
                await self.open()
            except SourceError as exc:
                if not away:
                    away = True
                    self.gone(str(exc))
                await asyncio.sleep(backoff.pause())
                continue
            if away:
                self.back()
            return

    def typed(self, data: bytes) -> None:
        """Write what somebody typed, and look out for the echo if it was a key.

        The echo of a quick guest has gone all its way, to the screens of those who watch, when this returns.
        """
        self.input.feed(data)
        if data and len(data) <= KEY and not self.input.queued:
            self.hub.expect_echo()

    async def send_break(self, seconds: float = BREAK) -> None:
        """Send a break, where the source is a line that has such a thing.

        :raises SourceError: it has not, or is gone.
        """
        if not isinstance(self._source, Breaks):
            raise SourceError("cannot send a break: the console is no serial line")
        await self._source.send_break(seconds)

    @property
    def one_way(self) -> str:
        """Why the source takes no input, "" when it does."""
        return self._source.one_way if isinstance(self._source, OneWay) else ""

    # Section: what the source says

    def received(self, data: bytes) -> None:
        """Take bytes of the far end."""
        self.hub.accept(data)

    def gone(self, reason: str) -> None:
        """Say in the console that the far end is gone."""
        if self._closed:
            return
        self.input.gone()
        self._mark(f"the console is gone: {reason}")
        self._changed(reason)

    def back(self) -> None:
        """Say in the console that the far end is there again."""
        if self._closed:
            return
        self.input.back()
        self._mark("the console is back")
        self._changed(None)

    def _mark(self, text: str) -> None:
        if not self._marks:
            return
        journal = self.hub.journal
        fresh = journal.tail == 0 or journal.read(journal.tail - 1, 1) == b"\n"
        # A reason may hold what a command printed: nothing in it may act on a terminal.
        shown = "".join(c if c.isprintable() else "?" for c in text)
        self.hub.say(b"" if fresh else b"\r\n")
        self.hub.say(f"[runphi: {shown}]\r\n".encode("utf-8", "backslashreplace"))

    async def finish(self) -> None:
        """Take the last bytes, as far as that is not for the hub: it takes what is spliced when there is room."""
        if not isinstance(self._source, Spliced):
            await self.close()

    async def close(self) -> None:
        """Take the last bytes and let go of the source; the hub is closed by its owner."""
        if self._closed:
            return
        self._closed = True
        self.input.close()
        await self._source.close()
