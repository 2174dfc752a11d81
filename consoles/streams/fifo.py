# SPDX-License-Identifier: Apache-2.0
"""A guest console that arrives in a FIFO: the lossless source, moved into the journal by splice.

What a crash costs: nothing. The init process holds both FIFOs, and a byte is either still in one or in the journal.

Also the recorder for the small line-based channels (QMP events, the Linux guest's control port): the same splice
into a file on disk, read back line by line, so a line that was consumed is never lost with a process.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
from typing import TYPE_CHECKING, Final

from consoles.streams.journal import Journal, grow_pipe
from consoles.wakers import Writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Listener

#: A channel that a guest can make talk is recorded up to this; beyond it lines are read and dropped.
CHANNEL_MAX: Final = 1 << 20
#: Longest line of a channel; longer ones are dropped whole.
LINE_MAX: Final = 1 << 16
#: One turn of the loop moves at most this many pieces: a guest that never stops talking must not keep us. A full pipe
#: holds fewer.
TURNS: Final = 16


def open_fifo(path: str, dir_fd: int) -> int:
    """Open a FIFO for both directions without ever blocking: Linux never reports EOF or EPIPE on it then."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    grow_pipe(fd)
    return fd


class FifoSource:
    """The two FIFOs of a console as a ``consoles.sources.base.Source`` that is spliced (``consoles.streams.hub``).

    It is never gone: with both ends held open there is neither an end of file nor a broken pipe.

    :param output: what the guest prints, a non-blocking descriptor, owned; -1: it prints nothing.
    :param typed: what it reads, the same; -1: it reads nothing.
    """

    def __init__(self, output: int, typed: int = -1) -> None:
        self.output = output
        self._typed = typed
        self._loop = asyncio.get_running_loop()
        self._room = Writable(typed)
        self._take: Callable[[], object] | None = None
        self._listening = False

    @classmethod
    def opened(cls, directory: str) -> FifoSource:
        """Open ``con.out`` and ``con.in`` of a record directory.

        :raises OSError: they are not there.
        """
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            output = open_fifo("con.out", dir_fd)
            try:
                return cls(output, open_fifo("con.in", dir_fd))
            except OSError:
                os.close(output)
                raise
        finally:
            os.close(dir_fd)

    async def open(self, listener: Listener) -> None:
        """Do nothing: it was made of open descriptors, and never says anything to a listener."""

    # Section: the fast path

    def when_ready(self, take: Callable[[], object]) -> None:
        """Call ``take`` whenever there are bytes, as long as it is not paused."""
        self._take = take

    def splice(self, journal: Journal, limit: int) -> int:
        """Move up to ``limit`` bytes to the journal's end; return how many, 0 when nobody can write any more.

        :raises BlockingIOError: there is nothing now.
        """
        return journal.take(self.output, limit)

    @property
    def unread(self) -> bool:
        """Whether bytes wait."""
        return self.output >= 0 and fcntl.ioctl(self.output, termios.FIONREAD, bytes(4)) != bytes(4)

    # Section: as any source

    def pause(self) -> None:
        """Leave the bytes where they are: the guest waits when the FIFO is full."""
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self.output)

    def resume(self) -> None:
        """Go on after ``pause``."""
        if self._take is not None and self.output >= 0 and not self._listening:
            self._listening = True
            self._loop.add_reader(self.output, self._take)

    def write(self, data: bytes) -> int:
        """Write what the FIFO takes at once; without a reader the bytes go nowhere."""
        if self._typed < 0:
            return len(data)
        try:
            return os.write(self._typed, data)
        except BlockingIOError:
            return 0
        except OSError:  # the guest's end is gone: what was typed has no reader any more
            return len(data)

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once the guest has read."""
        self._room.add(wake)

    async def close(self) -> None:
        """Close both descriptors; what was not taken stays with whoever else holds them."""
        self.shut()

    def shut(self) -> None:
        """Do what ``close`` does, which waits for nothing."""
        self.pause()
        self._room.drop()
        for fd in (self.output, self._typed):
            if fd >= 0:
                os.close(fd)
        self.output = self._typed = -1


class LineChannel:
    """Lines written by a guest or VMM into a FIFO, recorded in a file and handed to ``on_line`` in order.

    On a restart every recorded line is handed out again: handlers are idempotent.

    :param start: offset in the record of the first line that is wanted.
    """

    def __init__(self, fifo: int, record: int, on_line: Callable[[bytes], None], start: int = 0) -> None:
        self._fifo = fifo
        self._journal = Journal(record)
        self._seen = start
        self._skipping = False
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(fifo, self.poll)

    def poll(self) -> None:
        """Move what has arrived into the record and deliver every complete line."""
        for _ in range(TURNS if self._open else 0):
            try:
                if self._journal.tail >= CHANNEL_MAX:
                    os.read(self._fifo, LINE_MAX)
                    continue
                if self._journal.take(self._fifo, LINE_MAX) == 0:
                    break
            except BlockingIOError:
                break
        self._deliver()

    def _deliver(self) -> None:
        while self._open and self._seen < self._journal.tail:
            data = self._journal.read(self._seen, LINE_MAX)
            end = data.rfind(b"\n") + 1
            if end == 0:
                if len(data) < LINE_MAX:
                    return
                self._seen += len(data)  # no line of ours is that long: skip all of it
                self._skipping = True
                continue
            self._seen += end
            lines = data[:end].splitlines()
            for line in lines[1:] if self._skipping else lines:
                self._on_line(line)
            self._skipping = False

    @property
    def tail(self) -> int:
        """The end of the record."""
        return self._journal.tail

    def close(self) -> None:
        """Stop listening; the record stays."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fifo)
            os.close(self._fifo)
            self._journal.close()
