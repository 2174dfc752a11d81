# SPDX-License-Identifier: Apache-2.0
"""A guest console that arrives in a FIFO: the lossless source, moved into the journal by splice.

Also the recorder for the small line-based channels (QMP events, the Linux guest's control port): the same splice
into a file on disk, read back line by line, so a line that was consumed is never lost with a process.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from consoles.streams.journal import Journal, grow_pipe

if TYPE_CHECKING:
    from collections.abc import Callable

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
