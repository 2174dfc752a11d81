# SPDX-License-Identifier: Apache-2.0
"""The journal: every cursor reads exactly what was written, whatever was given back behind it."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from consoles.streams import journal as journal_module
from consoles.streams.journal import Journal, grow_pipe
from tests.unit.consolekit import drain, journals, pattern, pipe

if TYPE_CHECKING:
    from collections.abc import Iterator

journal = pytest.fixture(journals)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reader, writer = pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def test_take_moves_bytes_and_leaves_none_behind(journal: Journal, ends: tuple[int, int]) -> None:
    reader, writer = ends
    os.write(writer, b"hello ")
    assert journal.take(reader) == 6
    os.write(writer, b"world")
    assert journal.take(reader) == 5
    assert journal.read(0, 100) == b"hello world"
    assert journal.read(6, 2) == b"wo"
    assert journal.tail == os.fstat(journal.fd).st_size == 11
    with pytest.raises(BlockingIOError):
        journal.take(reader)


def test_take_respects_its_limit(journal: Journal, ends: tuple[int, int]) -> None:
    reader, writer = ends
    os.write(writer, b"0123456789")
    assert journal.take(reader, 4) == 4
    assert drain(reader) == b"456789"


def test_a_pipe_without_writers_says_so(journal: Journal) -> None:
    reader, writer = pipe()
    os.close(writer)
    assert journal.take(reader) == 0
    os.close(reader)


def test_append_stores_all(journal: Journal) -> None:
    data = pattern(0, 3_000_000)
    journal.append(data)
    journal.append(b"")
    assert journal.tail == len(data)
    assert journal.read(0, len(data)) == data


def test_cursors_are_descriptions_of_their_own(journal: Journal) -> None:
    journal.append(b"abcdef")
    first, second = journal.cursor(), journal.cursor()
    assert os.read(first, 3) == b"abc"
    assert os.read(second, 6) == b"abcdef"
    copy = os.dup(first)
    assert os.read(copy, 3) == b"def"
    assert os.lseek(first, 0, os.SEEK_CUR) == 6
    for fd in (first, second, copy):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_release_frees_memory_but_not_what_is_kept(journal: Journal) -> None:
    size = 5 << 20
    journal.append(pattern(0, size))
    before = os.fstat(journal.fd).st_blocks
    upto = size - 100_000
    journal.release(upto)
    assert journal.base <= upto
    assert journal.base % os.sysconf("SC_PAGE_SIZE") == 0
    assert os.fstat(journal.fd).st_blocks * 512 < before * 512 - (4 << 20)
    assert os.fstat(journal.fd).st_size == size
    assert journal.read(journal.base, size) == pattern(journal.base, size - journal.base)


def test_release_of_little_or_less_than_nothing_does_nothing(journal: Journal) -> None:
    journal.append(bytes(1000))
    for upto in (-(5 << 20), 0, 1000):
        journal.release(upto)
    assert journal.base == 0


def test_a_reader_of_a_pipe_keeps_pages_that_were_given_back(journal: Journal, ends: tuple[int, int]) -> None:
    # sendfile puts references to the journal's pages into the pipe
    reader, writer = ends
    grow_pipe(writer, 1 << 20)
    data = pattern(0, 3 << 20)
    journal.append(data)
    cursor = journal.cursor()
    sent = os.sendfile(writer, cursor, None, 200_000)
    journal.release(2 << 20)
    assert journal.base == 2 << 20
    assert drain(reader) == data[:sent]
    os.close(cursor)


def test_a_new_journal_on_the_same_file_knows_what_is_left(journal: Journal) -> None:
    journal.append(pattern(0, 3 << 20))
    journal.release(2 << 20)
    again = Journal(os.open(f"/proc/self/fd/{journal.fd}", os.O_RDWR))
    assert (again.base, again.tail) == (2 << 20, 3 << 20)
    journal.release(3 << 20)
    empty = Journal(os.open(f"/proc/self/fd/{journal.fd}", os.O_RDWR))
    assert (empty.base, empty.tail) == (3 << 20, 3 << 20)
    for other in (again, empty):
        other.close()
        other.close()
        assert other.fd == -1


def test_punching_reports_its_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        journal_module._punch(-1, 0, 4096)
    assert caught.value.errno == errno.EBADF


def test_pipes_grow_as_far_as_the_kernel_lets_them(ends: tuple[int, int]) -> None:
    grow_pipe(ends[1])
    assert fcntl.fcntl(ends[1], fcntl.F_GETPIPE_SZ) == journal_module.PIPE_SIZE
    grow_pipe(ends[1], (1 << 31) + 1)  # refused, and no error
    assert fcntl.fcntl(ends[1], fcntl.F_GETPIPE_SZ) == journal_module.PIPE_SIZE
    with open(os.devnull) as null:
        grow_pipe(null.fileno())


class JournalMachine(RuleBasedStateMachine):
    """Bytes go in by splice or by hand, cursors read at their own pace, memory behind the slowest is given back."""

    cursors = Bundle("cursors")

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal.create("machine")
        self.pipe = pipe()
        grow_pipe(self.pipe[1], 1 << 20)
        self.in_pipe = 0
        self.written = 0
        self.read: dict[int, int] = {}

    def teardown(self) -> None:
        for fd in (*self.read, *self.pipe):
            os.close(fd)
        self.journal.close()

    @rule(length=st.integers(1, 700_000))
    def print_to_pipe(self, length: int) -> None:
        data = pattern(self.written + self.in_pipe, length)
        try:
            self.in_pipe += os.write(self.pipe[1], data)
        except BlockingIOError:
            assert self.in_pipe > 0

    @rule(limit=st.integers(1, 1 << 20))
    def take(self, limit: int) -> None:
        try:
            taken = self.journal.take(self.pipe[0], limit)
        except BlockingIOError:
            assert self.in_pipe == 0
            return
        assert 0 < taken <= min(limit, self.in_pipe)
        self.in_pipe -= taken
        self.written += taken

    @rule(length=st.integers(0, 2_000_000))
    def append(self, length: int) -> None:
        if self.in_pipe == 0:
            self.journal.append(pattern(self.written, length))
            self.written += length

    @rule(target=cursors)
    def open_cursor(self) -> int:
        cursor = self.journal.cursor()
        os.lseek(cursor, self.journal.base, os.SEEK_SET)
        self.read[cursor] = self.journal.base
        return cursor

    @rule(cursor=cursors, length=st.integers(1, 3_000_000))
    def read_some(self, cursor: int, length: int) -> None:
        at = self.read[cursor]
        data = os.read(cursor, length)
        assert data == pattern(at, min(length, self.written - at))
        self.read[cursor] += len(data)
        assert os.lseek(cursor, 0, os.SEEK_CUR) == self.read[cursor]

    @rule(cursor=consumes(cursors))
    def close_cursor(self, cursor: int) -> None:
        os.close(cursor)
        del self.read[cursor]

    @rule(replay=st.integers(0, 200_000))
    def release_behind_the_slowest(self, replay: int) -> None:
        oldest = min((*self.read.values(), self.written - replay))
        before = self.journal.base
        self.journal.release(oldest)
        assert self.journal.base in range(before, max(before, oldest) + 1)

    @rule()
    def restart(self) -> None:
        base = self.journal.base
        again = Journal(os.open(f"/proc/self/fd/{self.journal.fd}", os.O_RDWR))
        self.journal.close()
        self.journal = again
        assert again.base == base or again.base == again.tail

    @invariant()
    def numbers_agree(self) -> None:
        assert self.journal.tail == self.written == os.fstat(self.journal.fd).st_size
        assert 0 <= self.journal.base <= self.journal.tail


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestJournalMachine = JournalMachine.TestCase
