# SPDX-License-Identifier: Apache-2.0
"""What the console tests share: journals, pipes, FIFOs and waits that end as soon as something happens."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING, Final

from consoles.streams.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: Seconds after which a test says that something never happened.
PATIENCE: Final = 20.0


_PERIOD: Final = (1 << 21) - 9
_STREAM: Final = random.Random(1).randbytes(_PERIOD) * 3


def pattern(start: int, length: int) -> bytes:
    """Return the bytes ``start`` … of one endless stream in which no stretch looks like its neighbours."""
    parts = []
    while length > 0:
        at = start % _PERIOD
        parts.append(_STREAM[at : at + min(length, 2 * _PERIOD)])
        start += len(parts[-1])
        length -= len(parts[-1])
    return b"".join(parts)


def drain(fd: int) -> bytes:
    """Read what a non-blocking descriptor holds now."""
    parts = []
    while True:
        try:
            data = os.read(fd, 1 << 20)
        except BlockingIOError:
            break
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


async def until(condition: Callable[[], object], what: str = "condition") -> None:
    """Let the loop run until a condition holds, and ask for it no more than that."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


async def read_until(fd: int, length: int) -> bytes:
    """Read exactly ``length`` bytes of a non-blocking descriptor while the loop runs."""
    parts: list[bytes] = []
    got = 0
    async with asyncio.timeout(PATIENCE):
        while got < length:
            try:
                data = os.read(fd, length - got)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not data:
                break
            parts.append(data)
            got += len(data)
    return b"".join(parts)


def pipe() -> tuple[int, int]:
    """Make a pipe with both ends non-blocking."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    return reader, writer


def fifo(directory: Path, name: str = "fifo") -> int:
    """Make a FIFO; return the directory's descriptor for ``open_fifo``."""
    os.mkfifo(directory / name)
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def journals() -> Iterator[Journal]:
    """Body of a fixture: an empty journal, closed at the end."""
    journal = Journal.create("test")
    yield journal
    journal.close()


class Progress:
    """Counts how often a sink said that it got rid of bytes."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
