# SPDX-License-Identifier: Apache-2.0
"""The sink that keeps a console as it was: real files, rotation, crashes and a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from consoles.streams import logreader
from consoles.streams.sinks import logfile
from consoles.streams.sinks.logfile import INDEX, LOG, PAIR, Place, open_log
from tests.unit.consolekit import Progress, journals, pattern, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from consoles.streams.journal import Journal

journal = pytest.fixture(journals)


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
