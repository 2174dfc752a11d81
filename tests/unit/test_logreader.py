# SPDX-License-Identifier: Apache-2.0
"""Reading a console log back: by offset, by time, by lines; over a rotation and while one happens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consoles.streams import logreader
from consoles.streams.journal import Journal
from consoles.streams.sinks.logfile import INDEX, LOG, PAIR, Place, open_log

if TYPE_CHECKING:
    from pathlib import Path


def segment(directory: Path, suffix: str, base: int, batches: list[tuple[bytes, int]]) -> None:
    """Write a log file as the sink would: each batch with its time."""
    directory.mkdir(exist_ok=True)
    (directory / (LOG + suffix)).write_bytes(b"".join(data for data, _ in batches))
    pairs, offset = [], base
    for data, when in batches:
        pairs.append(PAIR.pack(offset, when))
        offset += len(data)
    (directory / (INDEX + suffix)).write_bytes(b"".join(pairs))


@pytest.fixture
def rotated(tmp_path: Path) -> str:
    """Bytes 100 to 160 in two files of 30."""
    segment(tmp_path, ".1", 100, [(b"a" * 9 + b"\n", 10), (b"b" * 19 + b"\n", 20)])
    segment(tmp_path, "", 130, [(b"c" * 9 + b"\n", 30), (b"d" * 20, 40)])
    return str(tmp_path)


def test_no_log_yet(tmp_path: Path) -> None:
    for directory in (str(tmp_path), str(tmp_path / "missing")):
        assert logreader.segments(directory) == []
        assert logreader.bounds(directory) == (0, 0)
        assert logreader.read(directory, 7, 10) == (7, b"")
        assert logreader.since(directory, 0) == 0
        assert logreader.tail(directory, 5) == 0


def test_bounds_and_segments(rotated: str) -> None:
    assert logreader.bounds(rotated) == (100, 160)
    assert [(s.base, s.size) for s in logreader.segments(rotated)] == [(100, 30), (130, 30)]


def test_an_index_that_cannot_be_read_hides_its_file_only(rotated: str, tmp_path: Path) -> None:
    (tmp_path / (INDEX + ".1")).write_bytes(b"short")
    assert logreader.bounds(rotated) == (130, 160)


def test_files_that_another_program_renamed_are_left_out(rotated: str, tmp_path: Path) -> None:
    """logrotate moves logs and knows nothing of their indexes: offsets that overlap belong to other files."""
    (tmp_path / (LOG + ".1")).write_bytes(b"x" * 31)
    assert logreader.bounds(rotated) == (130, 160)
    assert logreader.read(rotated, 0, 5) == (130, b"ccccc")


def test_read(rotated: str) -> None:
    assert logreader.read(rotated, 105, 3) == (105, b"aaa")
    assert logreader.read(rotated, 125, 100) == (125, b"bbbb\n")  # up to the end of a file
    assert logreader.read(rotated, 130, 100) == (130, b"c" * 9 + b"\n" + b"d" * 20)
    assert logreader.read(rotated, 0, 5) == (100, b"aaaaa")  # what is gone is skipped
    assert logreader.read(rotated, 160, 5) == (160, b"")
    assert logreader.read(rotated, 9999, 5) == (9999, b"")


def test_since(rotated: str) -> None:
    assert [logreader.since(rotated, moment) for moment in (0, 10, 11, 20, 21, 31, 41)] == [
        100, 100, 110, 110, 130, 140, 160,
    ]  # fmt: skip


def test_tail_over_both_files(rotated: str) -> None:
    # the lines begin at 100, 110, 130 and 140; the last has no end yet
    assert [logreader.tail(rotated, n) for n in (-1, 0, 1, 2, 3, 4, 5)] == [160, 160, 140, 130, 110, 100, 100]


def test_tail_looks_back_further_than_one_step(tmp_path: Path) -> None:
    long = b"x" * (logreader.STEP * 2)
    segment(tmp_path, "", 0, [(b"first\n" + long + b"\nlast\n", 1)])
    assert logreader.tail(str(tmp_path), 1) == 6 + len(long) + 1
    assert logreader.tail(str(tmp_path), 2) == 6
    assert logreader.tail(str(tmp_path), 3) == 0


@given(
    text=st.lists(st.sampled_from([b"\n", b"ab", b"c"]), max_size=40).map(b"".join),
    cut=st.integers(0, 60),
    lines=st.integers(1, 8),
)
def test_tail_is_what_splitting_into_lines_says(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, cut: int, lines: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    cut = min(cut, len(text))
    segment(directory, ".1", 0, [(text[:cut], 1)])
    segment(directory, "", cut, [(text[cut:], 2)])
    expected = b"".join(text.splitlines(keepends=True)[-lines:])
    start = logreader.tail(str(directory), lines)
    assert text[start:] == expected


async def test_a_reader_beside_a_rotating_writer_sees_every_byte_once(tmp_path: Path) -> None:
    import asyncio

    journal = Journal.create("test")
    place = Place(str(tmp_path), LOG, 20_000)
    sink = open_log(journal, "raw", place, cursor=journal.cursor(), progress=lambda: None, on_error=lambda exc: None)
    writing = asyncio.ensure_future(sink.run())
    total, wrong = 3_000_000, []
    done = threading.Event()

    def follow() -> int:
        position = 0
        while not done.is_set() or position < total:
            ended = done.is_set()  # before reading: what is written meanwhile is still to be read
            at, data = logreader.read(str(tmp_path), position, 7000)
            for i, value in enumerate(data):
                if value != (at + i) // 1000 % 251:
                    wrong.append((at, i))
                    return position
            if ended and not data:
                return at
            position = at + len(data)
        return position

    following = asyncio.get_running_loop().run_in_executor(None, follow)
    for start in range(0, total, 10_000):
        journal.append(b"".join(bytes(((start + i) // 1000 % 251,)) * 1000 for i in range(0, 10_000, 1000)))
        sink.hurry()
        await asyncio.sleep(0)
        while sink.lag > 50_000:
            await asyncio.sleep(0.001)
    await sink.close()
    await writing
    done.set()
    assert await following == total
    assert wrong == []
    journal.close()
