# SPDX-License-Identifier: Apache-2.0
"""Any interleaving of a source, slow readers and people typing: nothing is lost, doubled or put in another order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from consoles.streams.feed import Feed
from consoles.streams.journal import Journal
from consoles.streams.sinks.stdio import StdioSink
from tests.unit.consolekit import pattern, pipe
from tests.unit.sourcekit import Puppet

WINDOW = 5000

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("print"), st.integers(1, 3000)),
        st.tuples(st.just("read"), st.integers(1, 6000)),
        st.tuples(st.just("type"), st.integers(1, 300)),
        st.tuples(st.just("room"), st.integers(1, 300)),
        st.tuples(st.sampled_from(["gone", "back", "turn"]), st.just(0)),
    ),
    max_size=60,
)


class World:
    """A feed with a lossless reader, and what must come out of it."""

    def __init__(self) -> None:
        self.source = Puppet()
        self.source.room = 100
        self.journal = Journal.create("test")
        self.feed = Feed(self.journal, self.source, window=WINDOW, replay=100)
        self.reader, writer = pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # so that it is full soon
        self.sink = StdioSink(self.journal, self.journal.cursor(), writer, self.feed.hub.progress)
        self.feed.hub.add_sink(self.sink)
        self.away = False
        self.printed = self.typed = 0
        self.expected = b""
        self.accepted = b""
        self.seen = b""

    def mark(self, text: str) -> None:
        start = b"" if self.expected.endswith(b"\n") or not self.expected else b"\r\n"
        self.expected += start + f"[runphi: {text}]\r\n".encode()

    def step(self, what: str, count: int) -> None:
        if what == "print" and not self.away and not self.source.is_paused():
            data = pattern(self.printed, count)
            self.printed += count
            self.expected += data
            self.feed.received(data)
        elif what == "read":
            with contextlib.suppress(BlockingIOError):
                self.seen += os.read(self.reader, count)
        elif what == "type":
            self.feed.input.feed(pattern(self.typed, count))
            self.typed += count
        elif what == "room":
            self.source.make_room(count)
        elif what == "gone" and not self.away:
            self.away = True
            self.mark("the console is gone: why")
            self.feed.gone("why")
        elif what == "back" and self.away:
            self.away = False
            self.mark("the console is back")
            self.feed.back()

    def check(self) -> None:
        lag = self.journal.tail - len(self.seen)
        assert lag <= WINDOW + 3000 + 4096 + 2000  # window, one chunk, the reader's pipe, marks
        if not self.away:
            assert self.source.is_paused() == (self.sink.lag >= WINDOW)
        queue = self.feed.input
        assert queue.fed == self.typed
        assert len(self.source.written) + queue.dropped + queue.queued == self.typed

    async def finish(self) -> None:
        await self.feed.close()
        async with asyncio.timeout(20):
            while len(self.seen) < self.journal.tail:
                with contextlib.suppress(BlockingIOError):
                    self.seen += os.read(self.reader, 1 << 16)
                await asyncio.sleep(0)
        assert self.seen == self.expected
        self.sink.close()
        self.feed.hub.close()
        os.close(self.reader)


async def _live(steps: list[tuple[str, int]]) -> None:
    world = World()
    world.feed.hub.start()
    await world.feed.open()
    for what, count in steps:
        world.step(what, count)
        await asyncio.sleep(0)
        world.check()
    await world.finish()


@settings(deadline=None, max_examples=60)
@given(_STEPS)
def test_any_life_of_a_feed(steps: list[Any]) -> None:
    asyncio.run(_live(steps))
