# SPDX-License-Identifier: Apache-2.0
"""Reads a raw log (``consoles.streams.sinks.logfile``) back: by absolute offset, by time, by lines from the end.

Synchronous functions over one directory; they survive a rotation between two calls, because offsets are absolute, and
during one, because they hold the directory's lock. ``name`` is the log's: a channel's is not the console's.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
from typing import Final, NamedTuple

from consoles.streams.logs.files import PAIR, history, locked
from consoles.streams.sinks.logfile import LOG, index_name

#: Looking for the last lines reads backwards in steps of this.
STEP: Final = 1 << 16


class Segment(NamedTuple):
    """One log file: where it lies, the absolute offset of its first byte, its length; ``times`` is its index."""

    log: str
    times: str
    base: int
    size: int


def segments(directory: str, name: str = LOG) -> list[Segment]:
    """Return the log files that exist, oldest first."""
    with contextlib.suppress(FileNotFoundError), locked(directory, fcntl.LOCK_SH):
        return _segments(directory, name)
    return []


def _segments(directory: str, name: str) -> list[Segment]:
    found = []
    for suffix in history(directory, name):
        log, index = (os.path.join(directory, file + suffix) for file in (name, index_name(name)))
        try:
            with open(index, "rb") as file:
                base, _ = PAIR.unpack(file.read(PAIR.size))
            found.append(Segment(log, index, base, os.stat(log).st_size))
        except (OSError, struct.error):
            continue  # nothing written yet, or its index is gone
    for older, newer in reversed(tuple(itertools.pairwise(found))):
        if older.base + older.size > newer.base:  # another program gave the files other numbers
            return found[found.index(newer) :]
    return found


def bounds(directory: str, name: str = LOG) -> tuple[int, int]:
    """Return the absolute offsets of the first byte kept and behind the last."""
    found = segments(directory, name)
    return (found[0].base, found[-1].base + found[-1].size) if found else (0, 0)


def read(directory: str, offset: int, limit: int, name: str = LOG) -> tuple[int, bytes]:
    """Return (absolute offset, bytes) from ``offset`` on, or from the oldest byte kept; b"" at the end."""
    with contextlib.suppress(FileNotFoundError), locked(directory, fcntl.LOCK_SH):
        for segment in _segments(directory, name):
            if offset < segment.base + segment.size:
                start = max(offset, segment.base)
                with open(segment.log, "rb") as file:
                    file.seek(start - segment.base)
                    return start, file.read(min(limit, segment.base + segment.size - start))
    return offset, b""


def since(directory: str, moment_ns: int, name: str = LOG) -> int:
    """Return the offset of the first byte written at or after ``moment_ns`` (wall clock)."""
    with contextlib.suppress(FileNotFoundError), locked(directory, fcntl.LOCK_SH):
        for segment in _segments(directory, name):
            with open(segment.times, "rb") as file:
                data = file.read()
            usable = len(data) // PAIR.size * PAIR.size
            for offset, when in PAIR.iter_unpack(data[:usable]):
                if when >= moment_ns:
                    return int(offset)
    return bounds(directory, name)[1]


def tail(directory: str, lines: int, name: str = LOG) -> int:
    """Return the offset at which the last ``lines`` lines begin."""
    first, end = bounds(directory, name)
    if lines <= 0:
        return end
    position, wanted = end, lines
    while position > first:
        start = max(first, position - STEP)
        data = _between(directory, start, position, name)
        if len(data) < position - start:
            break  # rotated away meanwhile
        cut = len(data) - 1 if position == end and data.endswith(b"\n") else len(data)
        while (cut := data.rfind(b"\n", 0, cut)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + cut + 1
        position = start
    return first


def _between(directory: str, start: int, end: int, name: str) -> bytes:
    """The bytes of a range, also where it spans two files."""
    parts: list[bytes] = []
    while start < end:
        at, data = read(directory, start, end - start, name)
        if not data or at != start:
            break
        parts.append(data)
        start += len(data)
    return b"".join(parts)
