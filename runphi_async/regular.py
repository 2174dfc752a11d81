# SPDX-License-Identifier: Apache-2.0
"""Reading files that somebody else may have put there: an image, a guest behind its VMM, whoever wrote a path.

In the place of a file there may be a FIFO, whose reader waits for ever and with it one of the threads that serve
everybody; a device, which acts when it is opened; a link to another file; a file without an end. So the name alone is
opened first, what it stands for is looked at, only a regular file is then read, and no more of it than its reader can
use. Errors are `OSError`, as with ``open``.
"""

from __future__ import annotations

import errno
import os
import stat


def opened(path: str, *, dir_fd: int | None = None, links: bool = True) -> int:
    """Open a regular file for reading; never waits, and nothing happens to what is none.

    :param links: whether the last part of the path may be a symbolic link.
    :raises OSError: it cannot be opened, or is no regular file.
    """
    flags = os.O_PATH | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    try:
        name = os.open(path, flags, dir_fd=dir_fd)
    except ValueError:  # a NUL in the path
        raise OSError(errno.EINVAL, "not a file name", path) from None
    try:
        return reopened(name, path)
    finally:
        os.close(name)


def reopened(name: int, path: str) -> int:
    """Return a descriptor to read the regular file that an O_PATH descriptor stands for.

    :param path: for the message.
    :raises OSError: it is no regular file, or may not be read.
    """
    if not stat.S_ISREG(os.fstat(name).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    # By the descriptor, so it is the very file that was looked at; O_NONBLOCK for files under a lease.
    return os.open(f"/proc/self/fd/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def read(path: str, limit: int, *, dir_fd: int | None = None, links: bool = True) -> bytes:
    """Return the content of a regular file.

    :param limit: the most bytes it may have.
    :raises OSError: it cannot be read, is no regular file, or is larger.
    """
    with open(opened(path, dir_fd=dir_fd, links=links), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
    return data


def tail(path: str, limit: int) -> bytes:
    """Return the last bytes of a file that a VMM writes; nothing where there is no such regular file."""
    try:
        with open(opened(path, links=False), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit)
    except OSError:
        return b""
