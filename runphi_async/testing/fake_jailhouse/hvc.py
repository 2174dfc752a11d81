# SPDX-License-Identifier: Apache-2.0
"""Guests' consoles in shared memory: a virtio console as Linux has one, and the byte ring of a bare-metal guest."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from backends.jailhouse.model import Protocol as Spoken
from runphi_async.testing.shmempeer import Peer
from runphi_async.testing.virtioguest import ConsoleDriver

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.jailhouse.model import Cell
    from runphi_async.testing.fake_jailhouse.vpci import Side

#: Protocol of a virtio console's front end.
FRONT_END: Final = 0x8003
#: Seconds between two looks at memory that nobody rings for.
LOOK: Final = 0.02
#: The same while the guest spins.
SPIN: Final = 0.001


class _Ends(Protocol):
    async def print(self, data: bytes) -> None: ...

    def read(self) -> bytes: ...


class Hvc:
    """A console in a device: what is written is kept until the other side has taken it.

    :param received: given what was typed.
    """

    def __init__(self, side: Side, received: Callable[[bytes], None]) -> None:
        self._side = side
        self._received = received
        self._waiting = b""
        self._moved = asyncio.Condition()
        self._dead = False

    def write(self, data: bytes) -> None:
        """Print, later: a guest without a console prints nowhere."""
        if not self._dead:
            self._waiting += data
            self._side.rang.set()

    async def flush(self) -> None:
        """Wait until everything is taken, as a guest's console writer spins."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._dead or not self._waiting)

    async def run(self) -> None:
        """Move bytes until cancelled."""
        try:
            ends = await self._connect()
        except ConnectionError:  # Linux's driver looks once for a back end that is ready
            self._dead = True
            async with self._moved:
                self._moved.notify_all()
            return
        while True:
            self._side.rang.clear()
            if typed := ends.read():
                self._received(typed)
            if self._waiting:
                data, self._waiting = self._waiting[:4096], self._waiting[4096:]
                await ends.print(data)
                async with self._moved:
                    self._moved.notify_all()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self._side.rang.wait()

    async def _connect(self) -> _Ends:
        if self._side.protocol == FRONT_END:
            driver = _Driver(self._side)
            await driver.probe()
            return driver
        ring = _Ring(self._side)
        await ring.open()
        return ring


class _Driver(ConsoleDriver):
    async def until(self, condition: Callable[[], bool]) -> None:
        """Spin until the device has acted, for ever as Linux does, and leave the host's CPUs some time."""
        while not condition():  # noqa: ASYNC110  # the device is another process's memory
            await asyncio.sleep(SPIN)


class _Ring:
    def __init__(self, side: Side) -> None:
        self._side = side
        self._peer: Peer

    async def open(self) -> None:
        """Wait until the root system has laid the ring out."""
        while self._side.rw.read(0, 4) != b"RPCH":  # noqa: ASYNC110  # it is another process's memory
            await asyncio.sleep(LOOK)
        self._peer = Peer(self._side.rw)
        self._peer.open()
        self._side.set_state(1)

    async def print(self, data: bytes) -> None:
        """Put everything into the ring."""
        while data := data[self._peer.write(data) :]:
            self._side.ring(0, 0)
            await asyncio.sleep(SPIN)
        self._side.ring(0, 0)

    def read(self) -> bytes:
        """Return what was typed."""
        data = self._peer.read()
        if data:
            self._side.ring(0, 0)
        return data


def console(cell: Cell, sides: list[Side], received: Callable[[bytes], None]) -> Hvc | None:
    """Return the console that a guest finds: virtio wherever there is one, a ring where it has nothing else."""
    other = cell.console.type or cell.flags & 0xC000_0000
    for side in sides:
        if side.protocol == FRONT_END or (side.protocol == Spoken.UNDEFINED and not other):
            return Hvc(side, received)
    return None
