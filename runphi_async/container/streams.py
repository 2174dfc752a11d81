# SPDX-License-Identifier: Apache-2.0
"""All streams of one guest: its console and the named ones beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.aio.waiting import together
from runphi_async.terminals import channels
from runphi_async.terminals.console import Console
from runphi_async.terminals.consolelogs import plans

if TYPE_CHECKING:
    from consoles.sources.base import Source
    from runphi_async.aio.tasks import Tasks
    from runphi_async.config.schema import Config
    from runphi_async.terminals.channels import ChannelStream
    from runphi_async.terminals.console import Held
    from runphi_async.terminals.stream import Owner, Stream


class Streams:
    """The streams of one guest; the console is open when it is made, the others behind ``open``.

    :param held: what the init process keeps of the console, or will; owned.
    :param source: where the console is, unless it is the FIFO pair.
    """

    def __init__(self, owner: Owner, config: Config, held: Held, source: Source | None) -> None:
        self._owner = owner
        self._config = config
        self.console = Console(owner, config.console, plans(owner.record), held, source)
        self.channels: dict[str, ChannelStream] = {}

    def open(self) -> None:
        """Open the named streams, or go on with those of an earlier supervisor."""
        channels.open_all(self.channels, self._config, self._owner)

    def find(self, known: str | None) -> Stream:
        """Return a stream by the name that ``channels.resolve`` gave it."""
        return self.console if known is None else self.channels[known]

    def start(self, tasks: Tasks) -> None:
        """Begin to listen, before the guest's first instruction."""
        for stream in (self.console, *self.channels.values()):
            stream.start(tasks)

    async def drain_channels(self) -> None:
        """Bring all that the guest, which has ended, printed beside the console to the lossless readers."""
        await together(*(stream.drain for stream in self.channels.values()))

    def reopen_logs(self) -> None:
        """Another program has renamed the log files."""
        for stream in (self.console, *self.channels.values()):
            stream.logs.reopen()

    async def close(self) -> None:
        """Let go of all streams; their logs are completed first."""
        for stream in (*self.channels.values(), self.console):
            await stream.close()
