# SPDX-License-Identifier: Apache-2.0
"""A source as a console: window, marks, input, and a whole console of its own."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from consoles.errors import SourceError
from consoles.sources.base import Breaks
from consoles.sources.pty import PtySource
from consoles.sources.serial import SerialSource
from consoles.sources.settings import SerialSettings
from consoles.streams.feed import Feed
from consoles.streams.input import ROOM, Input
from consoles.streams.journal import Journal
from consoles.streams.sinks.logfile import LOG, Place, open_log
from consoles.streams.sinks.stdio import StdioSink
from tests.unit.consolekit import drain, pattern, pipe, read_until, until
from tests.unit.sourcekit import Puppet, Terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WINDOW = 10_000


class Made:
    """A feed from a puppet, with one lossless reader."""

    def __init__(self) -> None:
        self.source = Puppet()
        self.changes: list[str | None] = []
        self.journal = Journal.create("test")
        self.feed = Feed(self.journal, self.source, window=WINDOW, replay=1000, changed=self.changes.append)
        self.reader, writer = pipe()
        self.sink = StdioSink(self.journal, self.journal.cursor(), writer, self.feed.hub.progress)
        self.feed.hub.add_sink(self.sink)

    async def open(self) -> None:
        self.feed.hub.start()
        await self.feed.open()

    async def close(self) -> None:
        await self.feed.close()
        self.sink.close()
        self.feed.hub.close()
        os.close(self.reader)


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    made = Made()
    yield made
    await made.close()


# Section: what it brings


async def test_nothing_comes_before_the_hub_has_started(made: Made) -> None:
    assert made.source.is_paused()
    await made.open()
    assert not made.source.is_paused()
    made.source.listener.received(b"hello")
    assert drain(made.reader) == b"hello"


async def test_a_slow_reader_holds_the_source_back_and_lets_it_go(made: Made) -> None:
    await made.open()
    sent = 0
    async with asyncio.timeout(20):
        while not made.source.is_paused():
            made.source.listener.received(pattern(sent, 3000))
            sent += 3000
            await asyncio.sleep(0)
    assert made.feed.hub.statistics().stalls == 1
    made.source.listener.received(pattern(sent, 500))  # was on its way: taken all the same
    sent += 500
    assert await read_until(made.reader, sent) == pattern(0, sent)
    await until(lambda: not made.source.is_paused())
    assert made.journal.tail == sent


async def test_marks_say_that_the_far_end_is_gone_and_back(made: Made) -> None:
    await made.open()
    made.source.listener.received(b"half a line")
    made.source.listener.gone("unplugged \x1b[31m")
    made.source.listener.back()
    made.source.listener.received(b"on")
    expected = b"half a line\r\n[runphi: the console is gone: unplugged ?[31m]\r\n[runphi: the console is back]\r\non"
    assert await read_until(made.reader, len(expected)) == expected
    assert made.changes == ["unplugged \x1b[31m", None]


async def test_a_source_that_cannot_be_opened_says_so(made: Made) -> None:
    made.source.refusals = [SourceError("cannot open it")]
    with pytest.raises(SourceError, match="cannot open it"):
        await made.open()
    assert made.feed.tried.is_set()


async def test_a_guest_that_exists_waits_for_its_console(made: Made) -> None:
    made.source.refusals = [SourceError("not yet"), SourceError("still not")]
    made.feed.hub.start()
    await asyncio.wait_for(made.feed.run(), 20)
    assert made.changes == ["not yet", None]
    assert drain(made.reader) == b"[runphi: the console is gone: not yet]\r\n[runphi: the console is back]\r\n"


async def test_closing_takes_the_last_bytes_and_closes_once(made: Made) -> None:
    await made.open()
    made.source.rest = b"last words"
    await made.feed.close()
    await made.feed.close()
    assert made.source.closed == 1
    assert await made.feed.hub.drain(5)
    assert drain(made.reader) == b"last words"
    made.source.listener.gone("closed")  # nobody minds
    assert made.changes == []


async def test_a_source_opened_while_it_is_closed_is_closed_again(made: Made) -> None:
    await made.feed.close()
    await made.feed.open()
    assert made.source.closed == 2


# Section: what is typed


async def test_typing_waits_for_a_far_end_that_is_full() -> None:
    source = Puppet()
    queue = Input(source)
    source.room = 3
    queue.feed(b"hello")
    queue.feed(b" world")
    assert source.written == b"hel"
    source.make_room(4)
    assert source.written == b"hello w"
    source.make_room(1 << 20)
    assert source.written == b"hello world"
    assert queue.fed == 11


async def test_feeders_wait_for_room() -> None:
    source = Puppet()
    queue = Input(source)
    source.room = 0
    queue.feed(bytes(ROOM))
    assert not queue.has_room
    woken: list[int] = []
    queue.when_room(lambda: woken.append(1))
    source.make_room(10)
    assert woken == [1]
    assert queue.has_room


async def test_what_is_typed_while_the_far_end_is_gone_never_arrives() -> None:
    source = Puppet()
    queue = Input(source)
    source.room = 0
    queue.feed(bytes(ROOM))
    woken: list[int] = []
    queue.when_room(lambda: woken.append(1))
    queue.gone()
    queue.feed(b"reboot\n")
    assert woken == [1]
    queue.back()
    source.room = 1 << 20
    queue.feed(b"ls\n")
    assert source.written == b"ls\n"
    assert queue.dropped == ROOM + 7


async def test_nothing_is_typed_after_the_end() -> None:
    source = Puppet()
    queue = Input(source)
    queue.close()
    queue.feed(b"x")
    assert source.written == b""
    assert queue.fed == 0


# Section: a real far end


async def test_a_pty_with_a_log(tmp_path: Path) -> None:
    terminal = Terminal()
    feed = Feed(Journal.create("board"), PtySource(terminal.path), window=1 << 20, replay=1000)
    journal = feed.hub.journal
    log = open_log(
        journal,
        "raw",
        Place(str(tmp_path), LOG),
        cursor=journal.cursor(),
        progress=feed.hub.progress,
        on_error=lambda exc: None,
    )
    feed.hub.add_sink(log)
    writing = asyncio.ensure_future(log.run())
    feed.hub.start()
    await feed.open()
    sent = 0
    while sent < 300_000:
        try:
            sent += os.write(terminal.master, pattern(sent, 4000))
        except BlockingIOError:
            await asyncio.sleep(0)
    feed.input.feed(b"typed")
    assert await terminal.reads(5) == b"typed"
    await feed.close()
    await log.close()
    await writing
    assert (tmp_path / LOG).read_bytes() == pattern(0, sent)
    feed.hub.close()
    terminal.hang_up()


async def test_a_break_needs_a_line_that_has_one(made: Made) -> None:
    with pytest.raises(SourceError, match="no serial line"):
        await made.feed.send_break()
    assert isinstance(SerialSource(SerialSettings("/dev/ttyS0")), Breaks)
