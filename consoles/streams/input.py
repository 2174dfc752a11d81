# SPDX-License-Identifier: Apache-2.0
"""The one queue by which bytes reach a guest: the engine's stdin and every person who may type share it.

Whoever feeds asks ``has_room`` first and is called back when there is room again, so nobody's typing is dropped and
a guest that does not read stops its writers instead of filling our memory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from consoles.wakers import Wakers

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Source

#: Feeders stop above this. A pipe behind it holds more, so a paste of a page never waits.
ROOM: Final = 1 << 16
#: Longest thing that one key press sends, in bytes: an escape sequence.
KEY: Final = 8


class Input:
    """Bytes on their way to the far end of a source.

    What is typed while that is gone is dropped, and so is what was queued: keys typed before a board was unplugged
    must not hit the board that is plugged in an hour later.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._waiting = False
        self._closed = False
        self._gone = False
        self._feeders = Wakers()
        #: bytes ever fed, written or still waiting
        self.fed = 0
        #: bytes typed in vain
        self.dropped = 0

    @property
    def has_room(self) -> bool:
        """Whether feeders may go on."""
        return self._size < ROOM

    @property
    def queued(self) -> int:
        """Bytes that wait until the far end takes more."""
        return self._size

    def feed(self, data: bytes) -> None:
        """Queue ``data`` behind all that was fed before."""
        if self._closed or not data:
            return
        self.fed += len(data)
        if not self._chunks and not self._gone:  # a key, mostly: it takes the shortest way
            written = self._source.write(data)
            if written == len(data):
                return
            data = data[written:]
        self._size += len(data)
        self._chunks.append(data)
        if self._gone:
            self._drop()
        elif not self._waiting:
            self._flush()

    def when_room(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` once when there is room again."""
        self._feeders.add(wake)

    def gone(self) -> None:
        """Drop what is queued, and what is fed from now on: the far end cannot be reached."""
        self._gone = True
        self._waiting = False
        self._drop()

    def back(self) -> None:
        """Go on: the far end is there again."""
        self._gone = False

    def _drop(self) -> None:
        self.dropped += self._size
        self._clear()
        self._feeders.wake()

    def _clear(self) -> None:
        self._chunks.clear()
        self._size = 0

    def _flush(self) -> None:
        self._waiting = False
        while self._chunks and not self._gone:
            chunk = self._chunks[0]
            written = self._source.write(chunk)
            if self._gone or self._closed:  # it was lost in that moment, and this is empty
                break
            if written == 0:
                self._waiting = True
                self._source.when_writable(self._flush)
                break
            self._size -= written
            if written == len(chunk):
                self._chunks.popleft()
            else:
                self._chunks[0] = chunk[written:]
        if self.has_room:
            self._feeders.wake()

    def close(self) -> None:
        """Drop what is queued; the source stays its owner's."""
        self._closed = True
        self._clear()
        self._feeders.drop()
