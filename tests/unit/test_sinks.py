# SPDX-License-Identifier: Apache-2.0
"""The three sinks on real pipes, terminals, files and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from consoles import logreader, terminal
from consoles.sinks import logfile
from consoles.sinks.attach import AttachSink
from consoles.sinks.logfile import INDEX, LOG, PAIR, Place, open_log
from consoles.sinks.stdio import StdioSink
from tests.unit.consolekit import drain, journals, pattern, pipe, read_until, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from consoles.journal import Journal

journal = pytest.fixture(journals)


class Progress:
    """Counts how often a sink said that it got rid of bytes."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


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


class Client:
    """The other end of an attach socket: takes frames apart."""

    def __init__(self, journal: Journal, start: int = 0, limit: int = 1 << 18, buffer: int | None = None) -> None:
        self.ours, self.theirs = socket.socketpair()
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.gone = Progress()
        self.sink = AttachSink(journal, self.ours, start, limit, self.gone)
        self.data = b""

    def frames(self) -> list[tuple[bytes, bytes]]:
        with contextlib.suppress(BlockingIOError):
            while data := self.theirs.recv(1 << 20):
                self.data += data
        found = []
        while len(self.data) >= 5:
            end = 5 + int.from_bytes(self.data[1:5], "big")
            if len(self.data) < end:
                break
            found.append((self.data[:1], self.data[5:end]))
            self.data = self.data[end:]
        return found

    def close(self) -> None:
        self.sink.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
