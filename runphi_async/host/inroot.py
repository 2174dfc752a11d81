# SPDX-License-Identifier: Apache-2.0
"""Files named by an image, found inside that image's root filesystem and nowhere else.

The planner of a partition gets its inmate, kernel and ramdisk through :func:`resolve`, and /boot/config.json
through :func:`read`. The kernel walks the path with the root filesystem as its root, so no link and no ".."
leads out; only regular files are given, because opening a FIFO or a device would block or act.

Another guest that shares the image may change what the path that :func:`resolve` returns stands for, so a file is
opened by :func:`opened_again`, once, and what is done with it is done with that descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from runphi_async import regular
from runphi_async.errors import SpecError
from runphi_async.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

#: openat2: paths are absolute here. Source: fcntl.h
AT_FDCWD: Final = -100
#: tries of a walk the kernel gave up because something was renamed meanwhile
_TRIES: Final = 16

_REASONS: Final = {
    errno.ENOENT: "not found there",
    errno.ENOTDIR: "a part of the path is not a directory",
    errno.ELOOP: "too many symbolic links, or one into /proc",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EXDEV: "the path leads out of it",
    errno.ENOSYS: "this kernel has no openat2: Linux 5.6 or later is needed",
}


def resolve(rootfs: str, path: str) -> str:
    """Return the host path of a regular file inside a root filesystem, all links resolved."""
    with _opened(rootfs, path) as descriptor:
        found = os.readlink(f"/proc/self/fd/{descriptor}")
        try:
            same = os.path.samestat(os.stat(found, follow_symlinks=False), os.fstat(descriptor))
        except OSError:
            same = False
    if not same:
        raise SpecError(f"cannot use {path!r} of the image in {rootfs}: it was moved while it was looked up")
    return found


def read(rootfs: str, path: str, limit: int) -> bytes | None:
    """Return the content of a file inside a root filesystem; None when there is no such file.

    :param limit: the most bytes the file may have.
    """
    try:
        with _opened(rootfs, path) as descriptor, open(regular.reopened(descriptor, path), "rb") as file:
            data = file.read(limit + 1)
    except SpecError as exc:
        if getattr(exc.__cause__, "errno", None) in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    except OSError as exc:
        raise SpecError(f"cannot read {path!r} of the image in {rootfs}: {exc.strerror}") from exc
    if len(data) > limit:
        raise SpecError(f"cannot read {path!r} of the image in {rootfs}: larger than {limit} bytes")
    return data


def opened_again(path: str) -> int:
    """Open a file for reading by a path that `resolve` returned: neither a link nor anything else is in its place now.

    :raises OSError: it cannot be opened, or is no regular file any more.
    """
    resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    name = syscalls.openat2(AT_FDCWD, path, os.O_PATH, resolve)
    try:
        return regular.reopened(name, path)
    finally:
        os.close(name)


@contextlib.contextmanager
def _opened(rootfs: str, path: str) -> Iterator[int]:
    """Open a regular file for its name only (O_PATH): nothing happens to what is not one."""
    if not path or "\0" in path:
        raise SpecError(f"cannot use {path!r} of the image in {rootfs}: not a file name")
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        # not raised "from" it: a missing root filesystem must not look like a missing file
        raise SpecError(f"cannot use root filesystem {rootfs}: {_reason(exc)}") from None
    try:
        descriptor = _walk(root, path)
    except OSError as exc:
        raise SpecError(
            f"cannot use {path!r} of the image in {rootfs}: {_reason(exc)}", "paths start at the image's root"
        ) from exc
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SpecError(f"cannot use {path!r} of the image in {rootfs}: not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(root: int, path: str) -> int:
    for attempt in range(_TRIES):
        try:
            return syscalls.openat2(root, path, os.O_PATH, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS)
        except BlockingIOError:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _reason(exc: OSError) -> str:
    return _REASONS.get(exc.errno or 0) or exc.strerror or str(exc)
