# SPDX-License-Identifier: Apache-2.0
"""The console of one cell: from where it is read, the words of our init among it, and whether the guest is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.jailhouse import linuxfiles, marks, shared, tty
from backends.jailhouse.ending import Phase
from backends.jailhouse.plan import Source
from backends.jailhouse.shared import Presence
from runphi_async.partition import channels

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.jailhouse.machine import Machine
    from backends.jailhouse.marks import Marked, Said
    from backends.jailhouse.plan import JailhousePlan
    from backends.jailhouse.progress import Progress
    from backends.jailhouse.voice import Voice
    from consoles.sources import base


class CellConsole:
    """The console of one cell."""

    def __init__(self, machine: Machine, plan: JailhousePlan, directory: str, progress: Progress, voice: Voice) -> None:
        self._machine = machine
        self._cell = plan.cell
        self._channel = plan.console_channel
        self._directory = directory
        self._progress = progress
        self._voice = voice
        self._presence = Presence(plan.cell.console, voice.note)
        self._words: Marked | None = None

    def open(self, ended: Callable[[int], None]) -> base.Source | None:
        """Return what the board connects with the cell's console; None: there is none.

        :param ended: called with the code that our init says of its process, when it is written down.
        """
        source = self._source()
        mark = linuxfiles.read_mark(self._directory)
        if source is None or not mark:
            return source

        def said(word: Said) -> None:
            if word.error:
                self._voice.say(word.error)
            self._progress.keep(word)
            ended(word.code)

        begun = self._progress.phase in (Phase.STARTING, Phase.STARTED)
        self._words = marks.marked(source, mark, said, begun=begun)
        return self._words

    def _source(self) -> base.Source | None:
        choice = self._cell.console
        fresh = self._progress.phase in (Phase.NONE, Phase.MAKING, Phase.LOADED)
        if self._channel is not None:
            return channels.source(self._channel, self._directory)
        match choice.source:
            case Source.VIRTUAL:
                return self._machine.virtual.source(self._cell.name, self._voice.say, self._voice.note, fresh=fresh)
            case Source.UART:
                return tty.source(choice, self._voice.say)
            case Source.IVSHMEM | Source.VIRTIO:
                return shared.source(choice, self._directory, self._voice.note, fresh=fresh)
        return None

    @property
    def has_init(self) -> bool:
        """Whether our init speaks there."""
        return self._words is not None

    @property
    def hears(self) -> bool:
        """Whether our init can be told something there."""
        return self.has_init and self._cell.console.input

    def tell(self, line: str) -> None:
        """Tell our init a line."""
        assert self._words is not None
        self._words.tell(line)

    def again(self) -> None:
        """The guest starts from its beginning."""
        if self._words is not None:
            self._words.again()

    def look(self) -> None:
        """See whether the guest has come to its end of the console, or left."""
        self._presence.look()

    def close(self) -> None:
        """Let go of it."""
        self._presence.close()
