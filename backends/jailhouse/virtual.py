# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's console as the console of a cell: output only, and only while no other cell can have written it.

All cells that may print there share one stream of 2 KiB with the hypervisor, without tags. It is followed by one
process, taken apart into lines, and a line is given to a cell when it is the only one that runs; else nobody gets it
(``runphi timeline`` shows it) and the people are told. What is lost: bursts of more than 2 KiB in a tenth of a second,
and what a cell prints while no supervisor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from backends.jailhouse.consolelines import Splitter
from backends.jailhouse.watcher import Look
from backends.lines import Kind
from consoles.errors import SourceError
from consoles.sources.process import ProcessSource
from runphi_async.errors import BackendError
from runphi_async.events import ConsoleLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.jailhouse.sysfs import View
    from backends.jailhouse.tool import Tool
    from backends.jailhouse.watcher import Watcher
    from backends.lines import Line
    from consoles.sources.base import Listener
    from runphi_async.events import AnyEvent

#: Seconds without a byte after which a half line is shown, and the past at the beginning has been read. The driver
#: looks for news ten times a second.
QUIET: Final = 0.25
#: Seconds that the end of a cell waits for its last bytes at most.
DRAIN_MAX: Final = 1.0
#: Seconds that the first reader waits for the past: the tool must start, and the console has never said nothing.
FIRST_MAX: Final = 5.0
#: bytes kept for a reader that is slow; the hypervisor waits for nobody, so the oldest are lost beyond that
HELD_MAX: Final = 1 << 20
#: Seconds between two words and two events about lost bytes; the sums of both are right at the end.
LOSS_TOLD: Final = 1.0
LOSS_NOTED: Final = 60.0
#: under which name sysfs is watched; no record can have it
_WATCHER: Final = "/virtual console"
_ALONE: Final = (
    "several cells print on the hypervisor's console, and which of them wrote a line cannot be told: "
    "runphi timeline shows them all"
)
_GAP: Final = (
    "what the cell printed while no supervisor ran is lost: the hypervisor keeps 2 KiB and does not say whose they are"
)
_INPUT: Final = "what is typed goes nowhere: the hypervisor's console is output only"


