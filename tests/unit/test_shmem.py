# SPDX-License-Identifier: Apache-2.0
"""The byte rings in shared memory against an honest guest, and against one that writes anything anywhere."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consoles.errors import SourceError
from consoles.sharedmem import regions, shmem
from consoles.sharedmem.regions import Mapping
from consoles.sharedmem.shmem import Channel
from runphi_async.testing.shmempeer import Peer
from tests.unit.consolekit import pattern

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 4096
WORDS = st.integers(0, 0xFFFF_FFFF)
NEAR_WRAP = 0xFFFF_FF00


def pair(memory: bytearray | None = None) -> tuple[Channel, Peer]:
    memory = memory if memory is not None else bytearray(SIZE)
    channel = Channel(Mapping(memory), "telemetry", SIZE)
    peer = Peer(Mapping(memory))
    peer.open()
    return channel, peer


def take(channel: Channel, limit: int = 1 << 20) -> bytes:
    data = channel.peek(limit)
    channel.release(len(data))
    return data


# Section: the layout


def test_the_layout_is_the_documented_one() -> None:
    memory = bytearray(SIZE)
    Channel(Mapping(memory), "telemetry", SIZE)
    assert struct.unpack_from("<4s7I", memory) == (b"RPCH", 1, SIZE, 0, 0x100, 1024, 0x500, 2048)
    assert bytes(memory[0x20:0x40]) == b"telemetry".ljust(32, b"\0")
    assert struct.unpack_from("<5I", memory, 0x40) == (1, 0, 0, 0, 0)
    assert not any(memory[0x54:])


@pytest.mark.parametrize("size", [4096, 65536, 1 << 20, 64 << 20])
def test_rings_lie_apart_and_inside(size: int) -> None:
    _, down, up = shmem.layout(size)
    assert down.offset >= shmem.HEADER_SIZE
    assert down.offset + down.size <= up.offset
    assert up.offset + up.size <= size


@pytest.mark.parametrize("size", [0, 1, 4095, 5000, 3 << 12, 128 << 20])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(SourceError, match="power of two"):
        shmem.layout(size)


@pytest.mark.parametrize("name", ["", "x" * 32, "ä" * 16])
def test_names_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(SourceError, match="cannot name"):
        Channel(Mapping(bytearray(SIZE)), name, SIZE)


def test_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(SourceError, match="4096 bytes into 2048"):
        Channel(Mapping(bytearray(2048)), "a", SIZE)


# Section: honest guests


def test_bytes_pass_both_ways_and_round_the_end() -> None:
    channel, peer = pair()
    for turn in range(20):
        up, down = pattern(turn * 999, 999), pattern(turn * 777, 777)
        assert peer.write(up) == 999
        assert take(channel) == up
        assert channel.write(down) == 777
        assert peer.read() == down
    numbers = channel.statistics()
    assert (numbers.received, numbers.sent, numbers.violations) == (19980, 15540, 0)
    assert (numbers.guest_generation, numbers.guest_state) == (1, shmem.GUEST_OPEN)


def test_a_full_ring_takes_no_more_and_loses_nothing() -> None:
    channel, peer = pair()
    assert peer.write(pattern(0, 5000)) == 2048
    assert peer.write(b"more") == 0
    assert channel.write(pattern(0, 5000)) == 1024
    assert channel.write(b"more") == 0
    assert channel.writable() == 0
    assert take(channel) == pattern(0, 2048)
    assert peer.read() == pattern(0, 1024)


class Honest(RuleBasedStateMachine):
    """Any interleaving of both sides, with both of them beginning anew at any time, near the wrap of the indices."""

    @initialize(near=st.booleans())
    def begin(self, near: bool) -> None:
        self.memory = bytearray(SIZE)
        self.channel, self.peer = pair(self.memory)
        if near:
            for offset in (0x44, 0x48, 0x84, 0x88):
                struct.pack_into("<I", self.memory, offset, NEAR_WRAP)
            self.channel.close()
            self.channel, self.peer = pair(self.memory)
        self.sent_up = self.got_up = self.sent_down = self.got_down = 0
        self.channel.settle(0)

    @rule(length=st.integers(0, 3000))
    def guest_writes(self, length: int) -> None:
        self.sent_up += self.peer.write(pattern(self.sent_up, length))

    @rule(limit=st.integers(0, 3000))
    def host_reads(self, limit: int) -> None:
        data = take(self.channel, limit)
        assert data == pattern(self.got_up, len(data))
        self.got_up += len(data)

    @rule(limit=st.integers(1, 3000), stored=st.integers(0, 3000))
    def host_dies_between_storing_and_releasing(self, limit: int, stored: int) -> None:
        data = self.channel.peek(limit)[:stored]
        assert data == pattern(self.got_up, len(data))
        self.got_up += len(data)
        self.channel.close()
        self.channel = Channel(Mapping(self.memory), "telemetry", SIZE)
        self.channel.settle(self.got_up)

    @rule(length=st.integers(0, 2000))
    def host_writes(self, length: int) -> None:
        self.sent_down += self.channel.write(pattern(self.sent_down, length))

    @rule(limit=st.integers(0, 2000))
    def guest_reads(self, limit: int) -> None:
        data = self.peer.read(limit)
        assert data == pattern(self.got_down, len(data))
        self.got_down += len(data)

    @rule()
    def guest_begins_anew(self) -> None:
        self.peer = Peer(Mapping(self.memory))
        self.peer.open()

    @rule()
    def host_beats(self) -> None:
        self.channel.beat()

    @invariant()
    def nothing_was_wrong(self) -> None:
        assert self.channel.statistics().violations == 0
        assert self.sent_up - self.got_up == self.channel.readable()
        assert self.sent_down - self.got_down == 1024 - self.channel.writable()


TestHonest = Honest.TestCase
TestHonest.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


# Section: hostile guests


class Checked(Mapping):
    """Memory that also refuses what its owner has no business to write: the guest's words and the guest's ring."""

    def store(self, offset: int, value: int) -> None:
        formatting = offset < 0x40 or value == 0
        assert formatting or 0x40 <= offset < 0x80, hex(offset)
        super().store(offset, value)

    def write(self, offset: int, data: bytes) -> None:
        assert offset >= 0x100
        assert offset + len(data) <= 0x500
        super().write(offset, data)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0x500
        assert offset + length <= 0xD00
        return super().read(offset, length)


class Hostile(RuleBasedStateMachine):
    """A guest that writes any word anywhere at any time: never out of bounds, never more than a ring, no loop."""

    @initialize()
    def begin(self) -> None:
        self.memory = bytearray(SIZE)
        self.told = 0
        self.open()

    def open(self) -> None:
        self.channel = Channel(Checked(self.memory), "a", SIZE, self.tell)

    def tell(self, what: str) -> None:
        assert what
        self.told += 1

    @rule(word=st.integers(0, 0x100 // 4 - 1), value=WORDS)
    def write_a_word(self, word: int, value: int) -> None:
        struct.pack_into("<I", self.memory, word * 4, value)

    @rule(word=st.sampled_from([0x40, 0x44, 0x48, 0x50, 0x80, 0x84, 0x88, 0x8C]), value=st.integers(-3000, 3000))
    def write_an_index(self, word: int, value: int) -> None:
        near = self.channel.statistics().received + value
        struct.pack_into("<I", self.memory, word, near % (1 << 32))

    @rule(limit=st.integers(0, 1 << 20))
    def host_reads(self, limit: int) -> None:
        assert len(take(self.channel, limit)) <= 2048

    @rule(length=st.integers(0, 5000))
    def host_writes(self, length: int) -> None:
        assert self.channel.write(bytes(length)) <= 1024

    @rule()
    def host_beats(self) -> None:
        self.channel.beat()
        # whatever the guest did to our words, they are right again
        assert self.channel.statistics().waiting_up <= 2048

    @rule(stored=st.integers(0, 1 << 40))
    def host_begins_anew(self, stored: int) -> None:
        before = self.told
        self.open()
        assert self.told - before <= 3
        self.channel.settle(stored)

    @rule()
    def an_honest_guest_comes(self) -> None:
        """After whatever was done, an honest guest and we understand each other within one exchange."""
        self.open()
        self.channel.beat()
        take(self.channel)
        peer = Peer(Mapping(self.memory))
        peer.open()
        peer.read()
        take(self.channel)
        assert peer.write(b"hello") == 5
        assert take(self.channel) == b"hello"
        assert self.channel.write(b"there") == 5
        assert peer.read() == b"there"


TestHostile = Hostile.TestCase
TestHostile.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_wrong_index_is_told_and_the_ring_starts_over() -> None:
    told: list[str] = []
    memory = bytearray(SIZE)
    channel = Channel(Mapping(memory), "a", SIZE, told.append)
    peer = Peer(Mapping(memory))
    peer.open()
    peer.write(b"lost")
    struct.pack_into("<I", memory, 0x84, 0xDEAD_BEEF)
    assert channel.peek(100) == b""
    assert told == ["the index 0xdeadbeef of its output does not fit: what the ring held is dropped"]
    peer.write(b"found")
    assert take(channel) == b"found"
    assert channel.statistics().violations == 1


def test_a_wrong_index_of_the_input_stops_it_until_it_is_right() -> None:
    told: list[str] = []
    memory = bytearray(SIZE)
    channel = Channel(Mapping(memory), "a", SIZE, told.append)
    struct.pack_into("<I", memory, 0x88, 7)
    assert channel.write(b"x") == 0
    assert len(told) == 1
    struct.pack_into("<I", memory, 0x88, 0)
    assert channel.write(b"x") == 1


def test_words_of_ours_are_put_right() -> None:
    told: list[str] = []
    memory = bytearray(SIZE)
    channel = Channel(Mapping(memory), "a", SIZE, told.append)
    channel.write(b"12345")
    struct.pack_into("<II", memory, 0x44, 99, 98)
    channel.beat()
    assert struct.unpack_from("<II", memory, 0x44) == (5, 0)
    assert told == ["our word at 0x44 was written over", "our word at 0x48 was written over"]


def test_a_header_written_over_is_put_right_by_the_next_host() -> None:
    told: list[str] = []
    memory = bytearray(SIZE)
    channel, peer = pair(memory)
    peer.write(b"kept")
    struct.pack_into("<I", memory, 0x1C, 1 << 31)
    assert take(channel) == b"kept"
    channel = Channel(Mapping(memory), "telemetry", SIZE, told.append)
    assert told == ["the header was written over"]
    assert struct.unpack_from("<I", memory, 0x1C) == (2048,)


# Section: what memory there is


@given(offset=st.integers(-8, 5000), length=st.integers(-8, 5000), device=st.booleans())
def test_a_region_is_never_left(offset: int, length: int, device: bool) -> None:
    region = Mapping(bytearray(SIZE), device=device)
    inside = offset >= 0 and length >= 0 and offset + length <= SIZE
    if inside:
        assert len(region.read(offset, length)) == length
        return
    with pytest.raises(IndexError):
        region.read(offset, length)
    with pytest.raises(IndexError):
        region.load(offset if offset % 4 else 5001)


@given(data=st.binary(max_size=40), offset=st.integers(0, 30))
def test_device_memory_is_copied_by_words_and_nothing_beside_it_changes(data: bytes, offset: int) -> None:
    memory = bytearray(b"\xaa" * 128)
    region = Mapping(memory, device=True)
    region.write(offset, data)
    expected = b"\xaa" * offset + data + b"\xaa" * (128 - offset - len(data))
    assert bytes(memory) == expected
    assert region.read(offset, len(data)) == data


def test_a_file_is_shared_between_its_mappings(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(8192))
    first, second = regions.open_region(str(path)), regions.open_region(str(path))
    first.store(4096, 0x01020304)
    assert second.load(4096) == 0x01020304
    assert path.read_bytes()[4096:4100] == b"\x04\x03\x02\x01"
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("/dev/shm/x", ("/dev/shm/x", 0, 0)),
        ("/dev/uio3:2", ("/dev/uio3", 2 * mmap.PAGESIZE, 0)),
        ("mem:0x7faf1000+0x9000", ("/dev/mem", 0x7FAF1000, 0x9000)),
    ],
)
def test_places_are_understood(text: str, place: tuple[str, int, int]) -> None:
    assert regions.parse_place(text) == place


@pytest.mark.parametrize("text", ["", "x", "mem:5+4096", "mem:0x1000+0", "mem:0x1000", "/a\0b"])
def test_other_places_are_refused(text: str) -> None:
    with pytest.raises(SourceError):
        regions.parse_place(text)


def test_files_that_cannot_be_memory_are_refused(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(100))
    for path, reason in ((odd, "multiple of"), (tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(SourceError, match=reason):
            regions.open_region(str(path))
    assert os.path.exists(odd)
