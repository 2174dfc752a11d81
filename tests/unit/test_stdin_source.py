# SPDX-License-Identifier: Apache-2.0
"""The engine's stdin: pipes, terminals, files, /dev/null; back pressure, and the end said once."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from consoles.streams import terminal
from consoles.streams.fifo import FifoSource
from consoles.streams.input import Input
from consoles.streams.stdin import StdinSource
from tests.unit.consolekit import drain, pattern, pipe, read_until, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Guest:
    """A guest's input FIFO and its queue."""

    def __init__(self) -> None:
        self.reader, writer = pipe()
        self.far_end = FifoSource(-1, writer)
        self.queue = Input(self.far_end)
        self.ends = 0
        self.source: StdinSource | None = None

    def read_from(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.source = StdinSource(fd, self.queue, self.queue.feed, self.ended)

    def ended(self) -> None:
        self.ends += 1


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    made = Guest()
    yield made
    if made.source is not None:
        made.source.close()
        made.source.close()
    made.queue.close()
    made.far_end.shut()
    os.close(made.reader)


async def test_a_pipe_and_its_end(guest: Guest) -> None:
    reader, writer = pipe()
    guest.read_from(reader)
    os.write(writer, b"typed")
    assert await read_until(guest.reader, 5) == b"typed"
    assert guest.ends == 0
    os.write(writer, b"last")
    os.close(writer)
    await until(lambda: guest.ends)
    assert drain(guest.reader) == b"last"
    await asyncio.sleep(0.01)
    assert guest.ends == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


async def test_a_guest_that_does_not_read_stops_the_engine(guest: Guest) -> None:
    reader, writer = pipe()
    guest.read_from(reader)
    sent = 0
    data = pattern(0, 1_000_000)
    idle = 0
    while idle < 20:  # until neither pipe nor queue takes more
        try:
            sent += os.write(writer, data[sent : sent + 10_000])
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0)
    assert sent < 400_000
    assert await read_until(guest.reader, sent) == data[:sent]
    os.write(writer, b"more")
    assert await read_until(guest.reader, 4) == b"more"
    os.close(writer)
    await until(lambda: guest.ends == 1)


async def test_dev_null_is_at_its_end_at_once(guest: Guest) -> None:
    guest.read_from(os.open("/dev/null", os.O_RDONLY))
    await until(lambda: guest.ends == 1)
    assert drain(guest.reader) == b""


@pytest.mark.parametrize("size", [0, 1, 700_000])
async def test_a_regular_file(guest: Guest, tmp_path: Path, size: int) -> None:
    path = tmp_path / "in"
    path.write_bytes(pattern(0, size))
    guest.read_from(os.open(path, os.O_RDONLY))
    assert await read_until(guest.reader, size) == pattern(0, size)
    await until(lambda: guest.ends == 1)
    assert guest.queue.fed == size


async def test_a_terminal_and_its_hangup(guest: Guest) -> None:
    master, slave = terminal.open_pty(None)
    guest.read_from(slave)
    os.write(master, b"ls\r\x03\x04")
    assert await read_until(guest.reader, 5) == b"ls\r\x03\x04"
    os.close(master)
    await until(lambda: guest.ends == 1)


async def test_closing_while_the_source_waits_for_room(guest: Guest) -> None:
    reader, writer = pipe()
    guest.read_from(reader)
    while guest.queue.has_room:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, bytes(10_000))
        await asyncio.sleep(0)
    assert guest.source is not None
    guest.source.close()
    await read_until(guest.reader, 65536)
    await asyncio.sleep(0.01)
    assert guest.ends == 0
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)


async def test_a_file_is_not_read_on_after_close(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(bytes(100_000))
    guest.read_from(os.open(path, os.O_RDONLY))
    assert guest.source is not None
    guest.source.close()
    await asyncio.sleep(0.01)
    assert drain(guest.reader) == b""
    assert guest.ends == 0
