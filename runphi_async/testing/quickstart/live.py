# SPDX-License-Identifier: Apache-2.0
"""The live console: the person's terminal joined to that of ``ctr run -t``, with keys that always leave.

``ctr`` has none: in its raw terminal every key is the guest's, so a guest that hangs would keep the person for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
import tty
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runphi_async.testing.quickstart.screen import OutputGone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: keys that leave, and the exit status then: as of a program that ctrl-c ends, and of one whose input ends
LEAVING: Final = {b"\x03": 130, b"\x04": 0}
#: seconds without a first byte after which the person is told how to leave
SILENCE: Final = 15.0
_NOTICE: Final = f"[quickstart: the guest has said nothing for {SILENCE:.0f} s; ctrl-c leaves]\r\n".encode()
#: longest time ctr may take to end when it has closed its terminal
PATIENCE: Final = 10.0


class Ending(NamedTuple):
    """How a console was left.

    :ivar code: exit code of the container; of ourselves when the person left.
    :ivar left: the person left: the container may still run.
    :ivar seen: the last that was printed.
    """

    code: int
    left: bool
    seen: bytes


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Passes every key on as it is; afterwards the terminal is as it was."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        with contextlib.suppress(termios.error):  # it has hung up
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def hold(command: Sequence[str], env: Mapping[str, str]) -> Ending:
    """Joins the terminal at 0 and 1 to the command until the command ends or the person leaves."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(command[0], list(command), dict(env))

    def resize(*_: Any) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * struct.calcsize("HHHH"))
            fcntl.ioctl(fd, termios.TIOCSWINSZ, size)

    usual = signal.signal(signal.SIGWINCH, resize)
    try:
        with raw(0):
            resize()
            code, seen = _join(fd)
        if code is not None:
            return Ending(code, left=True, seen=seen)
        return Ending(_reap(pid), left=False, seen=seen)
    finally:
        signal.signal(signal.SIGWINCH, usual)
        os.close(fd)  # whoever still has it as a terminal is hung up
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _join(fd: int) -> tuple[int | None, bytes]:
    """Copies both ways; returns the status of a person who leaves, None when the command has ended."""
    seen = b""
    told = False
    begun = time.monotonic()
    while True:
        quiet = not seen and not told
        ready = select.select([0, fd], [], [], max(0.0, begun + SILENCE - time.monotonic()) if quiet else None)[0]
        if not ready:
            told = True
            _print(_NOTICE)
        if fd in ready:
            try:
                data = os.read(fd, 65536)
            except OSError:  # EIO: the other side has closed
                data = b""
            if not data:
                return None, seen
            seen = (seen + data)[-4096:]
            _print(data)
        if 0 in ready:
            try:
                data = os.read(0, 4096)
            except OSError:  # the terminal has hung up
                data = b""
            if not data:
                return 0, seen
            keys = [data.find(key) for key in LEAVING if key in data]
            with contextlib.suppress(OSError):  # it is just closing: the next read says so
                os.write(fd, data[: min(keys)] if keys else data)
            if keys:
                return LEAVING[data[min(keys) : min(keys) + 1]], seen


def _print(data: bytes) -> None:
    while data:
        try:
            data = data[os.write(1, data) :]
        except OSError as exc:
            raise OutputGone from exc


def _reap(pid: int) -> int:
    """Waits for a process that has closed its terminal; its exit code."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(handle)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code
