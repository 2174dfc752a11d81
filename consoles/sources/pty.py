# SPDX-License-Identifier: Apache-2.0
"""A console that is a terminal of the host: the pty of xenconsoled or QEMU, opened by its path.

What a crash costs: the kernel keeps what the far end wrote and we have not read yet (4 KiB), and the far end waits
beyond that. Bytes read by us and not yet in the journal, one chunk, are lost with the process.
"""

from __future__ import annotations

import functools
import os
import stat
import termios
import tty
from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.errors import SourceError
from consoles.sources.link import Backoff, Link, Returning, open_off_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Where the kernel hands out numbers of ptys, and hands them out again.
_PTS: Final = "/dev/pts/"


class Identity(NamedTuple):
    """What a path named when it was opened: the device behind it, and the path's own inode and its change time."""

    real: str
    inode: int
    changed_ns: int


def identify(path: str) -> Identity:
    """Look at a path without opening it.

    :raises OSError: there is nothing.
    """
    own = os.lstat(path)
    return Identity(os.path.realpath(path), own.st_ino, own.st_ctime_ns)


def is_same_console(path: str, before: Identity | None, now: Identity) -> bool:
    """Whether what a path names now may be taken for the console it named before a hang-up.

    The number of a pty that has hung up may be anybody's terminal next, so a name in /dev/pts never returns, and a
    link into it returns only when somebody made it anew.
    """
    if before is None or not now.real.startswith(_PTS):
        return True
    return not path.startswith(_PTS) and (now.inode, now.changed_ns) != (before.inode, before.changed_ns)


def look(path: str, before: Identity | None) -> Identity:
    """Look at a path that is about to be opened, again if ``before`` says what it was.

    :raises SourceError: there is nothing, or it may be somebody else's by now.
    """
    try:
        now = identify(path)
    except OSError as exc:
        raise SourceError(f"cannot open {path}: {exc.strerror}") from exc
    if not is_same_console(path, before, now):
        raise SourceError(f"cannot open {path} again: it may be somebody else's terminal by now")
    return now


def open_tty(path: str) -> int:
    """Open a terminal for both directions, raw, never blocking and never becoming ours (blocks on slow drivers).

    :raises SourceError: it is no terminal, or cannot be opened.
    """
    fd = -1
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):  # before opening: a FIFO would wait, a file would open
            raise SourceError(f"cannot open {path}: it is no terminal device")
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        tty.setraw(fd, termios.TCSANOW)  # at once: TCSAFLUSH would throw away what is there already
    except (OSError, termios.error) as exc:
        if fd >= 0:
            os.close(fd)
        if isinstance(exc, termios.error):
            raise SourceError(f"cannot open {path}: it is no terminal device") from exc
        raise SourceError(f"cannot open {path}: {exc.strerror}") from exc
    return fd


class PtySource(Returning):
    """A terminal by its path.

    :param find: returns the path, asked before every opening: a hypervisor may give the console another pty.
    """

    def __init__(self, find: str | Callable[[], Awaitable[str]], backoff: Backoff | None = None) -> None:
        super().__init__(backoff)
        self._find = find
        self._before: Identity | None = None

    async def _connect(self) -> Link:
        asked = not isinstance(self._find, str)
        path = self._find if isinstance(self._find, str) else await self._find()
        fd = await open_off_loop(functools.partial(self._open, path, asked), os.close)
        return Link(fd, fd, self._deliver, self._lost.set)

    def _open(self, path: str, asked: bool) -> int:
        # Who answers `find` knows whose console it is; a path written down somewhere does not.
        now = look(path, None if asked else self._before)
        fd = open_tty(path)
        self._before = now
        return fd
