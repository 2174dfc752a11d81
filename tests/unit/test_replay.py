# SPDX-License-Identifier: Apache-2.0
"""The past that is shown before a console goes live: no gap, no double, also where journal and log meet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consoles.streams.fifo import FifoSource
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from consoles.streams.sinks.logfile import LOG, Place, open_log
from consoles.streams.terminal import Size
from runphi_async import wire
from runphi_async.errors import UsageError
from runphi_async.terminals import replay
from runphi_async.wire.console import unpack_offset
from tests.unit.consolekit import pattern, pipe, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runphi_async.wire.call import Call


class Client:
    """Takes frames as the thin client does, and sees gaps and doubles."""

    def __init__(self) -> None:
        self.offset = -1
        self.start = -1
        self.shown = b""
        self.skipped = 0
        self.painted = b""

    async def send(self, kind: bytes, payload: bytes) -> None:
        if kind == wire.CONSOLE:
            assert self.offset >= 0
            self.shown += payload
            self.offset += len(payload)
        elif kind == wire.PAINT:
            self.painted += payload
        else:
            at = unpack_offset(payload)
            if kind == wire.SKIPPED:
                self.skipped += at - self.offset
            else:
                assert kind == wire.CONSOLE_AT
                self.start = at
            self.offset = at


class Console:
    """A hub whose log is written and whose journal is given back."""

    def __init__(self, directory: Path) -> None:
        reader, self.console = pipe()
        self.source = FifoSource(reader)
        self.hub = Hub(Journal.create("test"), self.source, window=1 << 20, replay=1000)
        journal = self.hub.journal
        self.directory = str(directory)
        self.log = open_log(
            journal,
            "raw",
            Place(self.directory, LOG),
            cursor=journal.cursor(),
            progress=self.hub.progress,
            on_error=lambda exc: None,
        )
        self.hub.add_sink(self.log)
        self.running = asyncio.ensure_future(self.log.run())
        self.hub.start()

    async def print(self, data: bytes) -> None:
        self.hub.say(data)
        await until(lambda: self.log.lag == 0)

    async def begin(self, client: Client, wanted: str, size: Size | None = None) -> int:
        start = await replay.begin(cast("Call", client), self.hub, self.directory, wanted, size)
        if client.offset >= 0:
            assert client.offset == start
        return start


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    made = Console(tmp_path)
    yield made
    await made.log.close()
    await made.running
    made.hub.close()
    made.source.shut()


@pytest.mark.parametrize("wanted", [None, "none", "all", "0", "17"])
def test_what_can_be_asked_for(wanted: str | None) -> None:
    replay.check(wanted)


@pytest.mark.parametrize("wanted", ["", "-1", "1x", "some", "٣", "1" * 10])
def test_what_cannot(wanted: str) -> None:
    with pytest.raises(UsageError, match="--replay wants none, screen, a number of lines or all"):
        replay.check(wanted)


@given(data=st.text("ab\n", max_size=40).map(str.encode), lines=st.integers(0, 12))
def test_lines_are_counted_as_tail_does(data: bytes, lines: int) -> None:
    journal = Journal.create("test")
    journal.append(data)
    start, missing = replay.lines_back(journal, lines)
    kept = data.splitlines(keepends=True)
    assert data[start:] == b"".join(kept[len(kept) - lines :] if lines < len(kept) else kept if lines else [])
    assert not missing
    journal.close()


async def test_none_and_lines_from_the_journal(console: Console) -> None:
    await console.print(b"one\ntwo\nthree\n$ ")
    client = Client()
    assert await console.begin(client, "none") == 16
    assert await console.begin(client, "2") == 8
    assert await console.begin(client, "all") == 0
    assert client.shown == b""  # the journal has it all


async def test_all_comes_from_the_log_as_far_as_the_journal_has_given_it_back(console: Console) -> None:
    total = 5 << 20
    for at in range(0, total, 1 << 18):
        await console.print(pattern(at, 1 << 18))
    journal = console.hub.journal
    assert journal.base > 1 << 20
    client = Client()
    start = await console.begin(client, "all")
    assert client.start == 0
    assert client.skipped == 0
    assert client.shown + journal.read(start, total) == pattern(0, total)


async def test_lines_that_the_journal_has_no_more(console: Console) -> None:
    lines = [b"line %07d\n" % n for n in range(400_000)]
    for at in range(0, len(lines), 20_000):
        await console.print(b"".join(lines[at : at + 20_000]))
    client = Client()
    wanted = 350_000
    start = await console.begin(client, str(wanted))
    assert console.hub.journal.base > 0
    shown = client.shown + console.hub.journal.read(start, 1 << 30)
    assert shown == b"".join(lines[-wanted:])


async def test_a_log_that_is_not_the_journals_is_not_believed(console: Console) -> None:
    """A disk that refused bytes leaves a log whose offsets are not ours: better less of the past than a wrong one."""
    for at in range(0, 3 << 20, 1 << 18):
        await console.print(pattern(at, 1 << 18))
    with open(f"{console.directory}/console.log", "r+b") as file:
        file.seek(console.hub.journal.base)
        file.write(b"something else")
    client = Client()
    assert await console.begin(client, "all") == console.hub.journal.base
    assert client.shown == b""


async def test_all_without_a_log(console: Console) -> None:
    for at in range(0, 3 << 20, 1 << 18):
        await console.print(pattern(at, 1 << 18))
    client = Client()
    nowhere = await replay.begin(cast("Call", client), console.hub, "", "all", None)
    assert nowhere == console.hub.journal.base


async def test_all_while_the_guest_goes_on(console: Console) -> None:
    for at in range(0, 4 << 20, 1 << 18):
        await console.print(pattern(at, 1 << 18))

    class Slow(Client):
        async def send(self, kind: bytes, payload: bytes) -> None:
            await super().send(kind, payload)
            tail = console.hub.journal.tail
            if tail < 9 << 20:
                await console.print(pattern(tail, 1 << 18))

    client = Slow()
    start = await console.begin(client, "all")
    journal = console.hub.journal
    assert start >= journal.base
    assert client.shown + journal.read(start, 1 << 30) == pattern(0, journal.tail)


async def test_the_screen(console: Console) -> None:
    await console.print(b"gone\x1b[2J\x1b[3;5Hhello\x1b[1")
    client = Client()
    start = await console.begin(client, "screen", Size(5, 20))
    assert b"\x1b[3;1H    hello" in client.painted
    assert console.hub.journal.read(start, 100) == b"\x1b[1"  # the rest of the sequence comes live


def show(painted: bytes, rows: int, cols: int) -> list[str]:
    import pyte

    screen: Any = pyte.Screen(cols, rows)
    pyte.ByteStream(screen).feed(painted)
    return list(screen.display)
