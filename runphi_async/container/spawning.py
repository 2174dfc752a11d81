# SPDX-License-Identifier: Apache-2.0
"""The init process of a container in the making: its end of the console, its command, its descriptors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import anyio

from consoles.streams import terminal
from runphi_async.errors import RunphiError, StateError
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.partition.guest import network
from runphi_async.terminals.console import Lifeline, send_master

if TYPE_CHECKING:
    from runphi_async.container.assembly import Assembly
    from runphi_async.container.order import Spawner
    from runphi_async.container.recorded import Recorded
    from runphi_async.oci import spec as oci
    from runphi_async.record.store import Record

#: A terminal whose size nobody has told yet.
_UNKNOWN: Final = terminal.Size(0, 0)


def open_lifeline(record: Record, process: oci.Process | None, spawner: Spawner) -> Lifeline:
    """Make what the init process will hold of the console."""
    if not record.terminal:
        return Lifeline(record.id, spawner.fds)
    if record.attached:  # `run`: the client itself shows the console
        return Lifeline(record.id, ())
    shown = process.console_size if process is not None else None
    return Lifeline(record.id, (), terminal.Size(shown.height, shown.width) if shown else _UNKNOWN)


async def spawn(
    container: Recorded, assembly: Assembly, lifeline: Lifeline, spec: oci.Spec, spawner: Spawner
) -> Process:
    """Have the init process forked, and take it into the record; it waits to be let go.

    :raises StateError: it is gone already.
    """
    driver = assembly.driver
    inherited = driver.inheritance()
    # The init process's own description: the supervisor's is non-blocking, and a shell's read must block.
    exit_fd = os.open(os.path.join(container.directory, stub.EXIT_FIFO), os.O_RDWR | os.O_CLOEXEC)
    stdin, stdout, stderr = lifeline.stdio
    stdio_cursor, log_cursor = lifeline.cursors
    held = {
        stub.Fd.EXIT: exit_fd,
        stub.Fd.STDOUT: stdout,
        stub.Fd.STDERR: stderr,
        stub.Fd.STDIN: stdin,
        stub.Fd.STDIO_CURSOR: stdio_cursor,
        stub.Fd.LOG_CURSOR: log_cursor,
        stub.Fd.CONSOLE: assembly.streams.console.output,
        stub.Fd.BELL: assembly.bell.fd,
        **inherited.kept,
    }
    argv = stub.command(driver.command, driver.network or network(spec), driver.again)
    try:
        with stub.arranged(held, inherited.extra) as fds:
            pid = await spawner.spawn(container.directory, argv, fds)
    finally:
        os.close(exit_fd)
    try:
        process = Process(pid)
    except ProcessLookupError:  # with its client, most likely
        raise StateError("cannot create the container: its init process was killed before it began") from None
    container.record.pid, container.record.pid_start = pid, process.started
    return process


async def hand_over(path: str, spawner: Spawner, master: int) -> None:
    """Give the engine the terminal.

    :param path: of its socket, as the command line has it.
    :raises RunphiError: it cannot be given.
    """
    try:
        await anyio.to_thread.run_sync(send_master, path, spawner.cwd, master)
    except OSError as exc:
        raise RunphiError(f"cannot send the terminal to {path}: {exc.strerror or exc}") from exc
