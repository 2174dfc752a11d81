# SPDX-License-Identifier: Apache-2.0
"""All that goes out on one connection, whoever says it: frames leave whole, and in the order in which they came.

The answer of a verb and the console of a guest share a socket. What the other end does not take yet waits here, so that
nobody who gives up waiting leaves half a frame behind for the next one to write into.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, Final

import anyio

from runphi_async import wire
from runphi_async.wire.console import pack_offset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds a client has to take a frame of an answer.
PATIENCE: Final = 30.0


class ClientGone(Exception):
    """The client left, or does not do its part: nobody is there to be answered. No error, it ends a call."""


class Piece:
    """A frame that waits, or what is left of it.

    :ivar begun: a part of it has left, and its descriptors with it.
    """

    def __init__(self, data: memoryview, fds: Sequence[int]) -> None:
        self.data = data
        self.fds = fds
        self.begun = False
        #: for whoever waits until it has left
        self.over: anyio.Event | None = None

    def end(self) -> None:
        """It has left, or never will: tell whoever waits for it."""
        if self.over is not None:
            self.over.set()


class Outgoing:
    """Writes on a socket: at once while the other end takes it, else as soon as it does.

    :param sock: connected non-blocking stream socket; not owned.
    :param on_gone: called once, when the other end has gone.
    :ivar full: the other end has not taken all that was written, or has gone: who may leave something out waits.
    :ivar gone: nothing can be written any more.
    :ivar sent: bytes that the kernel has taken.
    """

    def __init__(self, sock: socket.socket, on_gone: Callable[[], None] = lambda: None) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Piece] = deque()
        self._room: Callable[[], None] | None = None
        # An attribute, not a property: it is asked for twice with every byte of a console.
        self.full = False
        self.gone = False
        self.sent = 0

    @property
    def unread(self) -> int:
        """Bytes that the kernel has taken and the other end has not read, about."""
        if self.gone:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    def when_room(self, callback: Callable[[], None] | None) -> None:
        """Whenever ``full`` has become false, or the other end has gone, call ``callback``; None: nobody any more."""
        self._room = callback

    def write(self, data: bytes, fds: Sequence[int] = ()) -> Piece | None:
        """Write a frame, for nobody if the other end has gone; return what of it has to wait.

        :param fds: descriptors to be sent with it; they stay the caller's, and open until it has left.
        """
        if self.gone:
            return None
        count = 0 if self._waiting else self._try(data, fds)
        if count == len(data) or self.gone:
            return None
        piece = Piece(memoryview(data)[count:], () if count else fds)
        piece.begun = count > 0
        if not self._waiting:
            self._loop.add_writer(self._fd, self._go_on)
        self._waiting.append(piece)
        self.full = True
        return piece

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Write a frame and wait until it has left.

        :raises ClientGone: the other end has gone, or takes nothing.
        """
        piece = self.write(data, fds)
        if piece is not None:
            over = piece.over = anyio.Event()
            try:
                with anyio.move_on_after(PATIENCE):
                    await over.wait()
            finally:
                self._withdraw(piece)
            if not over.is_set():
                raise ClientGone("the client does not take its answer")
        if self.gone:
            raise ClientGone("the client has gone")

    def _withdraw(self, piece: Piece) -> None:
        """Nobody waits for a frame any more: its descriptors may be closed now. What has begun is completed."""
        if not piece.begun and piece in self._waiting:
            self._waiting.remove(piece)
            self._settle()

    def _try(self, data: bytes | memoryview, fds: Sequence[int]) -> int:
        """Return how many bytes the kernel took."""
        try:
            count = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._fail()
            return 0
        self.sent += count
        return count

    def _go_on(self) -> None:
        while self._waiting:
            piece = self._waiting[0]
            count = self._try(piece.data, piece.fds)
            if not count:
                return
            piece.begun, piece.fds, piece.data = True, (), piece.data[count:]
            if not piece.data:
                self._waiting.popleft()
                piece.end()
        self._settle()

    def _settle(self) -> None:
        """If nothing waits any more, let others write."""
        if not self._waiting and not self.gone:
            self.full = False
            self._loop.remove_writer(self._fd)
            if self._room is not None:
                self._room()

    def _fail(self) -> None:
        self.close()
        self._on_gone()
        if self._room is not None:
            self._room()

    def close(self) -> None:
        """Write nothing more; the socket stays the caller's."""
        if self._waiting:
            self._loop.remove_writer(self._fd)
        self.gone = self.full = True
        for piece in self._waiting:
            piece.end()
        self._waiting.clear()


class Outlet:
    """A console on its way to a thin client (``consoles.streams.sinks.attach.Outlet``), beside the call's answer."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._before = outgoing.sent
        self.when_room = outgoing.when_room

    @property
    def full(self) -> bool:
        """Whether nothing can be taken now."""
        return self._outgoing.full

    @property
    def gone(self) -> bool:
        """Whether the client has gone."""
        return self._outgoing.gone

    @property
    def sent(self) -> int:
        """Bytes that were sent since the console is shown."""
        return self._outgoing.sent - self._before

    @property
    def unread(self) -> int:
        """Bytes that the client has not read, about."""
        return self._outgoing.unread

    def start(self, offset: int) -> None:
        """Say where the console begins."""
        self._outgoing.write(wire.frame(wire.CONSOLE_AT, pack_offset(offset)))

    def output(self, data: bytes) -> None:
        """Show what the guest printed."""
        self._outgoing.write(wire.frame(wire.CONSOLE, data))

    def skip(self, offset: int) -> None:
        """Say where it goes on behind a gap."""
        self._outgoing.write(wire.frame(wire.SKIPPED, pack_offset(offset)))

    def notice(self, text: bytes) -> None:
        """Say lines to the person."""
        self._outgoing.write(wire.frame(wire.NOTICE, text))

    def role(self, name: bytes) -> None:
        """Say what the person may do."""
        self._outgoing.write(wire.frame(wire.ROLE, name))
