# SPDX-License-Identifier: Apache-2.0
"""What a next supervisor takes back from an init stub."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from runphi_async import stub

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("waits", [False, True])
async def test_stdin_of_a_stub_without_a_vmm_is_never_the_exit_fifo(tmp_path: Path, waits: bool) -> None:
    os.mkfifo(tmp_path / "exit")
    exit_fifo = os.open(tmp_path / "exit", os.O_RDWR)
    null = os.open("/dev/null", os.O_RDWR)
    stdin, typed = os.pipe()
    argv = stub.command((), None) if waits else ["/bin/sleep", "1000"]
    high = {0: stdin, stub.Fd.EXIT: exit_fifo, stub.STDIN_KEPT: stdin}
    actions = [(os.POSIX_SPAWN_DUP2, fcntl.fcntl(high.get(n, null), fcntl.F_DUPFD_CLOEXEC, 100), n) for n in range(11)]
    pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions)
    for _, fd, _ in actions:
        os.close(fd)
    pidfd = os.pidfd_open(pid)
    async with asyncio.timeout(20):  # the shell lends fd 0 to its read
        while waits and not os.readlink(f"/proc/{pid}/fd/0").endswith("/exit"):
            await asyncio.sleep(0.01)
    taken = stub.take_stdin(pidfd)
    os.write(typed, b"for the guest\n")
    assert os.read(taken, 100) == b"for the guest\n"
    if waits:
        os.write(exit_fifo, b"7\n")
    else:
        os.kill(pid, 9)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == (7 if waits else -9)
    for fd in (exit_fifo, null, stdin, typed, pidfd, taken):
        os.close(fd)
