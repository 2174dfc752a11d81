# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's console, followed while the supervisor runs: its lines, with their time, in a file and at hand.

One for all containers (``[hypervisor] console`` in the configuration); ``runphi timeline`` shows it beside the guests'
own consoles. The lines are taken apart by ``backends.jailhouse.consolelines``.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio
import msgspec

from backends.jailhouse.consolelines import Splitter, repeated
from backends.lines import Kind, Line
from consoles.errors import SourceError
from consoles.sources import describe
from consoles.sources.link import Backoff
from consoles.streams.logs.files import Files, Place, history
from runphi_async.events import HypervisorConsoleBack, HypervisorConsoleGone, kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from consoles.sources.base import Source
    from runphi_async.config.schema import Config

log = logging.getLogger(__name__)

NAME: Final = "hypervisor.jsonl"
#: Files that are kept, the newest included.
FILES: Final = 2
#: Lines kept at hand: for those who follow, and to know again what a restarted command repeats.
RECENT: Final = 2048
#: Seconds without a byte after which a half line is a line, and what a command repeats has been read.
QUIET: Final = 0.5
#: A command begins with at most this many bytes of the past: Jailhouse's ring holds 2 KiB.
PAST_MAX: Final = 4096
#: Seconds before the first and between later tries to open a console that is not there yet.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
#: Bytes that may wait for the disk before the source is held back.
WAITING_MAX: Final = 1 << 20


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the hypervisor's console; times are nanoseconds since the epoch."""

    seq: int
    time: int
    kind: Kind
    text: str = ""
    cell: str = ""
    cut: bool = False
    missed: int = 0


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


class FollowStatistics(NamedTuple):
    """Numbers of the hypervisor's console.

    :ivar lines: lines since it is kept.
    :ivar missed: bytes that the driver lost, and in ``gaps`` how often, since the supervisor started.
    :ivar unwritten: lines that the disk did not take.
    """

    lines: int
    missed: int
    gaps: int
    unwritten: int


