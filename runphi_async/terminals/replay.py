# SPDX-License-Identifier: Apache-2.0
"""What a client that attaches is shown of the past, and at which byte it then goes live: without gap, without double.

What the journal no longer holds comes from the raw log, if its offsets are proved to be the journal's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio

from consoles.streams import logreader, screen
from runphi_async import digits, wire
from runphi_async.errors import UnsupportedError, UsageError
from runphi_async.wire.console import pack_offset

if TYPE_CHECKING:
    from consoles.streams.hub import Hub
    from consoles.streams.journal import Journal
    from consoles.streams.terminal import Size
    from runphi_async.wire.call import Call

#: A line is looked for in steps of this, backwards.
STEP: Final = 1 << 16
#: One frame carries at most this much of the log.
CHUNK: Final = 1 << 18
#: Log and journal must agree on this much before the log is believed.
PROOF: Final = 1 << 12
#: The journal's beginning moves while a guest prints: so often is the comparison tried again.
TRIES: Final = 5
NONE: Final = "none"
SCREEN: Final = "screen"
ALL: Final = "all"
#: Most lines that can be asked for.
LINES_MAX: Final = 999_999_999


def check(wanted: str | None) -> None:
    """Refuse what cannot be replayed.

    :raises UsageError: it makes no sense.
    :raises UnsupportedError: the terminal model is not installed.
    """
    if wanted is None or wanted in (NONE, ALL) or digits.whole(wanted, LINES_MAX) is not None:
        return
    if wanted != SCREEN:
        raise UsageError(f"--replay wants none, screen, a number of lines or all, not {wanted!r:.80}")
    if not screen.available():
        raise UnsupportedError(
            "cannot show the last screen: the terminal model is not installed",
            "install the extra [screen] (pip install pyte) where the supervisor runs, or use --replay N",
        )


async def begin(call: Call, hub: Hub, log_dir: str, wanted: str, size: Size | None) -> int:
    """Show the past that does not come from the journal; return the offset at which the journal goes on."""
    if wanted == NONE:
        return hub.journal.tail
    if wanted == SCREEN:
        return await _screen(call, hub, size)
    if wanted == ALL:
        return await _older(call, hub, log_dir, None)
    lines = digits.whole(wanted, LINES_MAX) or 0
    start, missing = lines_back(hub.journal, lines)
    return await _older(call, hub, log_dir, lines) if missing else start


def lines_back(journal: Journal, lines: int) -> tuple[int, bool]:
    """Return where the last ``lines`` lines begin, and whether they began before what is kept."""
    end = journal.tail
    if lines == 0 or end == 0:
        return end, False
    if journal.read(end - 1, 1) == b"\n" and end > journal.base:
        end -= 1
    while end > journal.base:
        start = max(journal.base, end - STEP)
        data = journal.read(start, end - start)
        at = len(data)
        while (at := data.rfind(b"\n", 0, at)) >= 0:
            lines -= 1
            if lines == 0:
                return start + at + 1, False
        end = start
    return journal.base, journal.base > 0


async def _screen(call: Call, hub: Hub, size: Size | None) -> int:
    journal = hub.journal
    first = max(journal.base, journal.tail - screen.PART)
    data = journal.read(first, journal.tail - first)
    painted = await anyio.to_thread.run_sync(screen.paint, data, size)
    await call.send(wire.CONSOLE_AT, pack_offset(first + painted.used))
    await call.send(wire.PAINT, painted.data)
    return first + painted.used


async def _older(call: Call, hub: Hub, log_dir: str, lines: int | None) -> int:
    """Send what only the log still has: all of it, or as many lines as the journal lacks."""
    journal = hub.journal
    if journal.base == 0 or not log_dir or not await anyio.to_thread.run_sync(_agree, log_dir, journal):
        return journal.base
    start = await anyio.to_thread.run_sync(_first, log_dir, journal, lines)
    await call.send(wire.CONSOLE_AT, pack_offset(start))
    while (left := journal.base - start) > 0:
        at, data = await anyio.to_thread.run_sync(logreader.read, log_dir, start, min(CHUNK, left))
        if not data or at >= journal.base:
            await call.send(wire.SKIPPED, pack_offset(journal.base))
            return journal.base
        if at != start:  # rotated away meanwhile
            await call.send(wire.SKIPPED, pack_offset(at))
        await call.send(wire.CONSOLE, data)
        start = at + len(data)
    return start


def _first(log_dir: str, journal: Journal, lines: int | None) -> int:
    first, end = logreader.bounds(log_dir)
    if lines is None:
        return min(first, journal.base)
    # What the log has not got yet has lines, too.
    newer = journal.read(end, journal.tail - end).count(b"\n") if journal.base <= end < journal.tail else 0
    return min(logreader.tail(log_dir, max(1, lines - newer)), journal.base)


def _agree(log_dir: str, journal: Journal) -> bool:
    """Whether the log's offsets are the journal's: not so after a disk has refused bytes.

    Runs in a thread beside a journal that goes on, and that may even be closed.
    """
    for _ in range(TRIES):
        base = journal.base
        try:
            end = logreader.bounds(log_dir)[1]
            if end <= base:
                return end == base
            at, logged = logreader.read(log_dir, base, PROOF)
            kept = journal.read(base, len(logged))
        except (OSError, ValueError):
            return False
        if journal.base == base:
            return at == base and logged == kept
    return False
