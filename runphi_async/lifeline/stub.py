# SPDX-License-Identifier: Apache-2.0
"""The init stub: the tiny process whose pid the engine gets, and which keeps what must outlive a supervisor.

It is a shell blocked on a FIFO, a descendant of the engine's shim, and the parent of the VMM: so the VMM's exit
status is written down even while no supervisor runs. Its descriptors are the container's lifeline (see ``Fd``); a
new supervisor takes the very same open file descriptions back with pidfd_getfd, offsets included.
"""

from __future__ import annotations

import contextlib
import os
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from runphi_async import digits, regular
from runphi_async.host import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Fd(IntEnum):
    """Descriptors of the stub: the one table of them; whatever else needs to know is made of it, below.

    Ten is all a POSIX shell can name. Numbers are never given anew: guests that run during an upgrade have an init
    process with the numbers of before.
    """

    #: FIFO on which the supervisor writes the exit code. As stdin, so that no ``read <&N`` of the shell ever puts it
    #: in the place of something else that a new supervisor may be taking at that moment
    EXIT = 0
    STDOUT = 1
    STDERR = 2
    #: the container's stdin
    STDIN = 3
    #: the journal; its offset is the position of the engine's stdio
    STDIO_CURSOR = 4
    #: the journal; its offset is the position of the log
    LOG_CURSOR = 5
    #: FIFO of the guest's console output
    CONSOLE = 6
    #: FIFO with a word for the supervisor whenever something happened
    BELL = 7
    #: FIFO of the VMM's events; without a VMM: what the driver wants to be kept
    EVENTS = 8
    #: FIFO of the Linux guest's control port
    CONTROL = 9


#: The first descriptor behind them: drivers' own, which the VMM gets under the same number.
FIRST_EXTRA: Final = len(Fd)
#: Those that only some drivers have.
OPTIONAL: Final = frozenset((Fd.EVENTS, Fd.CONTROL))
#: In the shell's language: close what the VMM has no business with.
_CLOSED: Final = " ".join(f"{fd:d}<&-" for fd in Fd if fd > Fd.STDERR)
_RING: Final = f"echo >&{Fd.BELL:d}"


#: Names of the files the stub writes in the record directory.
VMM_PID: Final = "vmm.pid"
VMM_STATUS: Final = "vmm.status"
VMM_LOG: Final = "vmm.log"
#: The FIFO behind ``Fd.EXIT``.
EXIT_FIFO: Final = "exit"
#: Bytes of its end that are looked at.
_LOG_TAIL: Final = 2000
#: A shell's ``$?`` is one byte.
_STATUS_MAX: Final = 255

#: Word on the exit FIFO, in place of a code: start the second command, once.
AGAIN: Final = "again"

_RUN: Final = (
    f'run() {{ "$@" </dev/null {_CLOSED} >vmm.log 2>&1 & '
    # The shell would say "Killed" on the container's own stderr.
    # <> does not wait for a reader, should the VMM have put a FIFO there.
    f"echo $! >vmm.pid; {_RING}; wait $! 2>/dev/null; echo $? 1<>vmm.status; {_RING}; }}; "
)
_ONE: Final = _RUN + 'run "$@"; '
#: The arguments are the number of words of the first command, that command, and the second one. A function has
#: arguments of its own: the first command's words are moved to their end, and the others dropped.
_TWO: Final = (
    _RUN + "n=$1; shift; "
    'first() { i=0; while [ $i -lt $n ]; do set -- "$@" "$1"; shift; i=$((i + 1)); done; shift $(($# - n)); '
    'run "$@"; }; first "$@"; '
)
#: 137 is what an engine expects of a container whose supervisor vanished for good.
_WAIT: Final = 'IFS= read -r c; exit "${c:-137}"'
#: A supervisor that died may not know whether it has said the word: the second one does nothing.
_WAIT_OR_AGAIN: Final = (
    f'while IFS= read -r c && [ "$c" = {AGAIN} ]; do '
    'if [ "$n" ]; then shift $n; n=; run "$@"; fi; done; exit "${c:-137}"'
)


@contextlib.contextmanager
def arranged(held: Mapping[Fd, int], extra: Sequence[int] = ()) -> Iterator[list[int]]:
    """Give the stub's descriptors in the order of their numbers, to be inherited.

    :param held: our own numbers of them; what a driver may leave out is /dev/null then.
    :param extra: those behind the table.
    :raises ValueError: one that every stub needs is missing.
    """
    missing = [fd.name for fd in Fd if fd not in held and fd not in OPTIONAL]
    if missing:
        raise ValueError(f"no descriptor for {', '.join(missing)}")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield [*(held.get(fd, null) for fd in Fd), *extra]
    finally:
        os.close(null)


def command(vmm: tuple[str, ...], network: str | None, again: tuple[str, ...] = ()) -> list[str]:
    """Return the stub's argv.

    :param vmm: the command to start as its child; empty when the hypervisor has no process of its own.
    :param network: None leaves the engine's network namespace, "" makes a new one, a path joins that one.
    :param again: the command to start when the first has ended and :func:`say_again` was called.
    """
    if again:
        argv = ["/bin/sh", "-c", _TWO + _WAIT_OR_AGAIN, "runphi-init", str(len(vmm)), *vmm, *again]
    else:
        argv = ["/bin/sh", "-c", (_ONE if vmm else "") + _WAIT, "runphi-init", *vmm]
    if network is None:
        return argv
    if network == "":
        return ["/usr/bin/unshare", "--net", "--", *argv]
    return ["/usr/bin/nsenter", f"--net={network}", "--", *argv]


def say_again(record_dir: str) -> None:
    """Tell the stub to start its second command; saying so twice is the same as once."""
    fd = os.open(os.path.join(record_dir, EXIT_FIFO), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(fd, f"{AGAIN}\n".encode())
    finally:
        os.close(fd)


def take(pidfd: int, fd: int) -> int:
    """Take one of a living stub's descriptors: the same open file description, not a copy."""
    return syscalls.pidfd_getfd(pidfd, fd)


def read_status(record_dir: str) -> int | None:
    """Return the VMM's exit status as the stub's shell saw it (128 + n for signal n), None while it runs."""
    return _number(record_dir, VMM_STATUS, _STATUS_MAX)


def read_pid(record_dir: str, name: str = VMM_PID) -> int | None:
    """Return the pid in a file of the record; the VMM's is None before the stub started it."""
    return _number(record_dir, name, digits.PID_MAX)


def vmm_log(record_dir: str) -> str:
    """Return the end of what the VMM printed, where it says why it failed."""
    return regular.tail(os.path.join(record_dir, VMM_LOG), _LOG_TAIL).decode("utf-8", "replace")


def _number(record_dir: str, name: str, most: int) -> int | None:
    try:
        return digits.whole(regular.read(os.path.join(record_dir, name), 64, links=False).strip(), most)
    except OSError:
        return None
