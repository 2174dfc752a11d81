# SPDX-License-Identifier: Apache-2.0
"""Several who speak on one connection: whoever gives up, and whenever, the other end gets whole frames."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from typing import TYPE_CHECKING

import pytest

from consoles.streams.sinks.attach import AttachSink
from runphi_async import wire
from runphi_async.wire import outgoing
from runphi_async.wire.outgoing import ClientGone, Outgoing, Outlet
from tests.unit.consolekit import Progress, journals, pattern, until
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from consoles.streams.journal import Journal

journal = pytest.fixture(journals)


class Client(Peer):
    """Reads nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__(4096)
        self.gone = Progress()
        self.outgoing = Outgoing(self.ours, self.gone)

    async def rest(self) -> list[tuple[bytes, bytes]]:
        """All frames that come until nothing waits any more."""
        found: list[tuple[bytes, bytes]] = []

        def all_read() -> bool:
            found.extend(self.frames())
            return not self.outgoing.full and not self.outgoing.unread and not self.half

        await until(all_read)
        return found

    def close(self) -> None:
        self.outgoing.close()
        super().close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    made.close()


async def test_the_end_of_a_call_goes_behind_the_console_that_its_client_was_too_slow_for(
    client: Client, journal: Journal
) -> None:
    """The sink has sent half a frame and is given up: the exit status must not land inside it."""
    journal.append(pattern(0, 200_000))
    sink = AttachSink(journal, Outlet(client.outgoing), 0, 1 << 20)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sink.drained(), 0.02)
    sink.close()
    ending = asyncio.ensure_future(client.outgoing.send(wire.frame(wire.EXIT, b"3")))
    frames = await client.rest()
    await ending
    shown = b"".join(payload for kind, payload in frames if kind == wire.CONSOLE)
    assert 0 < len(shown) < 200_000
    assert shown == pattern(0, len(shown))
    assert frames[-1] == (wire.EXIT, b"3")


async def test_an_answer_that_nobody_waits_for_any_more_is_whole_or_not_there(client: Client) -> None:
    client.outgoing.write(wire.frame(wire.OUT, bytes(100_000)))
    begun = asyncio.ensure_future(client.outgoing.send(wire.frame(wire.ERR, b"given up")))
    await asyncio.sleep(0)
    begun.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await begun
    client.outgoing.write(wire.frame(wire.EXIT, b"0"))
    assert await client.rest() == [(wire.OUT, bytes(100_000)), (wire.EXIT, b"0")]


async def test_an_answer_given_up_in_the_middle_is_completed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PATIENCE", 0.02)
    with pytest.raises(ClientGone, match="does not take"):
        await client.outgoing.send(wire.frame(wire.OUT, bytes(100_000)))
    client.outgoing.write(wire.frame(wire.EXIT, b"1"))
    assert await client.rest() == [(wire.OUT, bytes(100_000)), (wire.EXIT, b"1")]


async def test_descriptors_go_with_their_frame_also_when_it_has_to_wait(client: Client) -> None:
    client.outgoing.write(wire.frame(wire.OUT, bytes(100_000)))
    mine = os.pipe()
    sending = asyncio.ensure_future(client.outgoing.send(wire.frame(wire.SPAWN, b"x"), mine))
    await asyncio.sleep(0)
    data, taken = b"", []
    while not sending.done() or b"x" not in data:
        with contextlib.suppress(BlockingIOError):
            more, fds, _, _ = socket.recv_fds(client.theirs, 65536, 4)
            data += more
            taken += fds
        await asyncio.sleep(0)
    assert data == wire.frame(wire.OUT, bytes(100_000)) + wire.frame(wire.SPAWN, b"x")
    assert [os.fstat(fd).st_ino for fd in taken] == [os.fstat(fd).st_ino for fd in mine]
    for fd in (*mine, *taken):
        os.close(fd)


async def test_who_waits_learns_that_the_other_end_has_gone(client: Client) -> None:
    waiting = asyncio.ensure_future(client.outgoing.send(wire.frame(wire.OUT, bytes(1_000_000))))
    room = Progress()
    client.outgoing.when_room(room)
    await asyncio.sleep(0)
    client.theirs.close()
    with pytest.raises(ClientGone):
        await waiting
    assert (client.outgoing.gone, client.outgoing.full, client.outgoing.unread) == (True, True, 0)
    assert (client.gone.calls, room.calls) == (1, 1)
    assert client.outgoing.write(b"for nobody") is None
    with pytest.raises(ClientGone):
        await client.outgoing.send(b"for nobody")
    assert client.gone.calls == 1


async def test_who_may_leave_something_out_is_told_of_room(client: Client) -> None:
    room = Progress()
    client.outgoing.when_room(room)
    client.outgoing.write(wire.frame(wire.OUT, b"small"))
    assert (client.outgoing.full, room.calls) == (False, 0)
    client.outgoing.write(wire.frame(wire.OUT, bytes(100_000)))
    assert client.outgoing.full
    assert len(await client.rest()) == 2
    assert (client.outgoing.full, room.calls) == (False, 1)
    assert client.outgoing.sent == 10 + 100_005


@pytest.mark.parametrize("seed", range(5))
async def test_any_number_of_speakers(client: Client, journal: Journal, seed: int) -> None:
    """A console, and speakers of whom some give up: each one's frames come whole and in order."""
    chance = random.Random(seed)
    sink = AttachSink(journal, Outlet(client.outgoing), 0, 1 << 30)
    frames: list[tuple[bytes, bytes]] = []

    async def speak(letter: bytes) -> None:
        for number in range(20):
            words = b"%d " % number + letter * chance.randrange(3000)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.outgoing.send(wire.frame(letter, words)), chance.choice((0.001, 5)))
            sink.pump()

    async def read() -> None:
        while True:
            frames.extend(client.frames(chance.randrange(5000)))
            journal.append(pattern(journal.tail, chance.randrange(2000)))
            await asyncio.sleep(0)

    reading = asyncio.ensure_future(read())
    await asyncio.gather(speak(b"1"), speak(b"2"), speak(b"3"))
    reading.cancel()
    sink.pump()
    frames += await client.rest()
    await sink.drained()
    frames += await client.rest()
    assert b"".join(payload for kind, payload in frames if kind == wire.CONSOLE) == pattern(0, journal.tail)
    for letter in (b"1", b"2", b"3"):
        said = [payload for kind, payload in frames if kind == letter]
        numbers = [int(words.partition(b" ")[0]) for words in said]
        assert numbers == sorted(set(numbers))
        assert all(set(words.partition(b" ")[2]) <= set(letter) for words in said)
