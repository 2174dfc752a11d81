# SPDX-License-Identifier: Apache-2.0
"""From the pty that xenconsoled keeps for a domain to the FIFO pair of the console, and back: by ``splice``.

One system call takes bytes from one side and stores them on the other, so a supervisor that is killed at any moment
has neither lost a byte nor moved it twice; the FIFOs are held by the init stub, the pty by xenconsoled. While nobody
reads, xenconsoled keeps up to 1 MiB and then drops the middle, unless it runs with ``--overflow-data=keep``.

Terminals can be spliced from Linux 5.11 on.

The pty is opened O_NOCTTY, or a session leader without a terminal would get it as its own and be hung up at the
domain's end; its line discipline is left as it is, because xenconsoled has made it raw.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import logging
import os
import termios
from typing import TYPE_CHECKING, Final

from consoles.wakers import Writable

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: Most bytes moved by one call: what a FIFO of the largest usual size holds.
CHUNK: Final = 1 << 16
#: From <fcntl.h>; Python 3.11 has no name for it.
SPLICE_F_NONBLOCK: Final = 0x02


class Bridge:
    """Moves bytes between a domain's pty and the console's FIFOs; owns the FIFO descriptors.

    :param tty: path of the pty.
    :param output: non-blocking descriptor of ``con.out``.
    :param typed: non-blocking descriptor of ``con.in``.
    :raises OSError: the pty cannot be opened.
    """

    def __init__(self, tty: str, output: int, typed: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._output, self._input = output, typed
        self._moved = asyncio.Event()
        self._tty = os.open(tty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._to_engine, self._to_guest = Writable(output), Writable(self._tty)
        #: bytes taken from the guest
        self.received = 0
        self._loop.add_reader(self._tty, self._take)
        self._loop.add_reader(self._input, self._give)

    # Section: guest to console

    def _take(self) -> None:
        try:
            moved = self._move(self._tty, self._output)
        except BlockingIOError:
            if self._ready_bytes(self._tty):
                self._wait_for(self._to_engine, self._tty, self._take)
            return
        except OSError as exc:
            # EIO, or EINVAL once xenconsoled has closed its side
            log.debug("the console has ended: %s", exc.strerror)
            moved = 0
        if moved == 0:
            self._hang_up()
            return
        self.received += moved
        self._moved.set()

    # Section: console to guest

    def _give(self) -> None:
        try:
            self._move(self._input, self._tty)
        except BlockingIOError:
            if self._ready_bytes(self._input):
                self._wait_for(self._to_guest, self._input, self._give)
        except OSError:
            self._hang_up()

    # Section: both

    @staticmethod
    def _move(source: int, target: int) -> int:
        return os.splice(source, target, CHUNK, flags=SPLICE_F_NONBLOCK)

    @staticmethod
    def _ready_bytes(fd: int) -> int:
        try:
            return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
        except OSError:
            return 0

    def _wait_for(self, target: Writable, source: int, again: Callable[[], None]) -> None:
        """The target is full: look at the source again when it has room."""
        if not target:
            self._loop.remove_reader(source)
            target.add(functools.partial(self._loop.add_reader, source, again))

    def _hang_up(self) -> None:
        """The domain's pty is gone: nothing comes any more, and what is typed has nobody to go to."""
        if self._tty < 0:
            return
        for fd in (self._tty, self._input):
            self._loop.remove_reader(fd)
        self._to_engine.drop()
        self._to_guest.drop()
        os.close(self._tty)
        self._tty = -1
        self._moved.set()

    async def drain(self, quiet: float, limit: float) -> None:
        """The guest prints no more: wait until xenconsoled has brought what it printed.

        Nothing says that the last byte is here, so silence must: ``quiet`` seconds of it, or ``limit`` seconds in
        which a full FIFO did not move.
        """
        while self._tty >= 0:
            self._take()
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), limit if self._to_engine else quiet)
            except TimeoutError:
                return

    def close(self) -> None:
        """Let go of everything; what was not moved stays with the FIFOs and xenconsoled."""
        self._hang_up()
        for fd in (self._input, self._output):
            if fd >= 0:
                os.close(fd)
        self._input = self._output = -1
