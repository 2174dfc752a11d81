# SPDX-License-Identifier: Apache-2.0
"""Files in /dev/shm that are a guest's shared memory: made and unlinked by the runtime, found by a link in its record.

A file has a private name, mode 0600 and all its memory from the start: touching a page of a full /dev/shm later would
kill whoever touches it. The link in the record directory is what QEMU opens and what a new supervisor reads; a file
that no link names any more, because something was killed between two steps, is swept away when a supervisor starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from typing import Final

SHM: Final = "/dev/shm"
#: Begins the name of a link in a record directory; the channel's name follows.
LINK: Final = "ch."


def prefix(run_dir: str) -> str:
    """Return how the files of a run directory's guests begin: several supervisors may share a machine."""
    return f"runphi-{hashlib.sha256(os.path.realpath(run_dir).encode()).hexdigest()[:12]}-"


def make(directory: str, name: str, size: int) -> str:
    """Make the memory of a channel of the guest whose record is ``directory``; return its path.

    :raises OSError: there is no room.
    """
    fd, path = tempfile.mkstemp(prefix=prefix(os.path.dirname(directory)), dir=SHM)
    try:
        os.posix_fallocate(fd, 0, size)
        os.symlink(path, os.path.join(directory, LINK + name))
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return path


def find(directory: str, name: str) -> str:
    """Return the path of a channel's memory.

    :raises OSError: there is none.
    """
    return os.readlink(os.path.join(directory, LINK + name))


def unlink(directory: str) -> None:
    """Give back the memory of all channels of a guest, as soon as nobody has it mapped any more. Never fails."""
    ours = os.path.join(SHM, prefix(os.path.dirname(directory)))
    for path in _targets(directory):
        if path.startswith(ours):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _targets(directory: str) -> list[str]:
    found = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(LINK) and entry.is_symlink():
                with contextlib.suppress(OSError):
                    found.append(os.readlink(entry.path))
    return found


def sweep(run_dir: str, records: list[str]) -> list[str]:
    """Remove files of this run directory that no record's link names; return their names."""
    known = {path for name in records for path in _targets(os.path.join(run_dir, name))}
    swept = []
    start = prefix(run_dir)
    with contextlib.suppress(OSError), os.scandir(SHM) as entries:
        for entry in entries:
            if entry.name.startswith(start) and entry.path not in known:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    swept.append(entry.name)
    return swept
