# SPDX-License-Identifier: Apache-2.0
"""What the tests of console sources share: a listener that remembers, and far ends to talk to."""

from __future__ import annotations

import asyncio
import os
import pty
import tty
from typing import TYPE_CHECKING

from consoles.sources.link import Backoff
from tests.unit.consolekit import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sources.base import Listener, Source


def quick() -> Backoff:
    """Pauses a test can wait for."""
    return Backoff(0.01, 0.05)


class Ear:
    """Hears everything a source says."""

    def __init__(self) -> None:
        self.data = b""
        self.said: list[str] = []

    def received(self, data: bytes) -> None:
        self.data += data

    def gone(self, reason: str) -> None:
        self.said.append(f"gone: {reason}")

    def back(self) -> None:
        self.said.append("back")

    async def hears(self, data: bytes) -> None:
        await until(lambda: data in self.data, f"heard {data!r}")

    async def is_told(self, *said: str) -> None:
        await until(lambda: len(self.said) >= len(said), f"told {said}")
        assert [word.partition(":")[0] for word in self.said] == list(said)


class Terminal:
    """The far end of a pty."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(self.master, False)

    async def reads(self, length: int) -> bytes:
        data = b""
        async with asyncio.timeout(PATIENCE):
            while len(data) < length:
                try:
                    data += os.read(self.master, 1 << 16)
                except (BlockingIOError, OSError):  # EIO: nobody has opened it yet
                    await asyncio.sleep(0.001)
        return data

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


async def send_all(source: Source, data: bytes) -> None:
    """Write as a patient writer does."""
    async with asyncio.timeout(PATIENCE):
        while data:
            data = data[source.write(data) :]
            if data:
                ready = asyncio.Event()
                source.when_writable(ready.set)
                await ready.wait()


class Puppet:
    """A source whose far end is the test."""

    def __init__(self) -> None:
        self.listener: Listener
        self._paused = False
        self.closed = 0
        self.written = b""
        #: bytes it takes
        self.room = 1 << 30
        self.refusals: list[Exception] = []
        self.rest = b""
        self._wake: list[Callable[[], None]] = []

    async def open(self, listener: Listener) -> None:
        self.listener = listener
        if self.refusals:
            raise self.refusals.pop(0)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def is_paused(self) -> bool:
        return self._paused

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        self.written += taken
        self.room -= len(taken)
        return len(taken)

    def when_writable(self, wake: Callable[[], None]) -> None:
        self._wake.append(wake)

    def make_room(self, count: int) -> None:
        self.room += count
        wakers, self._wake = self._wake, []
        for wake in wakers:
            wake()

    async def close(self) -> None:
        self.closed += 1
        if self.rest:
            rest, self.rest = self.rest, b""
            self.listener.received(rest)
