# SPDX-License-Identifier: Apache-2.0
"""The hub: lossless sinks hold the guest, attached clients never do, and everybody sees the same bytes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from typing import TYPE_CHECKING

import pytest

from consoles.streams.fifo import FifoSource
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from consoles.streams.sinks.logfile import LOG, Place, open_log
from consoles.streams.sinks.stdio import StdioSink
from runphi_async.wire.console import unpack_offset
from runphi_async.wire.outgoing import Outgoing, Outlet
from tests.unit.consolekit import drain, pattern, pipe, read_until, until
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from consoles.streams.sinks.attach import AttachSink

WINDOW = 300_000
REPLAY = 50_000


class Guest:
    """A hub with the pipe a guest prints into."""

    def __init__(self, window: int = WINDOW, replay: int = REPLAY) -> None:
        reader, self.console = pipe()
        self.source = FifoSource(reader)
        self.hub = Hub(Journal.create("test"), self.source, window=window, replay=replay)
        self.printed = 0
        self.sinks: list[StdioSink] = []
        self.readers: list[int] = []

    def stdio(self) -> tuple[StdioSink, int]:
        reader, writer = pipe()
        journal = self.hub.journal
        sink = StdioSink(journal, journal.cursor(), writer, self.hub.progress)
        self.sinks.append(sink)
        self.readers.append(reader)
        self.hub.add_sink(sink)
        return sink, reader

    def print(self, most: int) -> int:
        """Print as far as the pipe takes it; return how much it took."""
        with contextlib.suppress(BlockingIOError):
            count = os.write(self.console, pattern(self.printed, most))
            self.printed += count
            return count
        return 0

    async def print_all(self, count: int) -> None:
        async with asyncio.timeout(20):
            while count > 0:
                count -= self.print(min(count, 65536))
                await asyncio.sleep(0)

    def close(self) -> None:
        self.hub.close()
        self.source.shut()
        for sink in self.sinks:
            sink.close()
        for fd in (*self.readers, self.console):
            os.close(fd)


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    made = Guest()
    made.hub.start()
    yield made
    made.close()


class Person(Peer):
    """An attached client that reads when it is told to."""

    def __init__(self, hub: Hub, *, start: int | None = None, rows: int = 0, limit: int = 100_000) -> None:
        super().__init__(8192)
        self.hub = hub
        self.left = False
        self.start = -1
        self.offset = -1
        self.skipped = 0
        self.shown: list[tuple[int, bytes]] = []
        self.outgoing = Outgoing(self.ours, self.leave)
        self.sink: AttachSink = hub.attach(Outlet(self.outgoing), start=start, rows=rows, limit=limit)

    def leave(self) -> None:
        self.left = True
        self.hub.detach(self.sink)

    def read(self, most: int = 1 << 20) -> bytes:
        """Read what is there; return all that was shown so far."""
        for kind, payload in self.frames(most):
            self.frame(kind, payload)
        return self.text

    def frame(self, kind: bytes, payload: bytes) -> None:
        if kind == b"O":
            self.shown.append((self.offset, payload))
            self.offset += len(payload)
            return
        onward = unpack_offset(payload)
        if kind == b"A":
            assert self.start == -1
            self.start = onward
        else:
            assert kind == b"K"
            assert onward > self.offset
            self.skipped += onward - self.offset
        self.offset = onward

    def check(self) -> None:
        assert all(data == pattern(at, len(data)) for at, data in self.shown)
        assert self.skipped == self.sink.skipped

    @property
    def text(self) -> bytes:
        return b"".join(data for _, data in self.shown)

    def close(self) -> None:
        if not self.left:
            self.hub.detach(self.sink)
        self.outgoing.close()
        super().close()


async def test_every_sink_gets_every_byte(guest: Guest, tmp_path: Path) -> None:
    (_, first), (_, second) = guest.stdio(), guest.stdio()
    journal = guest.hub.journal
    log = open_log(
        journal,
        "raw",
        Place(str(tmp_path), LOG),
        cursor=journal.cursor(),
        progress=guest.hub.progress,
        on_error=lambda exc: None,
    )
    running = asyncio.ensure_future(log.run())
    guest.hub.add_sink(log)
    total = 2_000_000
    printing = asyncio.ensure_future(guest.print_all(total))
    seen = await asyncio.gather(read_until(first, total), read_until(second, total))
    await printing
    assert list(seen) == [pattern(0, total)] * 2
    await log.close()
    await running
    assert (tmp_path / LOG).read_bytes() == pattern(0, total)
    statistics = guest.hub.statistics()
    assert statistics.received == total
    assert statistics.kept <= REPLAY + (1 << 20) + 4096  # memory is given back in steps of one mebibyte


async def test_a_slow_engine_stops_the_guest_and_lets_it_go_on(guest: Guest) -> None:
    _, reader = guest.stdio()
    while guest.print(65536) or guest.hub.is_listening:
        await asyncio.sleep(0)
    stopped_at = guest.printed
    # window + the engine's pipe + the guest's own pipe, and one splice that began below the window
    assert WINDOW <= stopped_at <= WINDOW + 65536 * 3
    assert guest.hub.statistics().stalls >= 1
    assert guest.hub.journal.tail < stopped_at
    assert await read_until(reader, stopped_at) == pattern(0, stopped_at)
    await guest.print_all(10_000)
    assert await read_until(reader, 10_000) == pattern(stopped_at, 10_000)


async def test_an_engine_that_left_does_not_stop_the_guest(guest: Guest) -> None:
    sink, reader = guest.stdio()
    guest.print(1000)
    await read_until(reader, 1000)
    os.close(reader)
    guest.readers.remove(reader)
    await guest.print_all(3 * WINDOW)
    await until(lambda: guest.hub.journal.tail == guest.printed)
    assert sink.broken is not None


async def test_an_engine_that_leaves_a_stopped_guest_sets_it_free(guest: Guest) -> None:
    _, reader = guest.stdio()
    while guest.print(65536) or guest.hub.is_listening:
        await asyncio.sleep(0)
    os.close(reader)
    guest.readers.remove(reader)
    await guest.print_all(WINDOW)
    await until(lambda: guest.hub.journal.tail == guest.printed)


async def test_a_slow_person_slows_nobody() -> None:
    total = 3_000_000
    guest = Guest(replay=total)  # else a busy machine makes the fast one slow, too
    guest.hub.start()
    _, reader = guest.stdio()
    slow, fast = Person(guest.hub), Person(guest.hub, limit=1 << 22)

    async def read_fast() -> None:
        while fast.offset < total:
            fast.read()
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        printing, reading = asyncio.ensure_future(guest.print_all(total)), asyncio.ensure_future(read_fast())
        assert await read_until(reader, total) == pattern(0, total)
        await asyncio.gather(printing, reading)
    assert slow.shown == []  # it has not read a byte all the time
    assert fast.text == pattern(0, total)
    assert fast.skipped == 0
    await until(functools.partial(has_all, slow, total))
    assert slow.skipped > total - 400_000
    for person in (slow, fast):
        person.check()
        person.close()
    guest.close()


async def test_replay_then_live_without_gap_or_double(guest: Guest) -> None:
    guest.stdio()
    os.write(guest.console, b"one\ntwo\nthree\n$ ")
    await until(lambda: guest.hub.journal.tail == 16)
    person = Person(guest.hub, rows=2)
    os.write(guest.console, b"typed\n")
    await until(lambda: person.read().endswith(b"typed\n"))
    assert person.text == b"three\n$ typed\n"
    assert person.start == 8
    person.close()


@pytest.mark.parametrize(
    ("rows", "start"), [(1, 14), (2, 8), (3, 4), (4, 0), (99, 0), (0, 0)], ids=lambda value: str(value)
)
async def test_screen_start(guest: Guest, rows: int, start: int) -> None:
    os.write(guest.console, b"one\ntwo\nthree\n$ ")
    await until(lambda: guest.hub.journal.tail == 16)
    person = Person(guest.hub, rows=rows)
    person.read()
    assert person.start == start
    person.close()


async def test_attach_at_an_offset(guest: Guest) -> None:
    await guest.print_all(1000)
    await until(lambda: guest.hub.journal.tail == 1000)
    for start, expected in ((400, 400), (1000, 1000), (5000, 1000)):
        person = Person(guest.hub, start=start)
        person.read()
        assert person.start == expected
        person.check()
        person.close()


async def test_attach_at_what_is_no_longer_kept() -> None:
    guest = Guest(replay=1000)
    guest.hub.start()
    await guest.print_all(3 << 20)
    await until(lambda: guest.hub.journal.tail == 3 << 20)
    base = guest.hub.journal.base
    assert base > 1 << 20
    person = Person(guest.hub, start=0, limit=4 << 20)
    person.read()
    assert person.start == base
    person.check()
    person.close()
    guest.close()


async def test_a_person_who_vanishes_is_forgotten(guest: Guest) -> None:
    person = Person(guest.hub)
    person.theirs.close()
    await guest.print_all(1000)
    await until(lambda: person.left)
    assert guest.hub.statistics().clients == 0
    person.close()


async def test_received_waits_for_the_last_byte(guest: Guest) -> None:
    waiting = asyncio.ensure_future(guest.hub.received(100, 10))
    guest.print(60)
    await until(lambda: guest.hub.journal.tail == 60)
    assert not waiting.done()
    guest.print(40)
    assert await asyncio.wait_for(waiting, 5)
    assert await guest.hub.received(100, 0)
    assert not await guest.hub.received(101, 0.01)


async def test_drain_brings_everything_to_a_reader_that_reads(guest: Guest) -> None:
    _, reader = guest.stdio()
    while guest.print(65536) or guest.hub.is_listening:
        await asyncio.sleep(0)
    draining = asyncio.ensure_future(guest.hub.drain(5))
    assert await read_until(reader, guest.printed) == pattern(0, guest.printed)
    assert await draining


async def test_drain_takes_what_is_left_in_the_pipe_at_once(guest: Guest) -> None:
    _, reader = guest.stdio()
    guest.print(5000)  # the loop has not run: nobody has seen it yet
    assert await guest.hub.drain(5)
    assert drain(reader) == pattern(0, 5000)


async def test_drain_leaves_what_nobody_reads_yet_in_the_pipe(guest: Guest) -> None:
    _, reader = guest.stdio()
    for _ in range(60):  # each line takes one of the pipe's 16 slots
        guest.print(20)
        await asyncio.sleep(0.001)
    total = guest.printed
    assert await guest.hub.drain(5)
    assert drain(reader) == pattern(0, total)


async def test_nothing_is_given_back_before_every_old_cursor_is_known(guest: Guest, tmp_path: Path) -> None:
    """A supervisor that adopts a guest finds one sink at the tail and the log far behind."""
    journal = Journal.create("adopted")
    total = 3 << 20
    journal.append(pattern(0, total))
    late = journal.cursor()
    reader, writer = pipe()
    at_tail = journal.cursor()
    os.lseek(at_tail, total, os.SEEK_SET)
    reading, console = pipe()
    source = FifoSource(reading)
    hub = Hub(journal, source, window=total, replay=0)
    hub.add_sink(StdioSink(journal, at_tail, writer, hub.progress))
    hub.progress()
    log = open_log(
        journal, "raw", Place(str(tmp_path), LOG), cursor=late, progress=hub.progress, on_error=lambda exc: None
    )
    hub.add_sink(log)
    running = asyncio.ensure_future(log.run())
    hub.start()
    await until(lambda: log.lag == 0)
    await log.close()
    await running
    assert (tmp_path / LOG).read_bytes() == pattern(0, total)
    hub.close()
    source.shut()
    for fd in (reader, console):
        os.close(fd)


async def test_drain_does_not_wait_for_ever(guest: Guest) -> None:
    sink, _ = guest.stdio()
    sink.hurry = lambda: None  # type: ignore[method-assign]  # else its pipe grows and takes all of it
    while guest.print(65536) or guest.hub.is_listening:
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert not await guest.hub.drain(0.05)
    assert loop.time() - began < 5


async def test_drain_with_nobody_listening() -> None:
    guest = Guest()
    guest.print(1000)
    assert await guest.hub.drain(1)
    assert guest.hub.journal.tail == 1000
    guest.close()


async def test_a_person_gets_the_last_bytes_after_the_end(guest: Guest) -> None:
    person = Person(guest.hub, limit=1 << 20)
    await guest.print_all(200_000)
    await until(lambda: guest.hub.journal.tail == 200_000)
    assert person.sink.statistics().lag > 0
    guest.hub.close()
    await until(lambda: len(person.read()) == 200_000)
    await asyncio.wait_for(person.sink.drained(), 5)
    assert person.text == pattern(0, 200_000)
    assert guest.hub.journal.fd >= 0
    person.close()
    assert guest.hub.journal.fd == -1  # with the last one who needs it


def has_all(person: Person, total: int) -> bool:
    person.read()
    return person.offset == total


@pytest.mark.parametrize("seed", range(6))
async def test_a_crowd_of_readers(seed: int, tmp_path: Path) -> None:
    """Random fast, slow and vanishing readers: the lossless ones get every byte, the others what they are told."""
    chance = random.Random(seed)
    guest = Guest(window=chance.choice([4096, 70_000, 500_000]), replay=chance.choice([0, 5000, 100_000]))
    journal = guest.hub.journal
    log = open_log(
        journal,
        "raw",
        Place(str(tmp_path), LOG),
        cursor=journal.cursor(),
        progress=guest.hub.progress,
        on_error=lambda exc: None,
    )
    running = asyncio.ensure_future(log.run())
    guest.hub.add_sink(log)
    engines = {reader: b"" for _, reader in (guest.stdio() for _ in range(chance.randint(1, 3)))}
    guest.hub.start()
    people: list[Person] = []
    gone: list[Person] = []
    total = 300_000
    async with asyncio.timeout(40):
        while any(len(seen) < total for seen in engines.values()):
            if guest.printed < total:
                guest.print(min(chance.choice([1, 100, 65536]), total - guest.printed))
            for reader in engines:
                if chance.random() < 0.7:
                    with contextlib.suppress(BlockingIOError):
                        engines[reader] += os.read(reader, chance.choice([10, 5000, 1 << 20]))
            if chance.random() < 0.02 and len(people) < 6:
                start = chance.choice([None, 0, journal.tail])
                people.append(Person(guest.hub, start=start, limit=chance.choice([4096, 100_000])))
            for person in tuple(people):
                what = chance.random()
                if what < 0.4:
                    person.read(chance.choice([10, 100_000]))
                elif what < 0.41:
                    person.theirs.close() if chance.random() < 0.5 else person.close()
                    people.remove(person)
                    gone.append(person)
            await asyncio.sleep(0)
        assert await guest.hub.drain(5)
        for person in people:
            await until(functools.partial(has_all, person, total))
    assert set(engines.values()) == {pattern(0, total)}
    for person in (*people, *gone):
        assert all(data == pattern(at, len(data)) for at, data in person.shown)
    for person in people:
        person.check()
        person.close()
    for person in gone:
        person.close()
    await log.close()
    await running
    assert (tmp_path / LOG).read_bytes() == pattern(0, total)
    guest.close()


async def test_who_types_is_shown_the_echo_before_who_watches(guest: Guest) -> None:
    writer, watcher = Person(guest.hub), Person(guest.hub)
    watcher.sink.eager = False
    guest.hub.say(b"x")
    assert (writer.read(), watcher.read()) == (b"x", b"")
    await until(lambda: watcher.read() == b"x")
    guest.hub.say(bytes(100_000))  # much at once does not wait
    watcher.read()
    assert watcher.half, "the beginning of a frame is there"
    for person in (writer, watcher):
        person.close()
