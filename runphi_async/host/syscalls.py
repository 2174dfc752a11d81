# SPDX-License-Identifier: Apache-2.0
"""The system calls Python 3.11 has no function for; each raises OSError as the `os` module does.

`pidfd_getfd` takes a container's file descriptors back from its init stub after a restart of the supervisor,
`openat2` resolves paths inside an image's root filesystem, `punch_hole` gives journal space back; `setns`, `unshare`
and `mount` are for threads that live in namespaces of their own (`namespaces.py`). Not for the thin client: importing
ctypes costs milliseconds.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

#: numbers of the generic table: the same on every architecture that got these calls (x86-64 and arm64 too)
_SYS_CLOSE_RANGE: Final = 436
_SYS_OPENAT2: Final = 437
_SYS_PIDFD_GETFD: Final = 438

#: openat2: refuse to follow links such as /proc/self/fd/N
RESOLVE_NO_MAGICLINKS: Final = 0x02
#: openat2: refuse every symbolic link
RESOLVE_NO_SYMLINKS: Final = 0x04
#: openat2: the directory is the root of every path, link and ".." of the walk
RESOLVE_IN_ROOT: Final = 0x10

#: close_range: mark for close at exec instead
CLOSE_RANGE_CLOEXEC: Final = 0x04

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000

#: the largest file descriptor number close_range knows
FD_MAX: Final = 0xFFFFFFFF

_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# 64-bit off_t on the architectures we run on, with glibc and musl alike
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Duplicate a file descriptor of another process: same open file, own number, closed at exec."""
    return _checked(_syscall(ctypes.c_long(_SYS_PIDFD_GETFD), *map(ctypes.c_long, (pidfd, fd, 0))))


def openat2(directory: int, path: str, flags: int, resolve: int = 0) -> int:
    """Open a path that starts at a directory's descriptor; O_CLOEXEC is always set."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _checked(
        _syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_long(directory),
            ctypes.c_char_p(_encoded(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the space of a part of a file back; the part reads as zeros, the file keeps its size."""
    _checked(_fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length))


def close_range(first: int, last: int = FD_MAX, flags: int = 0) -> None:
    """Close every file descriptor from `first` to `last`, or mark them with CLOSE_RANGE_CLOEXEC."""
    _checked(_syscall(ctypes.c_long(_SYS_CLOSE_RANGE), *map(ctypes.c_ulong, (first, last, flags))))


def setns(fd: int, kind: int) -> None:
    """Move this thread into a namespace."""
    _checked(_libc.setns(fd, kind))


def unshare(kinds: int) -> None:
    """Give this thread namespaces of its own."""
    _checked(_libc.unshare(kinds))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount, or change a mount; see mount(2)."""
    _checked(_libc.mount(_encoded(source), _encoded(target), _encoded(kind), flags, _encoded(data)), target)


def _encoded(path: str) -> bytes:
    data = os.fsencode(path)
    if b"\0" in data:
        raise ValueError("embedded null byte")
    return data


def _checked(result: int, path: str | None = None) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if path is None:
        raise OSError(number, os.strerror(number))
    raise OSError(number, os.strerror(number), path)
