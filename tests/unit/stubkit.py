# SPDX-License-Identifier: Apache-2.0
"""A real init process in a directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: says which it is and which words it got, one a line
SPEAK = ("/bin/sh", "-c", 'printf "%s\\n" "$@"; exit "$0"')


class Life:
    """A stub in a directory of its own."""

    def __init__(self, directory: Path, argv: list[str]) -> None:
        self.directory = directory
        os.mkfifo(directory / "exit")
        os.mkfifo(directory / "bell")
        self.exit = os.open(directory / "exit", os.O_RDWR)
        self.bell = os.open(directory / "bell", os.O_RDWR)
        self.null = os.open("/dev/null", os.O_RDWR)
        self.stdin, self.typed = os.pipe()
        fds = {stub.Fd.EXIT: self.exit, stub.Fd.STDIN: self.stdin, stub.Fd.BELL: self.bell}
        with stub.arranged(dict.fromkeys(stub.Fd, self.null) | fds) as arranged:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in arranged]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        shell = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(directory), *argv]
        self.pid = os.posix_spawn("/bin/sh", shell, dict(os.environ), file_actions=actions)
        for fd in high:
            os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)

    def rung(self) -> None:
        """Wait for the bell: once for the pid, once for the status."""
        for _ in range(2):
            assert os.read(self.bell, 1) == b"\n"

    def ended(self, code: bytes) -> int:
        os.write(self.exit, code + b"\n")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        for fd in (self.exit, self.bell, self.null, self.stdin, self.typed, self.pidfd):
            os.close(fd)


@contextlib.contextmanager
def living(directory: Path, argv: list[str]) -> Iterator[Life]:
    life = Life(directory, argv)
    try:
        yield life
    finally:
        life.close()
