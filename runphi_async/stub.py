# SPDX-License-Identifier: Apache-2.0
"""The init stub: the tiny process whose pid the engine gets, and which keeps what must outlive a supervisor.

It is a shell blocked on a FIFO, a descendant of the engine's shim, and the parent of the VMM: so the VMM's exit
status is written down even while no supervisor runs. Its descriptors are the container's lifeline (see ``Fd``); a
new supervisor takes the very same open file descriptions back with pidfd_getfd, offsets included.
"""

from __future__ import annotations

import os
from enum import IntEnum
from typing import Final

from runphi_async import syscalls


class Fd(IntEnum):
    """Descriptors of the stub. Ten is all a POSIX shell can name, so the VMM is started with 3 to 9 closed."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    #: FIFO on which the supervisor writes the exit code
    EXIT = 3
    #: the journal; its offset is the position of the engine's stdio
    STDIO_CURSOR = 4
    #: the journal; its offset is the position of the log
    LOG_CURSOR = 5
    #: FIFO of the guest's console output
    CONSOLE = 6
    #: FIFO with a word for the supervisor whenever something happened
    BELL = 7
    #: FIFO of the VMM's events
    EVENTS = 8
    #: FIFO of the Linux guest's control port
    CONTROL = 9


#: Names of the files the stub writes in the record directory.
VMM_PID: Final = "vmm.pid"
VMM_STATUS: Final = "vmm.status"
VMM_LOG: Final = "vmm.log"

_RUN_VMM: Final = (
    '"$@" </dev/null 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&- >vmm.log 2>&1 & '
    # The shell would say "Killed" on the container's own stderr.
    "echo $! >vmm.pid; echo >&7; wait $! 2>/dev/null; echo $? >vmm.status; echo >&7; "
)
#: 137 is what an engine expects of a container whose supervisor vanished for good.
_WAIT: Final = 'IFS= read -r c <&3; exit "${c:-137}"'


def command(vmm: tuple[str, ...], network: str | None) -> list[str]:
    """Return the stub's argv.

    :param vmm: the command to start as its child; empty when the hypervisor has no process of its own.
    :param network: None leaves the engine's network namespace, "" makes a new one, a path joins that one.
    """
    argv = ["/bin/sh", "-c", (_RUN_VMM if vmm else "") + _WAIT, "runphi-init", *vmm]
    if network is None:
        return argv
    if network == "":
        return ["/usr/bin/unshare", "--net", "--", *argv]
    return ["/usr/bin/nsenter", f"--net={network}", "--", *argv]


#: Where a stub without a VMM has its stdin once more: behind those with names, as it has none of a VMM's.
STDIN_KEPT: Final = len(Fd)


def take(pidfd: int, fd: int) -> int:
    """Take one of a living stub's descriptors: the same open file description, not a copy."""
    return syscalls.pidfd_getfd(pidfd, fd)


def take_stdin(pidfd: int) -> int:
    """Take the stdin of a living stub without a VMM.

    While the shell waits for the exit code, ``read <&3`` has put the exit FIFO in the place of stdin; whoever read
    from it there would steal the code. A stub with a VMM waits for that first, one without waits so all its life.

    :raises OSError: the stub is gone.
    """
    fd = take(pidfd, Fd.STDIN)
    other = take(pidfd, Fd.EXIT)
    lent = os.path.sameopenfile(fd, other)
    os.close(other)
    if not lent:
        return fd
    os.close(fd)
    return take(pidfd, STDIN_KEPT)


def read_status(record_dir: str) -> int | None:
    """Return the VMM's exit status as the stub's shell saw it (128 + n for signal n), None while it runs."""
    try:
        with open(os.path.join(record_dir, VMM_STATUS)) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def read_pid(record_dir: str) -> int | None:
    """Return the VMM's pid, None before the stub started it."""
    try:
        with open(os.path.join(record_dir, VMM_PID)) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
