# SPDX-License-Identifier: Apache-2.0
"""A container's init process as the supervisor holds it: the engine's view of the container's life and end."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

import anyio

from consoles.streams.fifo import open_fifo
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from collections.abc import Callable

    from runphi_async.host.clock import Timekeeper
    from runphi_async.host.processes import Process

log = logging.getLogger(__name__)

#: Seconds that an init process which knows its exit code may take to be gone.
GONE_PATIENCE: Final = 2.0
#: Most bytes of the bell that are read at once; what they are does not matter.
_RINGS: Final = 4096


class InitProcess:
    """One init process; owns the pidfd.

    :param directory: of the record.
    """

    def __init__(self, process: Process, directory: str) -> None:
        self._process = process
        self._directory = directory

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call when it has ended: before it was told a code that means that the engine gave up."""
        self._process.watch(on_exit)

    def tell(self, code: int) -> None:
        """Tell it the container's exit code, which it ends with. It is not watched any more."""
        self._process.unwatch()
        try:
            fd = self._exit_fifo()
            try:
                os.write(fd, b"%d\n" % code)  # stays in the FIFO: the init process itself holds it open
            finally:
                os.close(fd)
        except OSError as exc:
            log.warning("%s: cannot tell the init process its exit code: %s", self._directory, exc)
            self.kill()

    def _exit_fifo(self) -> int:
        try:
            return os.open(os.path.join(self._directory, stub.EXIT_FIFO), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # the record was removed: the init process still has it
            return stub.take(self._process.fd, stub.Fd.EXIT)

    def kill(self) -> None:
        """End it at once."""
        self._process.send(9)

    async def leave(self, clock: Timekeeper) -> None:
        """Wait until it has ended, within bounds, and let go of it."""
        gone = anyio.Event()
        self._process.unwatch()
        self._process.watch(gone.set)
        with clock.move_on_after(GONE_PATIENCE):
            await gone.wait()
        if not gone.is_set():
            self.kill()
        self._process.close()


class InitBell:
    """The FIFO by which the init process says that something happened to its child.

    :param directory: of the record.
    :ivar fd: for the init process to hold as well.
    """

    def __init__(self, directory: str) -> None:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fd = open_fifo("bell", dir_fd)
        finally:
            os.close(dir_fd)

    def listen(self, rang: Callable[[], None]) -> None:
        """Call when it has rung, once or more often."""

        def ring() -> None:
            try:
                os.read(self.fd, _RINGS)
            except BlockingIOError:
                return
            rang()

        asyncio.get_running_loop().add_reader(self.fd, ring)

    def close(self) -> None:
        """Stop listening and let go of it."""
        if self.fd >= 0:
            asyncio.get_running_loop().remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1
