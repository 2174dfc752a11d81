# SPDX-License-Identifier: Apache-2.0
"""Named streams of a guest beside its console: each with a source, a log and people of its own.

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
from consoles.streams.fifo import FifoSource
from consoles.streams.journal import Journal
from runphi_async.errors import NotFoundError
from runphi_async.events import ChannelBack, ChannelGone, ChannelViolation, on_channel
from runphi_async.partition import channels
from runphi_async.partition.channels import SERIAL, Channel
from runphi_async.partition.logplan import LogPlan
from runphi_async.terminals.sessions import Sessions
from runphi_async.terminals.stream import Logged, Stream

if TYPE_CHECKING:
    from consoles.sources.base import Source
    from runphi_async.config.schema import Config
    from runphi_async.events import AnyEvent
    from runphi_async.record.store import Record
    from runphi_async.terminals.stream import Owner

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


class ChannelStream(Stream):
    """One named stream.

    :param channel: what it is read from; None: the serial port, because a channel is the console.
    """

    def __init__(self, owner: Owner, config: Config, channel: Channel | None) -> None:
        self.name = channel.name if channel is not None else SERIAL
        self.channel = channel
        self._note = owner.note
        self._breaches = 0
        self._told = -QUIET
        self._closed = False
        own = os.path.join(owner.directory, STREAMS, self.name)
        os.makedirs(own, mode=0o700, exist_ok=True)
        journal = Journal(os.open(os.path.join(own, JOURNAL), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._source: Source
        if channel is None:
            self._source = FifoSource.opened(owner.directory)
        else:
            self._source = channels.source(channel, owner.directory, journal.tail, self._breach)
        super().__init__(
            self._source,
            journal,
            Logged(logs(config, owner.record, self.name), own, self._own_note),
            Sessions(self._own_note, lambda rows, cols: None),
            limits=config.console,
            changed=self._changed,
            marks=False,
        )

    # Section: what happens to it

    def _own_note(self, event: AnyEvent) -> None:
        self._note(on_channel(event, self.name))

    def _changed(self, reason: str | None) -> None:
        if reason is None:
            self._note(ChannelBack(channel=self.name))
        else:
            self._note(ChannelGone(channel=self.name, reason=reason))

    def _breach(self, what: str) -> None:
        self._breaches += 1
        if time.monotonic() - self._told >= QUIET:
            self._told = time.monotonic()
            log.warning("channel %s: the guest broke the rules: %s", self.name, what)
            self._note(ChannelViolation(channel=self.name, what=what, count=self._breaches))

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

    async def close(self) -> None:
        """Complete the log and let go of everything."""
        await super().close()
        self._closed = True


def open_all(streams: dict[str, ChannelStream], config: Config, owner: Owner) -> None:
    """Make the streams of a guest beside its console, or go on with those of an earlier supervisor.

    :param streams: where they are put, one by one: the caller closes them, also when one cannot be made.
    """
    for name, channel in _beside(owner.record).items():
        streams[name] = ChannelStream(owner, config, channel)


def names(record: Record) -> list[str]:
    """Return the names of a guest's streams; the console's own is not among them."""
    return list(_beside(record))


def _beside(record: Record) -> dict[str, Channel | None]:
    """Return the streams beside the console: where a channel is the console, the serial port (None) is one of them."""
    found: dict[str, Channel | None] = {channel.name: channel for channel in record.channels}
    if record.console_channel is not None:
        found.pop(record.console_channel, None)
        found[SERIAL] = None
    return found


def resolve(record: Record, name: str | None) -> str | None:
    """Return which stream somebody means, None for the console.

    That is meant by no name, and by the name of the channel that is the console.

    :raises NotFoundError: there is none of that name; it says which there are.
    """
    if name is None or name == record.console_channel:
        return None
    have = names(record)
    if name not in have:
        raise NotFoundError(f"{record.id} has no channel {name!r}", f"it has: {', '.join(have) or 'none'}")
    return name
