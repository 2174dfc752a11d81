# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and the name of the boot they were written in."""

from __future__ import annotations

import os
from typing import Final

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        fd = os.open(temporary, _NEW, mode)
    except FileExistsError:  # of a dead process that had our pid, or put there to be written to
        os.unlink(temporary)
        fd = os.open(temporary, _NEW, mode)
    try:
        try:
            while data:  # a disk that gets full says so with the next write only
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def boot_id() -> str:
    """Return the kernel's id of this boot: a record of another boot has no live process."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
