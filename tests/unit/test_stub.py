# SPDX-License-Identifier: Apache-2.0
"""The init stub: one VMM after the other, the word that starts the second, and what a next supervisor takes back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

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
        high = [fcntl.fcntl(fds.get(fd, self.null), fcntl.F_DUPFD_CLOEXEC, 100) for fd in stub.Fd]
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


@pytest.mark.parametrize("vmm", [(), SPEAK])
async def test_stdin_is_never_the_exit_fifo(tmp_path: Path, vmm: tuple[str, ...]) -> None:
    """Not even while the shell waits for the exit code: whoever read from it there would steal the code."""
    with living(tmp_path, stub.command((*vmm, "0") if vmm else (), None)) as life:
        if vmm:
            await asyncio.to_thread(life.rung)
        taken = stub.take(life.pidfd, stub.Fd.STDIN)
        os.write(life.typed, b"for the guest\n")
        assert os.read(taken, 100) == b"for the guest\n"
        os.close(taken)
        assert await asyncio.to_thread(life.ended, b"7") == 7


async def test_both_commands_get_their_words_as_they_are(tmp_path: Path) -> None:
    first, second = ("3", "a b", "", "*", "$HOME"), ("5", "c\td", "again", "'")
    with living(tmp_path, stub.command((*SPEAK, *first), None, (*SPEAK, *second))) as life:
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == "a b\n\n*\n$HOME\n"
        assert stub.read_status(str(tmp_path)) == 3
        stub.say_again(str(tmp_path))
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == "c\td\nagain\n'\n"
        assert stub.read_status(str(tmp_path)) == 5
        assert await asyncio.to_thread(life.ended, b"42") == 42


async def test_the_second_command_runs_once_however_often_it_is_said(tmp_path: Path) -> None:
    count = ("/bin/sh", "-c", "echo run >>runs")
    with living(tmp_path, stub.command(count, None, count)) as life:
        for _ in range(3):
            stub.say_again(str(tmp_path))
        await asyncio.to_thread(life.rung)
        await asyncio.to_thread(life.rung)
        assert await asyncio.to_thread(life.ended, b"9") == 9
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


async def test_without_the_word_there_is_no_second_try(tmp_path: Path) -> None:
    count = ("/bin/sh", "-c", "echo run >>runs")
    with living(tmp_path, stub.command(count, None, count)) as life:
        await asyncio.to_thread(life.rung)
        assert await asyncio.to_thread(life.ended, b"6") == 6
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_the_vmm_has_none_of_the_stubs_descriptors(tmp_path: Path) -> None:
    look = ("/bin/sh", "-c", "for fd in 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$fd ] && echo $fd; done; exit 0")
    with living(tmp_path, stub.command(look, None, look)) as life:
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == ""
        stub.say_again(str(tmp_path))
        await asyncio.to_thread(life.rung)
        assert (tmp_path / "vmm.log").read_text() == ""
        assert await asyncio.to_thread(life.ended, b"0") == 0
