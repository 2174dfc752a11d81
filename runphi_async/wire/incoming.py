# SPDX-License-Identifier: Apache-2.0
"""What comes in on one connection: read by the loop as it comes, taken frame by frame by whoever waits for it.

What nobody takes stays with the other end, which then has to wait; that it has hung up is noticed all the same.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async import wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

#: Longest frame that the other end may send.
FRAME_MAX: Final = 1 << 20
#: So many bytes, or one frame, are taken before somebody wants them: more than a person types ahead.
ROOM: Final = 1 << 16
_STEP: Final = 1 << 16


class Incoming:
    """Frames from a socket.

    :param sock: connected non-blocking stream socket; not owned.
    :param on_gone: called once, as soon as the other end has hung up or sends what is no frame; what it said before
        can still be taken.
    """

    def __init__(self, sock: socket.socket, on_gone: Callable[[], None]) -> None:
        self._sock = sock
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.Decoder(FRAME_MAX)
        self._news: anyio.Event | None = None
        self._reading = False
        self._hangup: select.epoll | None = None
        self._gone = False
        self._ended = False

    def start(self, data: bytes = b"") -> None:
        """Begin to read; ``data`` has been read before."""
        self._reading = True
        self._loop.add_reader(self._sock, self._read)
        if data:
            self._feed(data)

    async def frame(self) -> tuple[bytes, bytes] | None:
        """Return type and payload of the next frame, None when there will be none."""
        while (frame := self._take()) is None:
            if self._ended:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        return frame

    def _take(self) -> tuple[bytes, bytes] | None:
        try:
            frame = self._decoder.take()
            if not self._reading and not self._ended and not self._is_full():
                self._read_on()
        except ValueError:
            self._end()
            return None
        return frame

    def _is_full(self) -> bool:
        return self._decoder.held >= ROOM and self._decoder.complete

    def _read(self) -> None:
        try:
            data = self._sock.recv(_STEP)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._feed(data)
        else:
            self._end()

    def _feed(self, data: bytes) -> None:
        self._decoder.feed(data)
        try:
            if self._is_full():
                self._hold_back()
            elif not self._decoder.complete:
                return
        except ValueError:
            self._end()
            return
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    # Section: a reader that does not keep up

    def _hold_back(self) -> None:
        """Read no more for now; of the socket only its end is of interest, even behind what is unread."""
        self._stop_reading()
        self._hangup = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._hangup.register(self._sock, select.EPOLLRDHUP)
        self._loop.add_reader(self._hangup, self._hung_up)

    def _read_on(self) -> None:
        self._forget_hangup()
        self._reading = True
        self._loop.add_reader(self._sock, self._read)

    def _hung_up(self) -> None:
        self._forget_hangup()
        self._leave()

    def _forget_hangup(self) -> None:
        if self._hangup is not None:
            self._loop.remove_reader(self._hangup)
            self._hangup.close()
            self._hangup = None

    # Section: the end

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._on_gone()

    def _end(self) -> None:
        self.close()
        self._leave()

    def close(self) -> None:
        """Read nothing more; the socket stays the caller's."""
        self._stop_reading()
        self._forget_hangup()
        self._ended = True
        self._tell()
