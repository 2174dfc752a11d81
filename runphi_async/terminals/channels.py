# SPDX-License-Identifier: Apache-2.0
"""Named streams of a guest beside its console: each with a hub, an input queue and a log of its own.

A stream's journal is a file in the record directory, so it outlives a supervisor without the init stub's help. For a
byte ring the journal's length says what was stored and the ring's indices what was released: together nothing is lost
or doubled by a crash. Other sources cost what their own docstrings say. Nothing of ours is put into a stream: its bytes
are the guest's alone, and what happens to it is told by events (``channel-gone``, ``channel-back``,
``channel-violation``).
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final

from consoles.sources.shmem import ShmemSource
from consoles.streams.feed import Feed
from consoles.streams.fifo import open_fifo
from consoles.streams.hub import Hub
from consoles.streams.input import InputQueue
from consoles.streams.journal import Journal
from runphi_async.errors import NotFoundError
from runphi_async.partition import channels
from runphi_async.partition.channels import SERIAL, Channel
from runphi_async.partition.logplan import LogPlan
from runphi_async.terminals.consolelogs import ConsoleLogs

if TYPE_CHECKING:
    import anyio.abc

    from consoles.streams.input import Input
    from consoles.streams.sinks.attach import AttachSink, Outlet
    from runphi_async.config.schema import Config
    from runphi_async.record.store import Record
    from runphi_async.terminals.consolelogs import Note

log = logging.getLogger(__name__)

#: Seconds between two events about a guest that breaks a channel's rules: it can do so thousands of times a second.
QUIET: Final = 60.0
#: Directory of the streams in the record directory; each has one with its journal and its log's position.
STREAMS: Final = "streams"
JOURNAL: Final = "journal"
#: Directory of the streams' logs below the guest's own.
LOGS: Final = "channels"


def logs(config: Config, record: Record, name: str) -> tuple[LogPlan, ...]:
    """Return what is logged of a stream: its bytes as they are, if anything is logged of the guest."""
    if not record.log_dir:
        return ()
    directory = os.path.join(record.log_dir, LOGS, name)
    return (LogPlan("raw", directory, "console.log", config.log.max_bytes, config.log.max_files),)


class Stream:
    """One named stream; offers what ``runphi_async.terminals.console.Console`` offers to attach and logs.

    :param channel: what it is read from; None: the serial port, because a channel is the console.
    :param note: writes an event.
    """

    def __init__(self, config: Config, directory: str, record: Record, channel: Channel | None, note: Note) -> None:
        self.name = channel.name if channel is not None else SERIAL
        self.channel = channel
        self._note = note
        self._limits = config.console
        self._feed: Feed | None = None
        self._source: object = None
        self._breaches = 0
        self._told = -QUIET
        self._closed = False
        own = os.path.join(directory, STREAMS, self.name)
        os.makedirs(own, mode=0o700, exist_ok=True)
        journal = Journal(os.open(os.path.join(own, JOURNAL), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.hub: Hub
        self.input: Input
        if channel is None:
            self._open_serial(journal, directory)
        else:
            source = channels.source(channel, directory, journal.tail, self._breach)
            self._source = source
            window, replay = self._limits.window_bytes, self._limits.replay_bytes
            self._feed = Feed(journal, source, window=window, replay=replay, changed=self._changed, marks=False)
            self.hub, self.input = self._feed.hub, self._feed.input
        hold = self._limits.window_bytes // 2
        self.logs = ConsoleLogs(journal, self.hub, logs(config, record, self.name), own, -1, hold, self._log_note)

    def _open_serial(self, journal: Journal, directory: str) -> None:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            output, typed = open_fifo("con.out", dir_fd), open_fifo("con.in", dir_fd)
        finally:
            os.close(dir_fd)
        self.hub = Hub(journal, output, window=self._limits.window_bytes, replay=self._limits.replay_bytes)
        self.input = InputQueue(typed, self.hub.expect_echo)

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin to listen, before the guest's first instruction."""
        self.logs.start(tasks)
        self.hub.start()
        if self._feed is not None:
            tasks.start_soon(self._feed.run, name=f"channel {self.name}")

    def attach(self, outlet: Outlet, start: int | None, rows: int) -> AttachSink:
        """Add a person; see ``Hub.attach``."""
        limit, age = self._limits.attach_buffer_bytes, self._limits.attach_buffer_seconds
        return self.hub.attach(outlet, start=start, rows=rows, limit=limit, age=age)

    # Section: what happens to it

    def _changed(self, reason: str | None) -> None:
        if reason is None:
            self._note("channel-back", channel=self.name)
        else:
            self._note("channel-gone", channel=self.name, reason=reason)

    def _breach(self, what: str) -> None:
        self._breaches += 1
        if time.monotonic() - self._told >= QUIET:
            self._told = time.monotonic()
            log.warning("channel %s: the guest broke the rules: %s", self.name, what)
            self._note("channel-violation", channel=self.name, what=what, count=self._breaches)

    def _log_note(self, kind: str, **data: object) -> None:
        self._note(kind, channel=self.name, **data)

    def statistics(self) -> dict[str, object]:
        """Return the stream's numbers for people and programs."""
        received, kept, clients, stalls = (0, 0, 0, 0) if self._closed else self.hub.statistics()
        numbers: dict[str, object] = {
            "name": self.name,
            "source": self.channel.text() if self.channel is not None else "serial port",
            "received": received,
            "kept": kept,
            "clients": clients,
            "stalls": stalls,
            "typed": self.input.fed,
            "lost_in_log": sum(log.lost for log in self.logs.statistics()),
        }
        if isinstance(self._source, ShmemSource) and (ring := self._source.statistics()) is not None:
            channel = ring.channel
            numbers |= {
                "guest": ("never came", "open", "closed")[min(channel.guest_state, 2)],
                "guest_generation": channel.guest_generation,
                "waiting_up": channel.waiting_up,
                "waiting_down": channel.waiting_down,
                "violations": channel.violations,
                "looks": ring.looks,
            }
        return numbers

    # Section: its end

    async def drain(self) -> None:
        """The guest has ended: bring what is left to the log."""
        if self._feed is not None:
            await self._feed.close()
        await self.hub.drain(self._limits.drain_seconds)

    async def close(self) -> None:
        """Complete the log and let go of everything."""
        if self._feed is not None:
            await self._feed.close()
        self.input.close()
        await self.logs.close()
        self.hub.close()
        self._closed = True


def open_all(streams: dict[str, Stream], config: Config, directory: str, record: Record, note: Note) -> None:
    """Make the streams of a guest, or go on with those of an earlier supervisor.

    :param streams: where they are put, one by one: the caller closes them, also when one cannot be made.
    """
    for channel in record.channels:
        if channel.name != record.console_channel:
            streams[channel.name] = Stream(config, directory, record, channel, note)
    if record.console_channel is not None:
        streams[SERIAL] = Stream(config, directory, record, None, note)


def names(record: Record) -> list[str]:
    """Return the names of a guest's streams; the console's own is not among them."""
    found = [channel.name for channel in record.channels if channel.name != record.console_channel]
    return [*found, SERIAL] if record.console_channel is not None else found


def check(record: Record, name: str) -> None:
    """Refuse the name of a stream that the guest does not have.

    :raises NotFoundError: with those it has.
    """
    if name not in names(record) and name != record.console_channel:
        have = ", ".join(names(record)) or "none"
        raise NotFoundError(f"{record.id} has no channel {name!r}", f"it has: {have}")
