# SPDX-License-Identifier: Apache-2.0
"""The sink that logs a console: it drives a carrier (``consoles.streams.logs``) off the loop, in batches.

A log is lossless as long as its disk is: the guest waits for it within the console's window. A disk that refuses must
not stop a guest. Output is held back in the journal then, up to ``hold`` bytes, and what does not fit is given up,
counted, and said once in the log (where its kind allows) as soon as it can be written again; until then the disk is
tried every ``RETRY`` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiofiles.os
import anyio

from consoles.streams.logs.carry import BATCH, SHARE, Encoded, Spliced
from consoles.streams.logs.encode import Cri, JsonFile, Raw
from consoles.streams.logs.files import LEAST, PAIR, Files, Place, locked
from consoles.streams.logs.sidecar import Sidecar
from consoles.streams.timed import Timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.streams.journal import Journal
    from consoles.streams.logs.carry import Carrier
    from consoles.streams.logs.encode import Encoder

__all__ = ["INDEX", "LOG", "PAIR", "LogSink", "Place", "locked", "open_log"]

LOG: Final = "console.log"
INDEX: Final = "console.idx"
#: How long output is gathered before it goes to disk in one step, in seconds.
GATHER: Final = 0.02
#: From this many bytes on nothing is gathered any more: a guest that prints fast must not wait for its log.
ENOUGH: Final = 1 << 17
#: One step off the loop writes at most this. A guest that prints fast gets room meanwhile.
STEP: Final = 1 << 22
#: Seconds between two looks whether a disk that refused takes bytes again.
RETRY: Final = 1.0
#: Bytes held back for a disk that refuses; less than half of the least window.
HOLD: Final = 1 << 19

#: Kinds of logs, and what their files are called.
KINDS: Final = {
    "raw": "{}.log",
    "cri": "{}.cri.log",
    "json-file": "{}.json.log",
    "timed": "{}.timed",
}
_ENCODERS: Final[dict[str, Encoder]] = {"raw": Raw(), "cri": Cri(), "json-file": JsonFile(), "timed": Timed()}


def index_name(log: str) -> str:
    """Return what the index of a raw log is called."""
    return log.removesuffix(".log") + ".idx"


class LogStatistics(NamedTuple):
    """Numbers of one log, in bytes of the guest; ``failing``: its disk refuses at the moment."""

    kind: str
    lag: int
    lost: int
    failing: bool


def open_log(
    journal: Journal,
    kind: str,
    place: Place,
    *,
    cursor: int = -1,
    sidecar: str = "",
    progress: Callable[[], None],
    on_error: Callable[[OSError], None],
    on_resume: Callable[[int], None] = lambda lost: None,
    hold: int = HOLD,
) -> LogSink:
    """Make a log of a journal, of any kind in ``KINDS``; it goes on where one before it stood.

    :param cursor: raw only: description on the journal whose offset is the position; owned.
    :param sidecar: path of the file that keeps the position where no cursor does; in the record directory.
    """
    index = index_name(place.name) if kind == "raw" else ""
    encoder = _ENCODERS[kind]
    files = Files(place, encoder.header, index)
    carrier: Carrier
    if cursor >= 0:
        carrier = Spliced(journal, cursor, files)
    else:
        batch = min(BATCH, max(LEAST, place.max_bytes // SHARE)) if place.max_bytes else BATCH
        carrier = Encoded(journal, encoder, files, Sidecar(sidecar), indexed=bool(index), batch=batch)
    return LogSink(journal, kind, carrier, progress=progress, on_error=on_error, on_resume=on_resume, hold=hold)


class LogSink:
    """Copies a journal into a log off the loop; loses only what the disk refuses, and counts that.

    :param progress: called after bytes left, so that a stopped source can go on.
    :param on_error: told once when a stretch of refusals begins.
    :param on_resume: told how many bytes were lost when it has ended.
    """

    def __init__(
        self,
        journal: Journal,
        kind: str,
        carrier: Carrier,
        *,
        progress: Callable[[], None],
        on_error: Callable[[OSError], None],
        on_resume: Callable[[int], None],
        hold: int = HOLD,
    ) -> None:
        self.kind = kind
        self._journal = journal
        self._carrier = carrier
        self._progress = progress
        self._on_error = on_error
        self._on_resume = on_resume
        self._hold = hold
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._enough = asyncio.Event()
        self._done = asyncio.Event()
        self._hurried = False
        self._running = False
        self._closing = False
        self._reopening = False
        #: of a stretch of refusals: errno, bytes lost before it, loop time of the next try
        self._failing = 0
        self._lost_before = 0
        self._retry_at = 0.0

    @property
    def offset(self) -> int:
        """Offset of the next byte to log."""
        return self._carrier.offset

    @property
    def lost(self) -> int:
        """Bytes the disk did not take."""
        return self._carrier.lost

    @property
    def lag(self) -> int:
        """Bytes not yet in the log."""
        return self._journal.tail - self._carrier.offset

    @property
    def needed(self) -> int:
        """Everything not yet in the log."""
        return self._carrier.offset

    def statistics(self) -> LogStatistics:
        """Return the log's numbers."""
        return LogStatistics(self.kind, self.lag, self.lost, bool(self._failing))

    def pump(self) -> None:
        """Say that there may be something to write."""
        if self._failing and self.lag <= self._hold:
            return  # the next try comes by itself
        self._wake.set()
        if self.lag >= ENOUGH:
            self._enough.set()

    def hurry(self) -> None:
        """Write what there is without gathering: the guest has ended."""
        self._hurried = True
        self._enough.set()
        self._wake.set()

    def reopen(self) -> None:
        """Open the file by its name: another program has renamed it."""
        self._reopening = True
        self._enough.set()
        self._wake.set()

    async def run(self) -> None:
        """Write until closed; the owner runs this as a task."""
        if self._done.is_set():
            return  # closed before it began
        self._running = True
        try:
            while not self._closing:
                await self._news()
                await self._gather()
                await self._work()
            await self._work()
            await self._finish()
        finally:
            self._free()

    async def close(self) -> None:
        """Write what is left and end ``run``; without a ``run`` there is nothing to write."""
        self._closing = True
        self.hurry()
        if self._running:
            await self._done.wait()
        else:
            self._free()

    def _free(self) -> None:
        self._carrier.close()
        self._done.set()

    async def _news(self) -> None:
        with contextlib.suppress(TimeoutError):  # then it is time to try the disk again
            # Not wait_for: Python 3.11's forgets a cancellation that comes together with the event.
            async with asyncio.timeout(RETRY if self._failing else None):
                await self._wake.wait()
        self._wake.clear()

    async def _gather(self) -> None:
        if self._hurried or self._reopening or self._failing or self.lag >= ENOUGH:
            return
        self._enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER):
                await self._enough.wait()

    async def _work(self) -> None:
        """Write until there is nothing left or the disk refuses."""
        if self._failing and not self._hurried and self._loop.time() < self._retry_at:
            await self._give_up_excess(last=False)
            return
        while self._reopening or self.lag > 0 or self._carrier.unfinished:
            # A guest that ends while the disk refuses has one more try coming, on a disk that may take it by then.
            last = self._hurried
            try:
                if self._reopening:
                    self._reopening = False
                    await _off(self._carrier.reopen)
                else:
                    await _off(self._carrier.move, STEP, self._relieved)
            except OSError as exc:
                await self._refused(exc, last=last)
                return
            self._accepted()
            self._progress()

    def _relieved(self) -> None:
        """Called in the thread that writes: bytes have left."""
        self._loop.call_soon_threadsafe(self._progress)

    async def _refused(self, exc: OSError, *, last: bool) -> None:
        if not self._failing:
            self._lost_before = self.lost
            self._on_error(exc)
        self._failing = exc.errno or errno.EIO
        self._retry_at = self._loop.time() + RETRY
        await _off(self._carrier.let_go)
        await self._give_up_excess(last=last)

    async def _give_up_excess(self, *, last: bool) -> None:
        hold = 0 if last else self._hold
        if self.lag > hold:
            # Half of what may be held: not every byte from here on is to be given up by itself.
            await _off(self._carrier.skip, self._journal.tail - hold // 2, self._failing)
            self._progress()

    def _accepted(self) -> None:
        if self._failing:
            self._failing = 0
            self._on_resume(self.lost - self._lost_before)

    async def _finish(self) -> None:
        try:
            await _off(self._carrier.finish)
        except OSError as exc:
            if not self._failing:
                self._on_error(exc)


async def _off(function: Callable[..., None], *args: Any) -> None:
    """Run a blocking step in a thread, to its end also when the task is cancelled: its descriptors are closed next."""
    with anyio.CancelScope(shield=True):
        await aiofiles.os.wrap(function)(*args)
