# SPDX-License-Identifier: Apache-2.0
"""The lossless sink: the engine's stdout pipe or pty slave, fed by sendfile from a kernel-held cursor.

``sendfile`` with no offset advances the cursor by exactly what was written, in one system call: a supervisor
killed at any instruction neither repeats nor skips a byte when the next one goes on with the same description.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import termios
from typing import TYPE_CHECKING, Final

from consoles.streams.journal import grow_pipe
from consoles.wakers import Writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.streams.journal import Journal

#: One sendfile moves at most this much, so that other consoles get their turn.
CHUNK: Final = 1 << 18
#: The engine's pipe at the end: 256 slots. Source: pipe(7), the most that an unprivileged process may ask for.
PIPE_SIZE: Final = 1 << 20
#: A reader may have spliced this much onward: an ordinary pipe.
DOWNSTREAM: Final = 1 << 16


class StdioSink:
    """Copies a journal to ``out``, slowed down by its reader, never losing.

    :param cursor: description on the journal whose offset is the position; shared with the init stub.
    :param out: non-blocking descriptor; owned by the sink.
    :param progress: called after bytes left, so that a stopped source can go on.
    """

    def __init__(self, journal: Journal, cursor: int, out: int, progress: Callable[[], None]) -> None:
        self._journal = journal
        self._cursor = cursor
        self._out = out
        self._progress = progress
        self._full = Writable(out)
        #: absolute offset of the next byte to write
        self.offset = os.lseek(cursor, 0, os.SEEK_CUR)
        if self.offset < journal.base:  # its reader had left, and what it did not read was given back
            self.offset = os.lseek(cursor, journal.base, os.SEEK_SET)
        #: errno of the write that failed for good (the reader is gone), or None
        self.broken: int | None = None

    @property
    def lag(self) -> int:
        """Bytes that wait for this sink's reader."""
        return 0 if self.broken is not None else self._journal.tail - self.offset

    @property
    def needed(self) -> int:
        """What the reader's pipe holds are references to the journal's memory, not copies."""
        return self._journal.tail if self.broken is not None else self.offset - _unread(self._out) - DOWNSTREAM

    def fileno(self) -> int:
        """Return the output's descriptor, -1 after ``close``."""
        return self._out

    def hurry(self) -> None:
        """The guest has ended: make room for what is left, also when nobody reads yet.

        Each sendfile takes a slot of the pipe, however few bytes it moves: the usual 16 are soon full of single lines.
        """
        if self.lag > 0:
            grow_pipe(self._out, PIPE_SIZE)
            self._send()

    def pump(self) -> None:
        """Write what there is, as far as the reader takes it."""
        if not self._full:
            self._send()

    def _send(self) -> None:
        moved = False
        while self.lag > 0:
            try:
                sent = self._move(min(self.lag, CHUNK))
            except BlockingIOError:
                if not self._full:
                    self._full.add(self._send)
                break
            except OSError as exc:
                # EPIPE, EIO: the engine closed its end. The guest must not stand still for a reader who left.
                self.broken = exc.errno or -1
                moved = True
                break
            self.offset += sent
            moved = True
        if moved:
            self._progress()

    def _move(self, limit: int) -> int:
        try:
            return os.sendfile(self._out, self._cursor, None, limit)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
        # A file opened for appending refuses sendfile. Two calls instead of one: a crash in between may double them.
        sent = os.write(self._out, os.pread(self._cursor, limit, self.offset))
        os.lseek(self._cursor, self.offset + sent, os.SEEK_SET)
        return sent

    def close(self) -> None:
        """Close cursor and output; the position stays with whoever else holds the cursor."""
        if self._out < 0:
            return
        self._full.drop()
        os.close(self._out)
        os.close(self._cursor)
        self._out = -1
        self.broken = self.broken or -1


def _unread(fd: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # a file, /dev/null
        return 0
