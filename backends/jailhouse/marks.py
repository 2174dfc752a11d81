# SPDX-License-Identifier: Apache-2.0
"""The words of a Linux cell's init, taken out of its console: how its process ended.

A cell has one stream to the root system, so ``backends/guest/init/cell.c`` puts them there, between ``ESC _`` and
``ESC \\``, with a mark that is random for each container. They are never shown, and a process cannot make them up.

What may be the beginning of one waits for the byte behind it: a lone ESC is shown when the guest prints on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.sources.base import Breaks

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Listener, Source

_END: Final = b"\x1b\\"
#: longest text behind the mark; init cuts its own off before
_TEXT_MAX: Final = 400


class Said(NamedTuple):
    """What init said of the end.

    :ivar code: the exit code.
    :ivar error: why the process could not be run; empty: it ran.
    """

    code: int
    error: str = ""

    def line(self) -> str:
        """Return it for the record."""
        return f"{self.code} {self.error}".rstrip()

    @classmethod
    def read(cls, line: str) -> Said | None:
        """Return what ``line`` made, None if it is no such line."""
        code, _, error = line.strip().partition(" ")
        return cls(int(code) & 0xFF, error) if code.isdecimal() else None


class Filter:
    """Takes init's words out of a stream.

    :ivar said: what was found.
    """

    def __init__(self, mark: str) -> None:
        self._begin = f"\x1b_runphi:{mark}:".encode()
        self._held = b""
        self._error = ""
        self.said: Said | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what is to be shown of the bytes before and these; nothing is behind the last word."""
        if self.said is not None:
            return b""
        data = self._held + data
        shown = b""
        while True:
            at = data.find(self._begin)
            if at < 0:
                keep = self._partial(data)
                self._held = data[len(data) - keep :]
                return shown + data[: len(data) - keep]
            end = data.find(_END, at)
            if end < 0 and len(data) - at <= len(self._begin) + _TEXT_MAX:
                self._held = data[at:]
                return shown + data[:at]
            shown += data[:at]
            if end < 0:  # a line that lost bytes
                self._held = b""
                return shown + data[at:]
            self.said = self._word(data[at + len(self._begin) : end])
            if self.said is not None:
                return shown
            data = data[end + len(_END) :]

    def _partial(self, data: bytes) -> int:
        """Return how many of the last bytes may be the beginning of a word."""
        longest = min(len(self._begin) - 1, len(data))
        return next((size for size in range(longest, 0, -1) if self._begin.startswith(data[-size:])), 0)

    def _word(self, word: bytes) -> Said | None:
        key, _, value = word.decode("utf-8", "replace").partition("=")
        if key == "error":
            self._error = "".join(c if c.isprintable() else "?" for c in value)
        elif key == "exit" and value.isdecimal():
            return Said(int(value) & 0xFF, self._error)
        return None


class Marked:
    """A source without init's words.

    :param ended: called once, with what init said, behind the last byte.
    """

    def __init__(self, source: Source, mark: str, ended: Callable[[Said], None]) -> None:
        self._source = source
        self._filter = Filter(mark)
        self._ended = ended
        self._listener: Listener | None = None

    async def open(self, listener: Listener) -> None:
        """Open what it stands for."""
        self._listener = listener
        await self._source.open(self)

    def received(self, data: bytes) -> None:
        """Pass on what is the process's."""
        assert self._listener is not None
        before = self._filter.said
        shown = self._filter.feed(data)
        if shown:
            self._listener.received(shown)
        if before is None and self._filter.said is not None:
            self._ended(self._filter.said)

    def gone(self, reason: str) -> None:
        """Pass it on."""
        if self._listener is not None:
            self._listener.gone(reason)

    def back(self) -> None:
        """Pass it on."""
        if self._listener is not None:
            self._listener.back()

    def pause(self) -> None:
        """Pause it."""
        self._source.pause()

    def resume(self) -> None:
        """Resume it."""
        self._source.resume()

    def write(self, data: bytes) -> int:
        """Send."""
        return self._source.write(data)

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call when there is room."""
        self._source.when_writable(wake)

    async def close(self) -> None:
        """Close it."""
        await self._source.close()


class MarkedLine(Marked):
    """The same for a line that has breaks."""

    async def send_break(self, seconds: float) -> None:
        """Hold the line at zero for so long."""
        assert isinstance(self._source, Breaks)
        await self._source.send_break(seconds)


def marked(source: Source, mark: str, ended: Callable[[Said], None]) -> Marked:
    """Return a source without init's words."""
    return MarkedLine(source, mark, ended) if isinstance(source, Breaks) else Marked(source, mark, ended)