class VirtualConsole:
    """Follows the console while a cell's container reads it.

    :param mute: returns the cells that cannot print there.
    :param heard: told every line, whoever wrote it.
    """

    def __init__(
        self,
        tool: Tool,
        program: str,
        watcher: Watcher,
        mute: Callable[[], set[str]],
        heard: Callable[[Line], None] = lambda line: None,
    ) -> None:
        self._heard = heard
        self._tool = tool
        self._program = program
        self._watcher = watcher
        self._mute = mute
        self._readers: dict[str, CellConsole] = {}
        self._source: ProcessSource | None = None
        self._splitter = Splitter(mute)
        self._timer: asyncio.TimerHandle | None = None
        self._opening = asyncio.Lock()
        #: set while nothing comes
        self.quiet = asyncio.Event()

    def source(
        self, name: str, say: Callable[[str], None], note: Callable[[AnyEvent], None], *, fresh: bool
    ) -> CellConsole:
        """Return the console of a cell.

        :param note: writes an event.
        :param fresh: it has not been started yet, so nothing of the past can be its own.
        """
        return CellConsole(self, name, say, note, fresh=fresh)

    async def add(self, name: str, reader: CellConsole) -> None:
        """Begin to give a cell's lines to ``reader``, once what was printed before has been read."""
        async with self._opening:
            self._readers[name] = reader
            first = self._source is None
            if first:
                await self._follow(name)
        if first:
            await self._wait(FIRST_MAX)
            # The past begins with a gap wherever more than the ring was ever printed: nobody is known behind that.
            with contextlib.suppress(BackendError):
                self._splitter.running = self.writers(await self._tool.enabled())
        elif not reader.fresh:
            await self.settled()

    async def _follow(self, name: str) -> None:
        try:
            view = await self._tool.enabled()
            self._source = ProcessSource([self._program, "console", "-f"])
            self._splitter = Splitter(self._mute)
            self._splitter.running = self.writers(view)
            self.quiet.clear()  # until the past has been read, of which there always is some
            await self._source.open(self)
        except (BackendError, SourceError) as exc:
            self._source = None
            self._readers.pop(name, None)
            raise SourceError(f"cannot follow the hypervisor's console: {exc}") from exc
        self._watcher.watch(_WATCHER, Look(self._on_view))

    async def remove(self, name: str) -> None:
        """Stop giving; the last one stops the process."""
        async with self._opening:
            self._readers.pop(name, None)
            if self._splitter.running is not None:
                self._splitter.running.discard(name)
            if self._readers or self._source is None:
                return
            source, self._source = self._source, None
            self._watcher.unwatch(_WATCHER)
            if self._timer is not None:
                self._timer.cancel()
            await source.close()

    async def settled(self) -> None:
        """Wait, within bounds, until what was printed before now has been read."""
        self.quiet.clear()
        self._wait_for_quiet()
        await self._wait(DRAIN_MAX)

    async def _wait(self, longest: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await self.quiet.wait()

    def writers(self, view: View) -> set[str]:
        """Return the cells that run and may print there."""
        return {cell.name for cell in view.cells if cell.id != 0 and cell.runs} - self._mute()

    def _on_view(self, view: View | None) -> None:
        # Behind a gap nobody knows who was started; sysfs does.
        if view is not None and self._splitter.running is None:
            self._splitter.running = self.writers(view)

    # Section: what the process brings

    def received(self, data: bytes) -> None:
        """Take a piece of the stream."""
        for piece in data.splitlines(keepends=True):
            self._give(self._splitter.feed(piece))
        self._wait_for_quiet()

    def gone(self, reason: str) -> None:
        """The process has ended; it is started again by its source."""
        self._splitter.restart()
        self.quiet.set()
        for reader in tuple(self._readers.values()):
            reader.interrupted()

    def back(self) -> None:
        """It runs again."""

    def _wait_for_quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(QUIET, self._is_quiet)

    def _is_quiet(self) -> None:
        self._timer = None
        self._give(self._splitter.flush())
        self.quiet.set()

    def _give(self, lines: list[Line]) -> None:
        running = self._splitter.running
        if running is not None and len(running) > 1:
            for name in running & self._readers.keys():
                self._readers[name].not_alone(_ALONE)
        alone = next(iter(running)) if running is not None and len(running) == 1 else ""
        for line in lines:
            self._heard(line)
            if line.kind is Kind.MISSED:
                for each in tuple(self._readers.values()):
                    each.lost(line.missed)
            reader = self._readers.get(line.cell or alone)
            if reader is not None and line.kind in (Kind.INMATE, Kind.UNKNOWN):
                ending = b"" if line.cut and line.kind is Kind.UNKNOWN else b"\r\n"
                reader.received(line.text + ending)


class CellConsole:
    """One cell's part of it, as a source.

    :ivar one_way: why it takes no input.
    """

    one_way = "the hypervisor's console takes no input"

    def __init__(
        self,
        console: VirtualConsole,
        name: str,
        say: Callable[[str], None],
        note: Callable[[AnyEvent], None],
        *,
        fresh: bool,
    ) -> None:
        self.fresh = fresh
        self._note = note
        #: bytes that the driver lost, how many of them were told and noted, and when
        self._missed = self._told_missed = self._noted_missed = 0
        self._told_at = self._noted_at = -LOSS_NOTED
        self._console = console
        self._name = name
        self._say = say
        self._listener: Listener | None = None
        self._paused = False
        self._held = bytearray()
        self._past = True
        self._told_input = False
        self._told_others = False
        self._told_gap = False

    async def open(self, listener: Listener) -> None:
        """Follow the console.

        :raises SourceError: it cannot be read.
        """
        self._listener = listener
        await self._console.add(self._name, self)
        self._past = False
        if not self.fresh and not self._told_gap:
            self._told_gap = True
            self._say(_GAP)
            self._note(ConsoleLost(why="no supervisor ran"))

    def received(self, data: bytes) -> None:
        """Take what the cell printed, unless an earlier supervisor had it already."""
        if self._listener is None or self._past:
            return
        if self._paused:
            self._held += data
            del self._held[:-HELD_MAX]
        else:
            self._listener.received(data)

    def lost(self, count: int) -> None:
        """The driver lost bytes, some of which may have been the cell's. A flood is told of once a second."""
        if self._listener is None or self._past:
            return
        self._missed += count
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= LOSS_TOLD:
            self._told_at = now
            self._tell_lost()
        if now - self._noted_at >= LOSS_NOTED:
            self._noted_at = now
            self._note_lost()

    def _tell_lost(self) -> None:
        fresh, self._told_missed = self._missed - self._told_missed, self._missed
        if fresh:
            self._say(f"{fresh} bytes of the hypervisor's console were lost here: they came faster than they are read")

    def _note_lost(self) -> None:
        fresh, self._noted_missed = self._missed - self._noted_missed, self._missed
        if fresh:
            self._note(ConsoleLost(bytes=fresh, why="they came faster than they are read"))

    def interrupted(self) -> None:
        """Nobody reads the hypervisor's console for a moment."""
        if self._listener is not None and not self._past:
            self._say("the hypervisor's console is read anew: what the cell prints meanwhile is lost")
            self._note(ConsoleLost(why="the command that reads it ended"))

    def not_alone(self, text: str) -> None:
        """Others print as well."""
        if not self._told_others:
            self._told_others = True
            self._say(text)

    def pause(self) -> None:
        """Keep what comes: the hypervisor waits for nobody."""
        self._paused = True

    def resume(self) -> None:
        """Give what was kept."""
        self._paused = False
        if self._held and self._listener is not None:
            held, self._held = bytes(self._held), bytearray()
            self._listener.received(held)

    def write(self, data: bytes) -> int:
        """Throw away what is typed; the first who tries is told."""
        if data and not self._told_input:
            self._told_input = True
            self._say(_INPUT)
        return len(data)

    def when_writable(self, wake: Callable[[], None]) -> None:
        """It takes everything at once, so nobody ever waits."""

    async def close(self) -> None:
        """Take the last bytes and let go."""
        if self._listener is None:
            return
        await self._console.settled()
        await self._console.remove(self._name)
        self._tell_lost()
        self._note_lost()
        self.resume()
        self._listener = None
