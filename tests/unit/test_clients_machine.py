# SPDX-License-Identifier: Apache-2.0
"""Any order of output, reading, dawdling, roles, notices and memory given back: no client sees a wrong byte.

What a client is shown is the guest's stream, in order and each byte once, with gaps only where a mark says so, and the
marks add up; nobody's slowness is seen by the guest or by another client.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from consoles.streams.fifo import FifoSource
from consoles.streams.hub import Hub
from consoles.streams.journal import Journal
from runphi_async.wire.console import unpack_offset
from runphi_async.wire.outgoing import Outgoing, Outlet
from tests.unit.consolekit import pattern, pipe
from tests.unit.wirekit import Peer

if TYPE_CHECKING:
    from consoles.streams.sinks.attach import AttachSink

LIMIT = 40_000
AGE = 5.0
REPLAY = 10_000


class Clock:
    """Stands where the loop's clock stands: ages pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Client(Peer):
    """Reads frames and checks every one of them."""

    def __init__(self, hub: Hub, start: int) -> None:
        super().__init__(4096)
        self.offset, self.skipped, self.words = -1, 0, -1
        self.outgoing = Outgoing(self.ours)
        outlet = Outlet(self.outgoing)
        self.sink: AttachSink = hub.attach(outlet, start=start, rows=0, limit=LIMIT, age=AGE)

    def read(self, most: int) -> None:
        for kind, payload in self.frames(most):
            self.frame(kind, payload)

    def frame(self, kind: bytes, payload: bytes) -> None:
        if kind == b"O":
            assert payload == pattern(self.offset, len(payload))
            self.offset += len(payload)
        elif kind == b"N":
            assert int(payload) > self.words  # in order
            self.words = int(payload)
        elif kind == b"A":
            assert self.offset == -1
            self.offset = unpack_offset(payload)
        else:
            assert kind == b"K"
            onward = unpack_offset(payload)
            assert onward > self.offset
            self.skipped += onward - self.offset
            self.offset = onward

    def close(self) -> None:
        self.outgoing.close()
        super().close()


class Console(RuleBasedStateMachine):
    clients = Bundle("clients")

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.hub = self.loop.run_until_complete(self._hub())
        self.printed = 0
        self.words = 0
        self.all: list[Client] = []

    async def _hub(self) -> Hub:
        reader, self.console = pipe()
        self.source = FifoSource(reader)
        self.loop.time = self.clock  # type: ignore[method-assign]
        return Hub(Journal.create("test"), self.source, window=1 << 20, replay=REPLAY)

    def turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @rule(target=clients, back=st.integers(0, 60_000))
    def attach(self, back: int) -> Client:
        async def make() -> Client:
            return Client(self.hub, self.printed - back)

        client = self.loop.run_until_complete(make())
        self.all.append(client)
        return client

    @rule(count=st.integers(1, 70_000))
    def output(self, count: int) -> None:
        self.hub.say(pattern(self.printed, count))
        self.printed += count
        assert self.hub.journal.tail == self.printed  # whatever clients do

    @rule(client=clients, most=st.integers(1, 100_000))
    def read(self, client: Client, most: int) -> None:
        client.read(most)
        self.turn()

    @rule(client=clients, eager=st.booleans())
    def role(self, client: Client, eager: bool) -> None:
        client.sink.eager = eager

    @rule(client=clients)
    def notice(self, client: Client) -> None:
        client.sink.notice(b"%d" % self.words)
        self.words += 1

    @rule(seconds=st.floats(0.001, 20))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.turn()

    @rule()
    def memory_is_given_back(self) -> None:
        self.hub.journal.release(self.printed - REPLAY)

    @rule(client=consumes(clients))
    def detach(self, client: Client) -> None:
        self.hub.detach(client.sink)
        self.all.remove(client)
        client.close()

    def teardown(self) -> None:
        """In the end everybody who reads has everything, or a mark for it."""
        if not hasattr(self, "loop"):
            return
        try:
            self.everybody_has_everything()
        finally:
            for client in self.all:
                self.hub.detach(client.sink)
                client.close()
            self.hub.close()
            self.source.shut()
            self.loop.close()
            os.close(self.console)

    def everybody_has_everything(self) -> None:
        for _ in range(10_000):
            self.clock.now += 0.01
            self.turn()
            for client in self.all:
                client.read(1 << 20)
            if all(client.offset == self.printed for client in self.all):
                break
        for client in self.all:
            assert client.offset == self.printed
            assert client.skipped == client.sink.skipped


Console.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestConsole = Console.TestCase
