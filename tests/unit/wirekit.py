# SPDX-License-Identifier: Apache-2.0
"""The other end of a connection, for tests of both sides: takes frames apart by the product's own decoder."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from runphi_async import wire

if TYPE_CHECKING:
    from collections.abc import Iterator


def whole(decoder: wire.Decoder) -> Iterator[tuple[bytes, bytes]]:
    """Take the frames that are complete."""
    while (frame := decoder.take()) is not None:
        yield frame


def frames_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the frames that ``data`` consists of."""
    decoder = wire.Decoder()
    decoder.feed(data)
    found = list(whole(decoder))
    assert b"".join(wire.frame(*frame) for frame in found) == data, "it does not end with a frame"
    return found


class Reader:
    """Reads frames from a socket that blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = wire.Decoder()

    def frame(self) -> tuple[bytes, bytes]:
        """Return the next frame; EOFError when there is none."""
        while (frame := self._decoder.take()) is None:
            data = self._sock.recv(65536)
            if not data:
                raise EOFError
            self._decoder.feed(data)
        return frame


class Peer:
    """Both ends of a connection: ``ours`` is for what is tested, the other one is read here.

    :param buffer: bytes that the kernel keeps each way, None for its own idea.
    """

    def __init__(self, buffer: int | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self._decoder = wire.Decoder()
        self._pieces = 0

    def frames(self, most: int = 1 << 30) -> list[tuple[bytes, bytes]]:
        """Read at most ``most`` of the bytes that are there; return the frames that are complete by now."""
        with contextlib.suppress(BlockingIOError):
            while most > 0 and (data := self.theirs.recv(min(most, 1 << 20))):
                self._pieces += len(data)
                self._decoder.feed(data)
                most -= len(data)
        found = list(whole(self._decoder))
        self._pieces -= sum(5 + len(payload) for _, payload in found)
        return found

    @property
    def half(self) -> bool:
        """Whether a part of a frame was read."""
        return self._pieces > 0

    def close(self) -> None:
        """Close both ends."""
        self.ours.close()
        self.theirs.close()
