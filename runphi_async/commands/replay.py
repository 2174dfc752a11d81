# SPDX-License-Identifier: Apache-2.0
"""`runphi replay`: play a timed log (``consoles.streams.timed``) with the pauses it was recorded with."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

import anyio

from consoles.streams import timed
from consoles.streams.logs.files import history
from runphi_async import digits, regular, wire
from runphi_async.commands.cli import find_named
from runphi_async.errors import RunphiError, UsageError
from runphi_async.terminals.consolelogs import plans
from runphi_async.wire.console import AttachStart, pack_offset

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator
    from typing import BinaryIO

    from consoles.streams.timed import Record
    from runphi_async.commands.cli import Globals, Parser
    from runphi_async.container.registry import Supervisor
    from runphi_async.wire.call import Call

#: Records read in one step off the loop.
STEP: Final = 16
#: Colours off and the cursor visible again: a recording may end anywhere.
_TIDY: Final = b"\x1b[0m\x1b[?25h"


def arguments(parser: Parser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--speed", metavar="N", default="1", help="times as fast; max: without pauses")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="make longer pauses this short")
    parser.add_argument("--safe", action="store_true", help="show control sequences as text instead of sending them")
    parser.add_argument(
        "--from", dest="start", type=digits.number, default=0, metavar="OFFSET", help="begin at this byte"
    )
    parser.add_argument("file", metavar="FILE", help="a timed log, or the name of a container that has one")


async def run(call: Call, supervisor: Supervisor, options: Globals, given: Namespace) -> None:
    """Play the files, oldest first."""
    speed = _speed(given.speed)
    if given.idle is not None and not given.idle >= 0:  # nan is neither
        raise UsageError("--idle wants seconds, 0 or more")
    files = await anyio.to_thread.run_sync(_files, call, supervisor, options, given.file)
    await call.send(wire.ATTACH, AttachStart(safe=given.safe).encode())
    await call.send(wire.CONSOLE_AT, pack_offset(max(0, given.start)))
    player = Player(call, speed, given.idle, max(0, given.start))
    for path in files:
        await player.play(path)
        if call.gone.is_set():
            return
    if not given.safe and call.fds and os.isatty(call.fds[1]):
        await call.send(wire.CONSOLE, _TIDY)


def _speed(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 < speed <= 1e6:
        raise UsageError(f"--speed wants a number above 0, or max, not {text!r}")
    return speed


def _files(call: Call, supervisor: Supervisor, options: Globals, word: str) -> list[str]:
    """Return the files that ``word`` means."""
    path = call.path(word)
    if "/" in word or os.path.exists(path):
        return [path]
    guest = find_named(supervisor, word, options)
    log = next((log for log in plans(guest.record) if log.kind == "timed"), None)
    if log is None:
        raise RunphiError(f"cannot replay {word}: it has no timed log", "add timed to org.runphi.log or to log.sinks")
    try:
        names = [log.path + suffix for suffix in history(log.directory, log.name)]
    except FileNotFoundError:
        names = []
    files = [name for name in names if os.path.exists(name)]
    if not files:
        raise RunphiError(f"cannot replay {word}: it has printed nothing yet")
    return files


class Player:
    """Sends records when they are due.

    :param speed: times as fast as recorded; 0: without pauses.
    :param idle: longest pause in seconds, None for no limit.
    :param skip: bytes not to show.
    """

    def __init__(self, call: Call, speed: float, idle: float | None, skip: int) -> None:
        self._call = call
        self._speed = speed
        self._idle = idle
        self._skip = skip
        self._last: Record | None = None
        self._due = anyio.current_time()

    async def play(self, path: str) -> None:
        """Play one file.

        :raises RunphiError: it cannot be read, or only up to somewhere, up to which it was played.
        """
        try:
            file = await anyio.to_thread.run_sync(_open, path)
        except OSError as exc:
            raise RunphiError(f"cannot replay {path}: {exc.strerror}") from exc
        try:
            records = timed.read(file)
            while step := await anyio.to_thread.run_sync(_some, records):
                for record in step:
                    if isinstance(record, timed.RecordingError):
                        raise RunphiError(f"cannot replay {path}: {record}") from record
                    await self._show(record)
                    if self._call.gone.is_set():
                        return
        except OSError as exc:
            raise RunphiError(f"cannot replay {path}: {exc.strerror}") from exc
        finally:
            file.close()

    async def _show(self, record: Record) -> None:
        text = record.text()
        left = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        if left:
            await self._wait(record)
            await self._call.send(wire.CONSOLE, left)
        self._last = record

    async def _wait(self, record: Record) -> None:
        if self._last is None or not self._speed:
            return
        pause = max(0, record.mono - self._last.mono) / 1e9
        if self._idle is not None:
            pause = min(pause, self._idle)
        # Counted from when the last one was due, so that sending takes nothing away from the pauses.
        self._due = max(self._due, anyio.current_time() - 1) + pause / self._speed
        with anyio.move_on_after(self._due - anyio.current_time()):
            await self._call.gone.wait()


def _open(path: str) -> BinaryIO:
    return open(regular.opened(path), "rb")


def _some(records: Iterator[Record]) -> list[Record | timed.RecordingError]:
    """Read a few records; an error is the last one."""
    found: list[Record | timed.RecordingError] = []
    try:
        found.extend(itertools.islice(records, STEP))
    except timed.RecordingError as exc:
        found.append(exc)
    return found
