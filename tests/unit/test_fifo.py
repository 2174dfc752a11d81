# SPDX-License-Identifier: Apache-2.0
"""FIFOs that never block or end, and the line channels recorded behind them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from consoles.streams.fifo import CHANNEL_MAX, LINE_MAX, LineChannel, open_fifo
from consoles.streams.journal import PIPE_SIZE
from tests.unit.consolekit import fifo, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def test_a_fifo_opens_without_a_peer_and_never_ends(tmp_path: Path) -> None:
    directory = fifo(tmp_path)
    fd = open_fifo("fifo", directory)
    assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    assert not os.get_inheritable(fd)
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    os.write(writer, b"x")
    os.close(writer)
    assert os.read(fd, 10) == b"x"
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)
    os.close(fd)
    os.close(directory)


class Channel:
    def __init__(self, directory: Path) -> None:
        self.dir_fd = fifo(directory)
        self.record = directory / "record"
        self.writer = open_fifo("fifo", self.dir_fd)
        self.lines: list[bytes] = []
        self.channel = self.open()

    def open(self) -> LineChannel:
        record = os.open(self.record, os.O_RDWR | os.O_CREAT)
        return LineChannel(open_fifo("fifo", self.dir_fd), record, self.lines.append)

    def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self.writer, data) :]
            except BlockingIOError:
                self.channel.poll()


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[Channel]:
    made = Channel(tmp_path)
    yield made
    made.channel.close()
    made.channel.close()
    os.close(made.writer)
    os.close(made.dir_fd)


async def test_lines_come_whole_and_in_order(channel: Channel) -> None:
    channel.write(b"one\ntw")
    await until(lambda: channel.lines == [b"one"])
    channel.write(b"o\nthree\n")
    await until(lambda: channel.lines == [b"one", b"two", b"three"])
    assert channel.record.read_bytes() == b"one\ntwo\nthree\n"


async def test_poll_needs_no_loop(channel: Channel) -> None:
    channel.write(b"last words\n")
    channel.channel.poll()
    assert channel.lines == [b"last words"]


async def test_a_restart_hands_every_line_out_again(channel: Channel) -> None:
    channel.write(b"one\nhalf")
    await until(lambda: channel.lines)
    channel.channel.close()
    os.write(channel.writer, b" and half\n")
    channel.lines.clear()
    channel.channel = channel.open()
    channel.channel.poll()
    assert channel.lines == [b"one", b"half and half"]


async def test_a_line_too_long_is_dropped_whole(channel: Channel) -> None:
    channel.write(b"x" * (LINE_MAX * 2 + 17) + b"\nnext\n")
    await until(lambda: channel.lines)
    assert channel.lines == [b"next"]


async def test_a_flood_is_read_and_dropped(channel: Channel) -> None:
    line = b"y" * 99 + b"\n"
    for _ in range(2 * CHANNEL_MAX // 50_000):
        channel.write(line * 500)
        await asyncio.sleep(0)
    channel.channel.poll()
    assert channel.record.stat().st_size <= CHANNEL_MAX + LINE_MAX
    assert set(channel.lines) == {line[:-1]}


async def test_a_writer_that_never_stops_does_not_keep_the_loop(channel: Channel) -> None:
    """Whatever comes faster than it is read, one turn ends."""
    real, calls = os.read, 0

    def busy(fd: int, limit: int) -> bytes:
        nonlocal calls
        calls += 1
        return b"z" * limit

    while channel.channel.tail < CHANNEL_MAX:  # beyond it everything is only read
        channel.write(b"q" * 1000 + b"\n")
        channel.channel.poll()
    os.read = busy
    try:
        channel.channel.poll()
    finally:
        os.read = real
    assert 0 < calls < 100


async def test_nothing_is_delivered_after_close(channel: Channel) -> None:
    channel.channel.close()
    os.write(channel.writer, b"late\n")
    channel.channel.poll()
    await asyncio.sleep(0.01)
    assert channel.lines == []
