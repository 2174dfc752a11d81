# SPDX-License-Identifier: Apache-2.0
"""The input queue: nothing typed is dropped while the guest lives, and a guest that does not read stops its writers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from consoles.streams import input as input_module
from consoles.streams.fifo import FifoSource
from consoles.streams.input import Input
from tests.unit.consolekit import drain, pattern, pipe, read_until, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Ends:
    def __init__(self) -> None:
        self.reader, writer = pipe()
        self.source = FifoSource(-1, writer)
        self.queue = Input(self.source)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    made.queue.close()
    made.source.shut()
    os.close(made.reader)


async def test_what_is_fed_arrives_in_order(ends: Ends) -> None:
    for piece in (b"one ", b"", b"two ", b"three"):
        ends.queue.feed(piece)
    assert drain(ends.reader) == b"one two three"
    assert ends.queue.fed == 13
    assert ends.queue.has_room


async def test_a_guest_that_does_not_read_stops_its_writers(ends: Ends) -> None:
    fed = 0
    while ends.queue.has_room:
        ends.queue.feed(pattern(fed, 5000))
        fed += 5000
    assert fed < input_module.ROOM * 3
    woken: list[int] = []
    ends.queue.when_room(lambda: woken.append(1))
    ends.queue.when_room(lambda: woken.append(2))
    assert not woken
    assert await read_until(ends.reader, fed) == pattern(0, fed)
    await until(lambda: woken == [1, 2])
    ends.queue.feed(b"next")
    assert await read_until(ends.reader, 4) == b"next"
    assert woken == [1, 2]  # once each
    assert ends.queue.fed == fed + 4


async def test_a_feeder_may_feed_when_it_is_woken(ends: Ends) -> None:
    ends.queue.feed(bytes(200_000))
    ends.queue.when_room(lambda: ends.queue.feed(b"end"))
    assert await read_until(ends.reader, 200_003) == bytes(200_000) + b"end"


async def test_a_guest_that_is_gone_drops_what_waits(ends: Ends) -> None:
    woken: list[int] = []
    ends.queue.feed(bytes(200_000))
    ends.queue.when_room(lambda: woken.append(1))
    spare = os.open("/dev/null", os.O_RDONLY)
    os.dup2(spare, ends.reader)
    os.close(spare)
    await until(lambda: woken == [1])
    assert ends.queue.has_room
    ends.queue.feed(b"into the void")
    assert ends.queue.has_room


async def test_closing_while_bytes_wait(ends: Ends) -> None:
    ends.queue.feed(bytes(200_000))
    ends.queue.when_room(lambda: pytest.fail("nobody is woken by a close"))
    ends.queue.close()
    ends.queue.close()
    ends.queue.feed(b"too late")
    await ends.source.close()
    assert len(drain(ends.reader)) == 65536
    assert os.read(ends.reader, 1) == b""
