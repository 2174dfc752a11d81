# SPDX-License-Identifier: Apache-2.0
"""What the engine types: its stdin pipe or the slave of its pty, read into the guest's input queue."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.streams.input import Input

CHUNK: Final = 1 << 14


class StdinSource:
    """Reads ``fd`` (non-blocking, owned) while the queue has room; says once when its writer is gone.

    A pty slave gives EIO, a pipe gives b"" when nobody can write to it any more. Both mean end of input, not the end
    of the guest.

    :param typed: given what was read; it feeds ``queue``.
    """

    def __init__(self, fd: int, queue: Input, typed: Callable[[bytes], None], on_eof: Callable[[], None]) -> None:
        self._fd = fd
        self._queue = queue
        self._typed = typed
        self._on_eof = on_eof
        self._loop = asyncio.get_running_loop()
        self._pollable = True
        self._resume()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_eof()
            return
        self._typed(data)
        if not self._queue.has_room:
            if self._pollable:
                self._loop.remove_reader(self._fd)
            self._queue.when_room(self._resume)
        elif not self._pollable:
            self._loop.call_soon(self._read_on)

    def _resume(self) -> None:
        if self._fd < 0:
            return
        try:
            self._loop.add_reader(self._fd, self._read)
        except PermissionError:  # epoll refuses what is always readable: files and /dev/null
            self._pollable = False
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._fd >= 0:
            self._read()

    def close(self) -> None:
        """Stop reading and close the descriptor."""
        if self._fd >= 0:
            if self._pollable:
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
