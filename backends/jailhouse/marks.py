# SPDX-License-Identifier: Apache-2.0
"""Words between a Linux cell's init and us on the cell's console, taken out of it and put into it.

A cell has one stream each way, so ``backends/guest/init/cell.c`` puts its words there, between ``ESC _`` and
``ESC \\``, with a mark that is random for each container: that the process runs, why it cannot, how it ended. They are
never shown, and a process cannot make them up. Signals, the terminal's size and the end of the input go the other way.

What may be the beginning of a word waits for the byte behind it: a lone ESC is shown when the guest prints on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.sources.base import Breaks
from consoles.wakers import Wakers
from runphi_async import digits

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
        number = digits.whole(code)
        return cls(number & 0xFF, error) if number is not None else None


class Filter:
    """Takes init's words out of a stream.

    :ivar ready: the process has its input.
    :ivar said: how it ended.
    """

    def __init__(self, mark: str) -> None:
        self._begin = f"\x1b_runphi:{mark}:".encode()
        self._held = b""
        self._error = ""
        self.ready = False
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
        self.ready = True
        if key == "error":
            self._error = "".join(c if c.isprintable() else "?" for c in value)
        elif key == "exit" and (number := digits.whole(value)) is not None:
            return Said(number & 0xFF, self._error)
        return None


class Marked:
    """A source without init's words.

    :param begun: the guest runs already: an earlier supervisor may have heard that it is ready.
    :param ended: called once, with what init said, behind the last byte.
    """

    def __init__(self, source: Source, mark: str, ended: Callable[[Said], None], *, begun: bool = False) -> None:
        self._source = source
        self._mark = mark
        self._filter = Filter(mark)
        self._filter.ready = begun
        self._ended = ended
        self._listener: Listener | None = None
        self._words = b""
        self._written = 0
        self._eof_at: int | None = None
        self._wakers = Wakers()

    async def open(self, listener: Listener) -> None:
        """Open what it stands for."""
        self._listener = listener
        await self._source.open(self)

    def again(self) -> None:
        """The guest begins anew: its next first byte says that it listens."""
        self._filter = Filter(self._mark)
        self._words = b""

    # Section: what the guest says

    def received(self, data: bytes) -> None:
        """Pass on what is the process's."""
        assert self._listener is not None
        before = self._filter.said
        shown = self._filter.feed(data)
        if shown:
            self._filter.ready = True  # it prints: if init's word was lost, it is behind it all the same
            self._listener.received(shown)
        if before is None and self._filter.said is not None:
            self._ended(self._filter.said)
        if self._filter.ready:
            self._flush()

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

    # Section: what it is told

    def tell(self, line: str) -> None:
        """Tell init a line of its channel; the end of the input waits until so many bytes were typed."""
        word, _, rest = line.partition(" ")
        if word == "eof":
            self.end_of_input(int(rest))
        else:
            self.word(line)

    def word(self, text: str) -> None:
        """Tell init something, behind what was typed so far."""
        self._words += f"\x1b_runphi:{self._mark}:{text}\x1b\\".encode()
        self._flush()

    def end_of_input(self, total: int) -> None:
        """Tell init that nothing is typed behind so many bytes."""
        self._eof_at = total
        self._look_for_end()

    def _look_for_end(self) -> None:
        if self._eof_at is not None and self._written >= self._eof_at:
            self._eof_at = None
            self.word("eof")

    def write(self, data: bytes) -> int:
        """Send, when somebody listens: before that a UART would lose it."""
        self._send_words()
        if self._words or not self._filter.ready:
            return 0
        written = self._source.write(data)
        self._written += written
        self._look_for_end()
        return written

    def when_writable(self, wake: Callable[[], None]) -> None:
        """Call when there is room."""
        self._wakers.add(wake)
        if self._filter.ready:
            self._source.when_writable(self._flush)

    def _send_words(self) -> None:
        if self._words and self._filter.ready:
            self._words = self._words[self._source.write(self._words) :]

    def _flush(self) -> None:
        """Send the words that wait, then let whoever types go on."""
        self._send_words()
        if not self._filter.ready:
            return
        if self._words:
            self._source.when_writable(self._flush)
            return
        self._wakers.wake()

    async def close(self) -> None:
        """Close it."""
        await self._source.close()


class MarkedLine(Marked):
    """The same for a line that has breaks."""

    async def send_break(self, seconds: float) -> None:
        """Hold the line at zero for so long."""
        assert isinstance(self._source, Breaks)
        await self._source.send_break(seconds)


def marked(source: Source, mark: str, ended: Callable[[Said], None], *, begun: bool = False) -> Marked:
    """Return a source without init's words."""
    return (MarkedLine if isinstance(source, Breaks) else Marked)(source, mark, ended, begun=begun)
