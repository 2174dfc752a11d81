# SPDX-License-Identifier: Apache-2.0
"""The hypervisor's virtual console: a ring of 2048 bytes that everything prints into, and the driver's way to read it.

Nothing tells one cell's output from another's, and a reader that comes too late is told how much it missed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from errno import EAGAIN, EPERM
from typing import TYPE_CHECKING, Final

from runphi_async.testing.fake_jailhouse.place import Errno

if TYPE_CHECKING:
    from runphi_async.testing.fake_jailhouse.place import Place

SIZE: Final = 2048
#: Seconds between two looks of a reader that waits: the driver's HZ / 10.
NAP: Final = 0.1
#: Bytes that the tool reads at once.
CHUNK: Final = 128
#: Head of the file: bytes ever written; whether the root cell may read; whether it is live; how many logs were kept.
_HEAD: Final = struct.Struct("<Q??xxxxxxI")


class Ring:
    """The console's ring, in a file; ``last`` is the copy that is kept when the hypervisor goes."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._path = place.run / "ring"
        self._last = place.run / "ring.last"

    def open(self, *, readable: bool) -> None:
        """Begin an empty log: the hypervisor has been loaded."""
        kept = self._head(self._path)[3] if self._path.exists() else 0
        with open(self._path, "wb") as file:
            file.write(_HEAD.pack(0, readable, True, kept) + bytes(SIZE))
        self._last.unlink(missing_ok=True)
        self._show(b"")

    def close(self) -> None:
        """Keep the log for readers to come: the hypervisor has gone."""
        tail, readable, _, kept = self._head(self._path)
        data = self._path.read_bytes()[_HEAD.size :]
        with open(self._path, "r+b") as file:
            file.write(_HEAD.pack(0, readable, False, kept + 1))
        if readable:
            self._last.write_bytes(_HEAD.pack(tail, readable, False, kept + 1) + data)
        self._show(b"")

    def write(self, text: str | bytes) -> None:
        """Print."""
        data = text.encode() if isinstance(text, str) else text
        with open(self._path, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            tail, readable, live, kept = _HEAD.unpack(file.read(_HEAD.size))
            content = bytearray(file.read(SIZE))
            for place, byte in enumerate(data[-SIZE:], tail + max(0, len(data) - SIZE)):
                content[place % SIZE] = byte
            tail += len(data)
            os.pwrite(file.fileno(), _HEAD.pack(tail, readable, live, kept) + content, 0)
            if readable and live:
                self._show(_window(tail, bytes(content), max(0, tail - SIZE)))

    def _show(self, data: bytes) -> None:
        self._place.put(self._place.sysfs / "console", data)

    def _head(self, path: object) -> tuple[int, bool, bool, int]:
        with open(str(path), "rb") as file:
            found: tuple[int, bool, bool, int] = _HEAD.unpack(file.read(_HEAD.size))
        return found

    def delta(self, head: int, seen: int) -> tuple[bytes, int, int]:
        """Return what the live log has behind ``head``, how much of it is lost, and its number.

        A ``head`` in another log than number ``seen`` means nothing in this one: it is read from its beginning. The
        driver would subtract the two positions; a follower that slept through disable and enable would get garbage.

        :raises Errno: there is no hypervisor, or reading is not permitted.
        """
        if not self._path.exists():
            raise Errno(EAGAIN)
        with open(self._path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            tail, readable, live, number = _HEAD.unpack(file.read(_HEAD.size))
            content = file.read(SIZE)
        if not live:
            raise Errno(EAGAIN)
        if not readable:
            raise Errno(EPERM)
        return (*_delta(tail, content, head if number == seen else 0), number)

    def last(self, head: int) -> tuple[bytes, int, int] | None:
        """Return the same of the log that was kept, and its number; None: there is none."""
        try:
            raw = self._last.read_bytes()
        except FileNotFoundError:
            return None
        tail, _, _, number = _HEAD.unpack(raw[: _HEAD.size])
        return (*_delta(tail, raw[_HEAD.size :], head), number)


def _window(tail: int, content: bytes, head: int) -> bytes:
    at = head % SIZE
    return (content[at:] + content[:at])[: tail - head]


def _delta(tail: int, content: bytes, head: int) -> tuple[bytes, int]:
    missed = max(0, tail - head - SIZE)
    return _window(tail, content, head + missed), missed


class Reader:
    """An open file description of the device: its own position, as the driver keeps it."""

    def __init__(self, place: Place, *, block: bool) -> None:
        self._place = place
        self._ring = Ring(place)
        self._block = block
        self._head = 0
        self._log = -1
        self._last_seen = 0

    def read(self, size: int = CHUNK) -> bytes:
        """Return the next bytes; none: there are none, and the reader does not wait.

        :raises Errno: nothing can be read.
        """
        while True:
            with self._place.mutex():
                data, missed, error = self._look()
            if error not in (0, EAGAIN):
                raise Errno(error)
            if data:
                break
            if not self._block:
                if error:
                    raise Errno(error)
                return b""
            if error:
                self._head = 0  # a new log may begin meanwhile
            time.sleep(NAP)
        if missed:
            self._head += missed
            return b"<missed %d bytes of console log>\n" % missed
        chunk = data[:size]
        self._head += len(chunk)
        return chunk

    def _look(self) -> tuple[bytes, int, int]:
        last = self._ring.last(self._head)
        if last is not None and last[2] != self._last_seen:
            data, missed, number = last
            if not data:
                self._last_seen = number
            return data, missed, 0
        try:
            data, missed, log = self._ring.delta(self._head, self._log)
        except Errno as exc:
            return b"", 0, exc.number
        if log != self._log:
            self._head, self._log = 0, log
        return data, missed, 0
