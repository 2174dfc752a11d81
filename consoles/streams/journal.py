# SPDX-License-Identifier: Apache-2.0
"""The bytes a guest printed, kept by the kernel so that no process of ours can lose or double one.

A journal is a file in memory (memfd) that only grows at its end. ``take`` moves bytes from a pipe into it with one
``splice``: either they are still in the pipe or they are in the journal, whatever kills us in between. Its length
is the truth. Readers are *open file descriptions* whose kernel-held offset is their cursor
(``consoles.streams.sinks``). Whole pages that nobody needs any more are given back with ``release``.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

#: One splice moves at most this many bytes: a full pipe of the largest size an ordinary root may set.
SPLICE_MAX: Final = 1 << 20
#: Pipes between guest and supervisor are grown to this, so a burst rarely stops a guest. Source: pipe(7).
PIPE_SIZE: Final = 1 << 18

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_F_SETPIPE_SZ: Final = 1031  # fcntl(2), linux/fcntl.h
_KEEP_SIZE_PUNCH_HOLE: Final = 0x01 | 0x02  # linux/falloc.h
#: Holes are punched in steps of this: one system call per megabyte costs nothing, one per line would.
_PUNCH_STEP: Final = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _punch(fd: int, start: int, length: int) -> None:
    if _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, start, length) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def grow_pipe(fd: int, size: int = PIPE_SIZE) -> None:
    """Enlarge a pipe's buffer if the kernel lets us; a smaller one only means more system calls."""
    import fcntl

    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, size)
    except OSError:
        return


class Journal:
    """An append-only file with absolute offsets; owns ``fd``.

    :param fd: descriptor open for reading and writing; its own offset is never used.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.tail: int = os.fstat(fd).st_size
        self.base = self._first_kept()

    @classmethod
    def create(cls, name: str) -> Journal:
        """Make an empty journal in memory. ``name`` shows up in /proc/PID/fd."""
        return cls(os.memfd_create(f"runphi-{name}"[:200], os.MFD_CLOEXEC))

    def _first_kept(self) -> int:
        if self.tail == 0:
            return 0
        try:
            return os.lseek(self.fd, 0, os.SEEK_DATA)
        except OSError:  # everything was given back
            return self.tail

    def take(self, pipe: int, limit: int = SPLICE_MAX) -> int:
        """Move up to ``limit`` bytes from ``pipe`` to the end; 0 means the pipe has no writer left.

        :raises BlockingIOError: the pipe is empty.
        """
        moved = os.splice(pipe, self.fd, limit, offset_dst=self.tail)
        self.tail += moved
        return moved

    def append(self, data: bytes) -> None:
        """Store bytes that come from a source which cannot be spliced."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, self.tail)
            self.tail += written
            view = view[written:]

    def read(self, offset: int, limit: int) -> bytes:
        """Return up to ``limit`` bytes at ``offset`` (which must not lie before ``base``)."""
        return os.pread(self.fd, min(limit, self.tail - offset), offset)

    def cursor(self) -> int:
        """Open a new description on the journal: its offset is a cursor that starts at 0."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def worth_releasing(self, upto: int) -> bool:
        """Whether ``release(upto)`` would give anything back."""
        return upto // _PAGE * _PAGE - self.base >= _PUNCH_STEP

    def release(self, upto: int) -> None:
        """Give back the memory of whole pages before ``upto``, which nobody may still read or hold a reference to."""
        if self.worth_releasing(upto):
            end = upto // _PAGE * _PAGE
            start = self.base // _PAGE * _PAGE
            _punch(self.fd, start, end - start)
            self.base = end

    def close(self) -> None:
        """Close the descriptor; cursors that others hold stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