async def client(journal: Journal) -> AsyncIterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(**how: int) -> Client:
        made.append(Client(journal, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def at(offset: int) -> bytes:
    return struct.pack(">Q", offset)


async def test_a_client_learns_its_offset_first(journal: Journal, client: Callable[..., Client]) -> None:
    journal.append(b"0123456789")
    one = client(start=4)
    one.sink.pump()
    assert one.frames() == [(b"A", at(4)), (b"O", b"456789")]
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
        return one.sink.statistics().lag == 0 and not one.data and not one.sink._pending

    await until(finished)
    frames.extend(one.frames())
    for kind, payload in frames:
        if kind == b"O":
            shown[offset] = payload
            offset += len(payload)
        else:
            onward = struct.unpack(">Q", payload)[0]
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
    assert frames[:2] == [(b"A", at(0)), (b"K", at(2 << 20))]
    assert b"".join(payload for kind, payload in frames if kind == b"O") == pattern(2 << 20, 1 << 20)


async def test_other_frames_go_behind_what_is_on_its_way(journal: Journal, client: Callable[..., Client]) -> None:
    one = client(buffer=4096)
    journal.append(pattern(0, 60_000))
    one.sink.pump()
    one.sink.push(b"N\0\0\0\2hi")
    frames: list[tuple[bytes, bytes]] = []
    await until(lambda: more(frames, one) and ((b"N", b"hi") in frames))
    assert b"".join(p for k, p in frames if k == b"O") == pattern(0, 60_000)


async def test_a_client_that_left_is_reported_once(journal: Journal, client: Callable[..., Client]) -> None:
    one = client()
    one.theirs.close()
    journal.append(b"x")
    one.sink.pump()
    one.sink.pump()
    one.sink.push(b"N\0\0\0\0")
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


# Section: log


class Log:
    """A LogSink with its task."""

    def __init__(self, journal: Journal, directory: Path, max_bytes: int = 1 << 30, cursor: int | None = None) -> None:
        self.journal = journal
        self.directory = directory
        self.progress = Progress()
        self.errors: list[OSError] = []
        own = journal.cursor() if cursor is None else cursor
        self.cursor = os.dup(own)
        self.sink = open_log(
            journal,
            "raw",
            Place(str(directory), LOG, max_bytes),
            cursor=own,
            progress=self.progress,
            on_error=self.errors.append,
        )
        self.task = asyncio.ensure_future(self.sink.run())

    async def write(self, data: bytes) -> None:
        self.journal.append(data)
        self.sink.hurry()
        await until(lambda: self.sink.lag == 0)

    @property
    def content(self) -> bytes:
        return (self.directory / LOG).read_bytes()

    def pairs(self, suffix: str = "") -> list[tuple[int, int]]:
        return [(a, b) for a, b in PAIR.iter_unpack((self.directory / (INDEX + suffix)).read_bytes())]

    async def close(self) -> None:
        await self.sink.close()
        await self.task
        os.close(self.cursor)


@pytest.fixture
async def log(journal: Journal, tmp_path: Path) -> AsyncIterator[Callable[..., Log]]:
    made: list[Log] = []

    def make(max_bytes: int = 1 << 30, cursor: int | None = None) -> Log:
        made.append(Log(journal, tmp_path / "log" / "deep", max_bytes, cursor))
        return made[-1]

    yield make
    for one in made:
        if not one.task.done():
            await one.close()


async def test_the_log_is_what_was_printed(log: Callable[..., Log]) -> None:
    one = log()
    await one.write(pattern(0, 100_000))
    await one.write(pattern(100_000, 50_000))
    assert one.content == pattern(0, 150_000)
    assert one.pairs()[0][0] == 0
    assert 100_000 in [offset for offset, _ in one.pairs()]
    times = [when for _, when in one.pairs()]
    assert times == sorted(times)
    assert os.lseek(one.cursor, 0, os.SEEK_CUR) == 150_000
    assert one.progress.calls >= 2
    mode = (one.directory / LOG).stat().st_mode
    assert mode & 0o777 == 0o640


async def test_output_is_gathered_before_it_is_written(
    journal: Journal, log: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "GATHER", 30.0)
    one = log()
    for _ in range(50):
        journal.append(b"line\n")
        one.sink.pump()
        await asyncio.sleep(0)
    assert one.sink.lag == 250
    one.sink.hurry()
    await until(lambda: one.sink.lag == 0)
    assert len(one.pairs()) == 2  # where the log begins, and one batch
    assert one.content == b"line\n" * 50


async def test_a_big_batch_does_not_wait(
    journal: Journal, log: Callable[..., Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logfile, "GATHER", 60.0)
    one = log()
    journal.append(bytes(logfile.STEP))
    one.sink.pump()
    await until(lambda: one.sink.lag == 0)


async def test_close_writes_what_is_left(journal: Journal, log: Callable[..., Log]) -> None:
    one = log()
    await asyncio.sleep(0)
    journal.append(b"last words")
    one.sink.pump()
    await one.close()
    assert (one.directory / LOG).read_bytes() == b"last words"
    assert one.task.done()


async def test_close_without_run_does_not_wait(journal: Journal, tmp_path: Path) -> None:
    """A creation that failed before the guest's tasks began."""
    place = Place(str(tmp_path), LOG, 1 << 20)
    sink = open_log(journal, "raw", place, cursor=journal.cursor(), progress=Progress(), on_error=lambda exc: None)
    journal.append(b"x")
    await asyncio.wait_for(sink.close(), 5)
    await asyncio.wait_for(sink.run(), 5)  # begun too late: nothing to do, and no descriptor is closed twice


async def test_the_next_supervisor_goes_on_in_the_same_file(log: Callable[..., Log]) -> None:
    one = log()
    await one.write(pattern(0, 5000))
    cursor = os.dup(one.cursor)
    await one.close()
    two = log(cursor=cursor)
    await two.write(pattern(5000, 5000))
    assert two.content == pattern(0, 10_000)


async def test_rotation_keeps_offsets(log: Callable[..., Log]) -> None:
    one = log(max_bytes=10_000)
    for number in range(7):
        await one.write(pattern(number * 4000, 4000))
    first, end = logreader.bounds(str(one.directory))
    assert end == 28_000
    assert first == 12_000
    assert (one.directory / (LOG + ".1")).stat().st_size == 12_000
    kept = b""
    while len(kept) < end - first:
        at_, data = logreader.read(str(one.directory), first + len(kept), 1 << 20)
        assert at_ == first + len(kept)
        kept += data
    assert kept == pattern(first, end - first)
    assert one.pairs(".1")[0][0] == first
    assert one.pairs()[0][0] == 24_000


async def test_a_follower_by_inode_loses_nothing_by_rotation(log: Callable[..., Log]) -> None:
    one = log(max_bytes=1000)
    await one.write(b"a" * 1500)
    with (one.directory / LOG).open("rb") as follower:
        assert follower.read() == b"a" * 1500
        await one.write(b"b" * 10)
        assert follower.read() == b""
        assert (one.directory / LOG).read_bytes() == b"b" * 10
        assert os.fstat(follower.fileno()).st_nlink == 1


async def test_a_crash_between_the_two_renames_is_mended(log: Callable[..., Log]) -> None:
    one = log(max_bytes=1000)
    await one.write(b"a" * 1500)
    await one.write(b"b" * 1500)
    # the oldest goes first, then the index moves, then its log
    (one.directory / (LOG + ".1")).unlink()
    os.replace(one.directory / INDEX, one.directory / (INDEX + ".1"))
    cursor = os.dup(one.cursor)
    await one.close()
    two = log(max_bytes=1000, cursor=cursor)
    await two.write(b"c" * 10)
    assert logreader.bounds(str(two.directory)) == (1500, 3010)
    assert logreader.read(str(two.directory), 3000, 100) == (3000, b"c" * 10)


@pytest.mark.parametrize("what", ["log", "both", "directory"])
async def test_a_log_removed_by_hand_is_begun_anew(log: Callable[..., Log], what: str) -> None:
    one = log()
    await one.write(b"old " * 100)
    if what == "directory":
        shutil.rmtree(one.directory)
    else:
        (one.directory / LOG).unlink()
        if what == "both":
            (one.directory / INDEX).unlink()
    await one.write(b"new")
    assert one.content == b"new"
    assert one.sink.lost == 0
    first, end = logreader.bounds(str(one.directory))
    assert end - first == 3
    assert logreader.read(str(one.directory), first, 10) == (first, b"new")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB, where one may be mounted."""
    import subprocess

    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


async def test_a_full_disk_loses_counts_says_so_once_and_resumes(journal: Journal, small_disk: Path) -> None:
    one = Log(journal, small_disk / "log")
    await one.write(pattern(0, 50_000))
    hog = small_disk / "hog"
    with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    for _ in range(3):
        await one.write(bytes(60_000))
    assert len(one.errors) == 1
    assert one.errors[0].errno == errno.ENOSPC
    lost = one.sink.lost
    assert 0 < lost <= 180_000
    hog.unlink()
    await one.write(b"back again")
    assert one.sink.lost == lost
    assert one.content.endswith(b"back again")
    assert len(one.content) + lost == journal.tail
    # the reader's offsets count what is there
    first, end = logreader.bounds(str(one.directory))
    assert (first, end) == (0, len(one.content))
    assert logreader.read(str(one.directory), end - 10, 100) == (end - 10, b"back again")
    hog.write_bytes(bytes(20_000))
    with contextlib.suppress(OSError), hog.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    await one.write(bytes(60_000))
    assert len(one.errors) == 2  # a new stretch of failures is said anew
    await one.close()


async def test_a_directory_that_cannot_be_made(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    one = Log(journal, tmp_path / "file" / "log")
    await one.write(b"x" * 1000)
    await one.write(b"y" * 1000)
    assert (one.sink.lost, one.sink.lag, len(one.errors)) == (2000, 0, 1)
    (tmp_path / "file").unlink()
    await one.write(b"z")
    assert one.content == b"z"
    await one.close()


async def test_a_torn_index_entry_is_cut_off(log: Callable[..., Log]) -> None:
    one = log()
    await one.write(b"one\n")
    cursor = os.dup(one.cursor)
    await one.close()
    with (one.directory / INDEX).open("ab") as file:
        file.write(b"torn")
    two = log(cursor=cursor)
    await two.write(b"two\n")
    assert [offset for offset, _ in two.pairs()] == [0, 0, 4]
