# SPDX-License-Identifier: Apache-2.0
"""The console of a cell that is a serial port of the board: which source reads it, and what typing into it does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from backends.jailhouse.plan import Source as Where
from consoles.errors import SourceError
from consoles.sources import describe
from consoles.sources.pty import PtySource
from runphi_async.errors import BackendError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.jailhouse.plan import ConsoleChoice
    from consoles.sources.base import Listener, Source

_PTS: Final = "/dev/pts/"
_SHARED: Final = (
    "what is typed goes nowhere: this console is output only, the serial port is shared with the root system"
)


class OutputOnly:
    """A source into which nothing can be typed; the first who tries is told.

    :param why: what to tell.
    :ivar one_way: why it takes no input.
    """

    one_way = "the serial port is shared with the root system"

    def __init__(self, source: Source, say: Callable[[str], None], why: str) -> None:
        self._source = source
        self._say = say
        self._why = why

    async def open(self, listener: Listener) -> None:
        """Open what it stands for."""
        await self._source.open(listener)

    def pause(self) -> None:
        """Pause it."""
        self._source.pause()

    def resume(self) -> None:
        """Resume it."""
        self._source.resume()

    def write(self, data: bytes) -> int:
        """Throw away what is typed."""
        why, self._why = self._why, ""
        if why and data:
            self._say(why)
        return len(data)

    def when_writable(self, wake: Callable[[], None]) -> None:
        """It takes everything at once, so nobody ever waits."""

    async def close(self) -> None:
        """Close it."""
        await self._source.close()


def refuse_unsupported(choice: ConsoleChoice) -> None:
    """Refuse a console that this version cannot read, before anything is made.

    :raises UnsupportedError: and what to choose instead.
    """
    mend = "choose another one: annotation org.runphi.console-port, or console in the board's template"
    if choice.source is Where.UART and not choice.tty:
        raise UnsupportedError(
            f"cannot read the console '{choice.name}': the board file names no tty for it",
            f"set tty of [[uart]] '{choice.name}' in the board file, or " + mend,
        )


def source(choice: ConsoleChoice, say: Callable[[str], None]) -> Source:
    """Return the source of a serial port.

    ``tty`` of the board file is a device, read as a serial port with its usual settings, or a source in full words such
    as ``serial:/dev/ttyUSB0,9600``.

    :raises BackendError: the board file names something that is no source.
    """
    try:
        made = _make(choice.tty)
    except SourceError as exc:
        raise BackendError(
            f"cannot read the console '{choice.name}': {exc}", "correct its tty in the board file"
        ) from exc
    return made if choice.input else OutputOnly(made, say, _SHARED)


def _make(text: str) -> Source:
    if not text.startswith("/"):
        return describe.make(describe.parse(text))
    if os.path.realpath(text).startswith(_PTS):
        return PtySource(text)
    return describe.make(describe.parse(f"serial:{text}"))
