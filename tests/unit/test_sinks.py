# SPDX-License-Identifier: Apache-2.0
"""The sinks of engines and people, on real pipes, terminals, files and sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from consoles.streams import terminal
from consoles.streams.sinks.attach import AttachSink
from consoles.streams.sinks.stdio import StdioSink
from runphi_async.wire.console import pack_offset, unpack_offset
from runphi_async.wire.outgoing import Outgoing, Outlet
from tests.unit.consolekit import Progress, drain, journals, pattern, pipe, read_until, until
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from consoles.streams.journal import Journal

journal = pytest.fixture(journals)


# Section: stdio


class Stdio:
    def __init__(self, journal: Journal, out: int) -> None:
        self.progress = Progress()
        self.cursor = journal.cursor()
        self.sink = StdioSink(journal, os.dup(self.cursor), out, self.progress)


@pytest.fixture
async def stdio(journal: Journal) -> AsyncIterator[Callable[[int], Stdio]]:
    made: list[Stdio] = []

    def make(out: int) -> Stdio:
        made.append(Stdio(journal, out))
        return made[-1]

    yield make
    for one in made:
        one.sink.close()
        os.close(one.cursor)


async def test_stdio_copies_and_moves_the_shared_cursor(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    reader, writer = pipe()
    made = stdio(writer)
    journal.append(b"hello")
    assert made.sink.lag == 5
    made.sink.pump()
    assert os.read(reader, 100) == b"hello"
    assert (made.sink.offset, made.sink.lag) == (5, 0)
    assert os.lseek(made.cursor, 0, os.SEEK_CUR) == 5
    assert made.progress.calls == 1
    made.sink.pump()
    assert made.progress.calls == 1
    os.close(reader)


async def test_stdio_waits_for_a_slow_reader_and_goes_on(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    reader, writer = pipe()
    made = stdio(writer)
    data = pattern(0, 500_000)
    journal.append(data)
    made.sink.pump()
    held = made.sink.lag
    assert held > 0
    made.sink.pump()  # asked again while it waits: nothing happens
    assert made.sink.lag == held
    assert await read_until(reader, len(data)) == data
    await until(lambda: made.sink.lag == 0)
    assert made.progress.calls >= 2
    os.close(reader)


async def test_stdio_goes_on_where_the_cursor_stands(journal: Journal) -> None:
    journal.append(b"0123456789")
    cursor = journal.cursor()
    os.lseek(cursor, 6, os.SEEK_SET)
    reader, writer = pipe()
    sink = StdioSink(journal, cursor, writer, Progress())
    sink.pump()
    assert drain(reader) == b"6789"
    sink.close()
    os.close(reader)


async def test_stdio_never_sends_what_was_given_back(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    """A new supervisor meets the cursor of a reader that had left: holes read as zeros."""
    journal.append(pattern(0, 3 << 20))
    journal.release(2 << 20)
    reader, writer = pipe()
    made = stdio(writer)
    made.sink.pump()
    assert await read_until(reader, 1 << 20) == pattern(2 << 20, 1 << 20)
    os.close(reader)


async def test_a_reader_that_left_does_not_stall_the_guest(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    reader, writer = pipe()
    made = stdio(writer)
    os.close(reader)
    journal.append(b"nobody reads this")
    made.sink.pump()
    assert made.sink.broken == errno.EPIPE
    assert made.sink.lag == 0
    assert made.progress.calls == 1
    made.sink.pump()
    assert made.progress.calls == 1


async def test_a_reader_that_leaves_while_waited_for(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    reader, writer = pipe()
    made = stdio(writer)
    journal.append(pattern(0, 500_000))
    made.sink.pump()
    assert made.sink.lag > 0
    os.close(reader)
    await until(lambda: made.sink.broken == errno.EPIPE)
    assert made.sink.lag == 0


async def test_stdio_on_a_terminal(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    master, slave = terminal.open_pty(None)
    os.set_blocking(slave, False)
    os.set_blocking(master, False)
    made = stdio(slave)
    data = pattern(0, 100_000)
    journal.append(data)
    made.sink.pump()
    assert await read_until(master, len(data)) == data
    await until(lambda: made.sink.lag == 0)
    os.close(master)
    journal.append(b"more")
    made.sink.pump()
    assert made.sink.broken == errno.EIO


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["plain", "append"])
async def test_stdio_into_a_file(journal: Journal, stdio: Callable[[int], Stdio], tmp_path: Path, flags: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    out = os.open(path, os.O_WRONLY | flags)
    os.lseek(out, 0, os.SEEK_END)
    made = stdio(out)
    data = pattern(0, 1_500_000)
    journal.append(data)
    made.sink.pump()
    assert path.read_bytes() == b"before\n" + data
    assert os.lseek(made.cursor, 0, os.SEEK_CUR) == len(data)


async def test_stdio_into_nothing_and_into_a_full_disk(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    null = stdio(os.open("/dev/null", os.O_WRONLY))
    full = stdio(os.open("/dev/full", os.O_WRONLY | os.O_APPEND))
    journal.append(bytes(1_000_000))
    null.sink.pump()
    full.sink.pump()
    assert (null.sink.lag, null.sink.broken) == (0, None)
    assert (full.sink.lag, full.sink.broken) == (0, errno.ENOSPC)


async def test_stdio_into_a_socket(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        made = stdio(ours.detach())
        data = pattern(0, 1_000_000)
        journal.append(data)
        made.sink.pump()
        assert await read_until(theirs.fileno(), len(data)) == data
        await until(lambda: made.sink.lag == 0)


async def test_closing_stdio_twice_and_while_it_waits(journal: Journal, stdio: Callable[[int], Stdio]) -> None:
    reader, writer = pipe()
    made = stdio(writer)
    journal.append(bytes(500_000))
    made.sink.pump()
    assert made.sink.fileno() == writer
    made.sink.close()
    made.sink.close()
    assert made.sink.fileno() == -1
    assert made.sink.lag == 0
    made.sink.pump()
    drain(reader)
    assert os.read(reader, 1) == b""  # nobody holds the writing end
    os.close(reader)


# Section: attach


class Client(Peer):
    """Somebody who watches."""

    def __init__(self, journal: Journal, start: int = 0, limit: int = 1 << 18, buffer: int | None = None) -> None:
        super().__init__(buffer)
        self.gone = Progress()
        self.outgoing = Outgoing(self.ours, self.gone)
        self.sink = AttachSink(journal, Outlet(self.outgoing), start, limit)

    def close(self) -> None:
        self.sink.close()
        self.outgoing.close()
        super().close()


@pytest.fixture
async def client(journal: Journal) -> AsyncIterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(**how: int) -> Client:
        made.append(Client(journal, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def test_a_client_learns_its_offset_first(journal: Journal, client: Callable[..., Client]) -> None:
    journal.append(b"0123456789")
    one = client(start=4)
    one.sink.pump()
    assert one.frames() == [(b"A", pack_offset(4)), (b"O", b"456789")]
    journal.append(b"!")
    one.sink.pump()
    assert one.frames() == [(b"O", b"!")]
    statistics = one.sink.statistics()
    assert (statistics.skipped, statistics.lag) == (0, 0)
    assert statistics.sent == 13 + 11 + 6


async def test_a_slow_client_is_moved_forward_and_told(journal: Journal, client: Callable[..., Client]) -> None:
    one = client(limit=100_000, buffer=4096)
    shown, offset, skipped = {}, 0, 0
    for _ in range(40):
        journal.append(pattern(journal.tail, 20_000))
        one.sink.pump()
    await asyncio.sleep(0)
    frames: list[tuple[bytes, bytes]] = []

    def finished() -> bool:
        frames.extend(one.frames())
        return one.sink.statistics().lag == 0 and not one.half and not one.outgoing.full

    await until(finished)
    frames.extend(one.frames())
    for kind, payload in frames:
        if kind == b"O":
            shown[offset] = payload
            offset += len(payload)
        else:
            onward = unpack_offset(payload)
            assert kind == (b"A" if not shown else b"K") or offset == 0
            skipped += onward - offset
            offset = onward
    assert offset == journal.tail
    assert skipped == one.sink.skipped > 0
    assert all(data == pattern(start, len(data)) for start, data in shown.items())


def more(frames: list[tuple[bytes, bytes]], client: Client) -> bool:
    """Take what came by now; always true, so that a condition can follow."""
    frames += client.frames()
    return True


async def test_a_client_behind_what_is_kept_is_moved_forward(journal: Journal, client: Callable[..., Client]) -> None:
    journal.append(pattern(0, 3 << 20))
    one = client(limit=8 << 20)
    journal.release(2 << 20)
    one.sink.pump()
    frames: list[tuple[bytes, bytes]] = []
    await until(lambda: more(frames, one) and (one.sink.statistics().lag == 0))
    await until(lambda: more(frames, one) and (sum(len(p) for k, p in frames if k == b"O") == 1 << 20))
    assert frames[:2] == [(b"A", pack_offset(0)), (b"K", pack_offset(2 << 20))]
    assert b"".join(payload for kind, payload in frames if kind == b"O") == pattern(2 << 20, 1 << 20)


async def test_other_frames_go_behind_what_is_on_its_way(journal: Journal, client: Callable[..., Client]) -> None:
    one = client(buffer=4096)
    journal.append(pattern(0, 60_000))
    one.sink.pump()
    one.sink.notice(b"hi")
    frames: list[tuple[bytes, bytes]] = []
    await until(lambda: more(frames, one) and ((b"N", b"hi") in frames))
    assert b"".join(p for k, p in frames if k == b"O") == pattern(0, 60_000)


async def test_a_client_that_left_is_reported_once(journal: Journal, client: Callable[..., Client]) -> None:
    one = client()
    one.theirs.close()
    journal.append(b"x")
    one.sink.pump()
    one.sink.pump()
    one.sink.notice(b"")
    assert one.gone.calls == 1
    await asyncio.wait_for(one.sink.drained(), 1)


async def test_a_client_that_leaves_while_it_is_waited_for(journal: Journal, client: Callable[..., Client]) -> None:
    one = client(buffer=4096)
    journal.append(bytes(200_000))
    one.sink.pump()
    one.theirs.close()
    await until(lambda: one.gone.calls == 1)


async def test_drained_waits_for_the_last_byte(journal: Journal, client: Callable[..., Client]) -> None:
    one = client(buffer=4096)
    journal.append(pattern(0, 100_000))
    waiting = asyncio.ensure_future(one.sink.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    frames: list[tuple[bytes, bytes]] = []
    await until(lambda: more(frames, one) and (waiting.done()))
    await waiting
    frames += one.frames()
    assert b"".join(p for k, p in frames if k == b"O") == pattern(0, 100_000)
