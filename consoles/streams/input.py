# SPDX-License-Identifier: Apache-2.0
"""The one queue by which bytes reach a guest: the engine's stdin and every person who may type share it.

Whoever feeds asks ``has_room`` first and is called back when there is room again, so nobody's typing is dropped and
a guest that does not read stops its writers instead of filling our memory.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from consoles.wakers import Wakers, Writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Source

#: Feeders stop above this. A pipe behind it holds more, so a paste of a page never waits.
ROOM: Final = 1 << 16
#: Longest thing that one key press sends, in bytes: an escape sequence.
KEY: Final = 8


class Input(Protocol):
    """Bytes on their way to a guest, whatever way that is."""

    #: bytes ever fed
    fed: int

    @property
    def has_room(self) -> bool:
        """Whether feeders may go on."""
        ...

    def feed(self, data: bytes) -> None:
        """Queue ``data`` behind all that was fed before."""
        ...

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room again."""
        ...

    def close(self) -> None:
        """Drop what is queued."""
        ...


class InputQueue:
    """Bytes on their way to the guest's console input; owns ``fd`` (a non-blocking descriptor).

    :param typed: called when a key, not a lot of text, has gone to the guest.
    """

    def __init__(self, fd: int, typed: Callable[[], None] | None = None) -> None:
        self._fd = fd
        self._typed = typed
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._full = Writable(fd)
        self._wakers = Wakers()
        #: bytes ever fed, written to the guest or still waiting
        self.fed = 0

    @property
    def has_room(self) -> bool:
        """Whether feeders may go on."""
        return self._size < ROOM

    def feed(self, data: bytes) -> None:
        """Queue ``data`` behind all that was fed before."""
        if self._fd < 0 or not data:
            return
        self._chunks.append(data)
        self._size += len(data)
        self.fed += len(data)
        if not self._full:
            self._flush()
            if self._typed is not None and len(data) <= KEY and not self._full:
                self._typed()

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room again."""
        self._wakers.add(wake)

    def _flush(self) -> None:
        while self._chunks:
            chunk = self._chunks[0]
            try:
                written = os.write(self._fd, chunk)
            except BlockingIOError:
                self._full.add(self._flush)
                break
            except OSError:  # the guest's end is gone: what was typed has no reader any more
                self._chunks.clear()
                self._size = 0
                break
            self._size -= written
            if written == len(chunk):
                self._chunks.popleft()
            else:
                self._chunks[0] = chunk[written:]
        if self.has_room:
            self._wakers.wake()

    def close(self) -> None:
        """Drop what is queued and close the descriptor."""
        if self._fd < 0:
            return
        self._full.drop()
        os.close(self._fd)
        self._fd = -1
        self._chunks.clear()
        self._size = 0
        self._wakers.drop()


class SourceInput:
    """Bytes on their way to a far end that is a ``Source``.

    What is typed while it is gone is dropped, and so is what was queued: keys typed before a board was unplugged must
    not hit the board that is plugged in an hour later.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._data = bytearray()
        self._waiting = False
        self._closed = False
        self._gone = False
        self._wakers = Wakers()
        self.fed = 0
        #: bytes typed in vain
        self.dropped = 0

    @property
    def has_room(self) -> bool:
        """Whether feeders may go on."""
        return len(self._data) < ROOM

    def feed(self, data: bytes) -> None:
        """Queue ``data`` behind all that was fed before."""
        if self._closed or not data:
            return
        self.fed += len(data)
        self._data += data
        if self._gone:
            self._drop()
        elif not self._waiting:
            self._flush()

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room again."""
        self._wakers.add(wake)

    def gone(self) -> None:
        """The far end cannot be reached."""
        self._gone = True
        self._waiting = False
        self._drop()

    def back(self) -> None:
        """The far end is there again."""
        self._gone = False

    def _drop(self) -> None:
        self.dropped += len(self._data)
        self._data.clear()
        self._wake()

    def _flush(self) -> None:
        self._waiting = False
        while self._data and not self._gone:
            written = self._source.write(bytes(self._data[:ROOM]))
            if written == 0:
                self._waiting = True
                self._source.when_writable(self._flush)
                break
            del self._data[:written]
        self._wake()

    def _wake(self) -> None:
        if self.has_room:
            self._wakers.wake()

    def close(self) -> None:
        """Drop what is queued."""
        self._closed = True
        self._data.clear()
        self._wakers.drop()
