# SPDX-License-Identifier: Apache-2.0
"""One stream of a container: a source, the journal it goes into, the logs of that, and the people on it.

The console is one (``runphi_async.terminals.console``, which adds the engine's stdio), and so is each named stream
(``runphi_async.terminals.channels``). Attach, logs and replay know no other kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from consoles.streams.feed import Feed
from runphi_async.terminals.consolelogs import ConsoleLogs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from consoles.sources.base import Source
    from consoles.streams.journal import Journal
    from consoles.streams.sinks.attach import AttachSink, Outlet
    from runphi_async.aio.tasks import Tasks
    from runphi_async.config.schema import Console as Limits
    from runphi_async.events import AnyEvent
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.record.store import Record
    from runphi_async.terminals.sessions import Sessions


class Owner(Protocol):
    """The container whose streams they are, and what they tell it."""

    record: Record

    @property
    def directory(self) -> str:
        """Its record's directory."""
        ...

    def note(self, event: AnyEvent) -> None:
        """Write an event."""
        ...

    def resize(self, rows: int, cols: int) -> None:
        """Give the guest's terminal this size: it is that of whoever types on the console."""
        ...

    def end_of_input(self, total: int) -> None:
        """Tell the guest that nothing more will be typed, behind ``total`` bytes."""
        ...

    def console_changed(self, reason: str | None) -> None:
        """Say that the far end of a console that is no FIFO is gone, and why, or is back (None)."""
        ...


class Logged(NamedTuple):
    """What is logged of a stream.

    :ivar directory: where positions are kept.
    :ivar cursor: description on the journal that keeps the raw log's position, owned; -1: there is none.
    :ivar note: writes an event.
    """

    plans: Sequence[LogPlan]
    directory: str
    note: Callable[[AnyEvent], None]
    cursor: int = -1


class Stream:
    """One stream; owns source and journal.

    :param people: those who attach; also its ``people``.
    :param changed: told that the far end is gone, and why, or is back (None).
    :param marks: whether that is also said in the stream.
    """

    def __init__(
        self,
        source: Source,
        journal: Journal,
        logs: Logged,
        people: Sessions,
        *,
        limits: Limits,
        changed: Callable[[str | None], None],
        marks: bool,
    ) -> None:
        self.people = people
        self._limits = limits
        window, replay = limits.window_bytes, limits.replay_bytes
        self._feed = Feed(journal, source, window=window, replay=replay, changed=changed, marks=marks)
        self.hub = self._feed.hub
        self.input = self._feed.input
        # Less than the window: a guest must not wait for a disk that refuses.
        hold = window // 2
        self.logs = ConsoleLogs(self.hub, logs.plans, logs.directory, cursor=logs.cursor, hold=hold, note=logs.note)

    def start(self, tasks: Tasks) -> None:
        """Begin to listen, before the guest's first instruction."""
        self.logs.start(tasks)
        self.hub.start()
        tasks.start_soon(self._feed.run, name="console source")

    def attach(self, outlet: Outlet, start: int | None, rows: int) -> AttachSink:
        """Add a person; see ``Hub.attach``."""
        limit, age = self._limits.attach_buffer_bytes, self._limits.attach_buffer_seconds
        return self.hub.attach(outlet, start=start, rows=rows, limit=limit, age=age)

    def typed(self, data: bytes) -> None:
        """Write what somebody typed, and look out for the echo if it was a key; see ``Feed.typed``."""
        self._feed.typed(data)

    async def drain(self) -> bool:
        """Bring all that the guest, which has ended, printed to the lossless readers; return whether they have it."""
        await self._feed.finish()
        return await self.hub.drain(self._limits.drain_seconds)

    async def close(self) -> None:
        """Complete the logs and let go of everything."""
        self.input.close()
        await self._feed.finish()
        await self.logs.close()
        self.hub.close()
        await self._feed.close()