class HypervisorConsole:
    """Follows a source, owned, and keeps its lines.

    :param directory: where the file is kept; "" keeps only the recent lines, in memory.
    :param max_bytes: size at which the file becomes the older part.
    """

    def __init__(self, source: Source, directory: str, max_bytes: int) -> None:
        self._source = source
        self._directory = directory
        self._splitter = Splitter()
        self._recent: collections.deque[Entry] = collections.deque(maxlen=RECENT)
        self._seen: collections.deque[Line] = collections.deque(maxlen=RECENT)
        #: what came since the source was (re)opened, while it may be the past once more
        self._past: list[Line] | None = []
        self._past_bytes = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None
        self._watchers: set[Callable[[], None]] = set()
        self._hearers: list[Callable[[Line], None]] = []
        self._files = Files(Place(directory, NAME, max_bytes, FILES))
        self._reopen = False
        self._failing = False
        #: number of the last line
        self.seq = 0
        #: lines the disk did not take
        self.lost = 0

    # Section: life

    async def run(self) -> None:
        """Follow until cancelled; whatever goes wrong here, guests and verbs go on."""
        try:
            await self._follow()
        except Exception:
            log.exception("the hypervisor's console is followed no more")

    async def _follow(self) -> None:
        await anyio.to_thread.run_sync(self._look_back)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, name="hypervisor log")
                await self._open()
                await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.close()
                self._flush()
                await self._write_waiting()
            self._files.close()

    async def _open(self) -> None:
        backoff, said = Backoff(FIRST_PAUSE, LONGEST_PAUSE), False
        while True:
            try:
                await self._source.open(self)
            except SourceError as exc:
                if not said:
                    said = True
                    log.warning("cannot follow the hypervisor's console: %s", exc)
                await anyio.sleep(backoff.pause())
            else:
                return

    def statistics(self) -> FollowStatistics:
        """Return the numbers."""
        return FollowStatistics(self.seq, self._splitter.missed, self._splitter.gaps, self.lost)

    def running(self, cells: set[str]) -> None:
        """A backend knows which cells may write: lines of a single one are attributed to it from now on.

        Taken at the beginning and behind a gap only: what the hypervisor itself says of starts and ends since then is
        newer than what anybody saw elsewhere, as its lines come late.
        """
        if self._splitter.running is None:
            self._splitter.running = set(cells)

    def attend(self, hear: Callable[[Line], None], mute: Callable[[], Collection[str]]) -> None:
        """Tell every new line to ``hear``; ``mute`` returns the cells that cannot write."""
        self._hearers.append(hear)
        self._splitter.mute = mute

    # Section: what the source says

    def received(self, data: bytes) -> None:
        """Take a piece of the stream."""
        if self._past is not None:
            self._past_bytes += len(data)
        self._take(self._splitter.feed(data))
        if self._past is not None and self._past_bytes >= PAST_MAX:
            self._past_is_over()
        self._wait_for_quiet()

    def gone(self, reason: str) -> None:
        """The command has ended, or the port is unplugged."""
        log.warning("the hypervisor's console is gone: %s", reason)
        self._flush()
        self._splitter.restart()
        self._keep(Line(Kind.MARK, f"{kind(HypervisorConsoleGone)}: {reason}".encode()))
        self._past, self._past_bytes = [], 0

    def back(self) -> None:
        """It is followed again; it may repeat itself now."""
        log.info("the hypervisor's console is back")
        self._keep(Line(Kind.MARK, kind(HypervisorConsoleBack).encode()))

    def _wait_for_quiet(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if self._past is not None or self._splitter.holds:
            self._quiet = asyncio.get_running_loop().call_later(QUIET, self._flush)

    def _flush(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        self._take(self._splitter.flush())
        self._past_is_over()

    def _past_is_over(self) -> None:
        past, self._past = self._past, None
        if past:
            self._take(past[repeated(self._seen, past) :])

    def _take(self, lines: list[Line]) -> None:
        if self._past is not None:
            self._past += lines
        elif lines:
            self._keep(*lines)

    def _keep(self, *lines: Line) -> None:
        now = time.time_ns()
        for line in lines:
            self.seq += 1
            text = line.text.decode("utf-8", "backslashreplace")
            entry = Entry(self.seq, now, line.kind, text, line.cell, line.cut, line.missed)
            if line.kind is not Kind.MARK:
                self._seen.append(line)
            self._recent.append(entry)
            for hear in self._hearers:
                hear(line)
            if self._directory:
                data = _encoder.encode(entry) + b"\n"
                self._waiting.append(data)
                self._waiting_bytes += len(data)
        self._wake.set()
        if self._waiting_bytes > WAITING_MAX:
            self._source.pause()
        for wake in tuple(self._watchers):
            wake()

    # Section: the file

    def _look_back(self) -> None:
        """Find the number of the last line, and the lines that a command will show once more."""
        for entry in self.history(0):
            self.seq = entry.seq
            if entry.kind is not Kind.MARK:
                self._seen.append(Line(entry.kind, entry.text.encode(), entry.cell, entry.cut, entry.missed))

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with anyio.CancelScope(shield=True):  # lines that were taken are written, whoever ends us meanwhile
                await self._write_waiting()
            if self._waiting_bytes <= WAITING_MAX:
                self._source.resume()

    async def _write_waiting(self) -> None:
        lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not lines:
            return
        try:
            await anyio.to_thread.run_sync(self._append, b"".join(lines))
            self._failing = False
        except OSError as exc:
            self.lost += len(lines)
            if not self._failing:
                self._failing = True
                log.error("cannot keep the hypervisor's console in %s: %s", self._directory, exc.strerror)

    def _append(self, data: bytes) -> None:
        if self._reopen:
            self._reopen = False
            self._files.close()
        # A disk that refused may have taken half a line.
        rest = memoryview(b"\n" + data if self._failing else data)
        while rest:
            self._files.ready(0)
            rest = rest[self._files.write([rest]) :]

    def reopen(self) -> None:
        """Somebody has renamed the file: go on in a new one, with the next line."""
        self._reopen = True

    # Section: reading it

    def history(self, since_ns: int) -> Iterator[Entry]:
        """Give the lines kept on disk from a time on, oldest first; blocks."""
        names: list[str] = []
        if self._directory:
            with contextlib.suppress(OSError):
                names = history(self._directory, NAME)
        for suffix in names:
            name = os.path.join(self._directory, NAME + suffix)
            with contextlib.suppress(OSError), open(name, "rb") as file:
                for line in file:
                    try:
                        entry = _decoder.decode(line)
                    except msgspec.MsgspecError:
                        continue  # cut by a full disk or a crash
                    if entry.time >= since_ns:
                        yield entry

    def after(self, seq: int) -> list[Entry]:
        """Return the recent lines behind number ``seq``."""
        behind = itertools.takewhile(lambda entry: entry.seq > seq, reversed(self._recent))
        return list(behind)[::-1]

    def watch(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever there are new lines, until ``unwatch``."""
        self._watchers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        """Stop calling ``wake``."""
        self._watchers.discard(wake)


def follow_hypervisor(config: Config) -> HypervisorConsole | None:
    """Return what follows the hypervisor's console as configured; None: nothing is."""
    if not config.hypervisor.console:
        return None
    source = describe.make(describe.parse(config.hypervisor.console, commands=True))
    directory = config.log.dir if config.log.enabled else ""
    return HypervisorConsole(source, directory, config.hypervisor.log_max_bytes)
