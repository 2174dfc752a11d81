# SPDX-License-Identifier: Apache-2.0
"""An ivshmem device whose two sides are in one process, and a guest's virtio console driver on it.

The driver does what Linux's virtio_ivshmem and virtio_console do, in the order recorded on a real cell: it probes,
gives both queues memory, prints and reads. It knows the back-end by the specification only, and can be made to lie.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from consoles.sharedmem.regions import Mapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from consoles.sharedmem.regions import Region

#: Seconds a driver waits for the other side; Linux waits for ever.
PATIENCE = 10.0


class Wire:
    """What lies between two sides: memory, state words, doorbells."""

    def __init__(self, size: int = 0xF000) -> None:
        self.memory = bytearray(size)
        self.states = [0, 0]
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        #: doorbells with a vector that INTx does not have: the hypervisor drops them
        self.dropped = 0

    def side(self, number: int) -> WireDevice:
        """Return one side's device."""
        return WireDevice(self, number)

    def close(self) -> None:
        """End both sides."""
        for fd in self.bells:
            os.close(fd)


class WireDevice:
    """One side; a ``consoles.sharedmem.ivshmem.Device``."""

    def __init__(self, wire: Wire, number: int) -> None:
        self.id = number
        self.rw: Region = Mapping(wire.memory)
        self._wire = wire

    def state(self, peer: int) -> int:
        """Return a peer's state."""
        return self._wire.states[peer]

    def set_state(self, value: int) -> None:
        """Set ours, which interrupts the other."""
        self._wire.states[self.id] = value
        os.eventfd_write(self._wire.bells[1 - self.id], 1)

    def ring(self, peer: int, vector: int) -> None:
        """Interrupt the other, if it has such a vector."""
        if vector != 0:
            self._wire.dropped += 1
        elif peer == 1 - self.id:
            os.eventfd_write(self._wire.bells[peer], 1)

    def fileno(self) -> int:
        """Return the descriptor of our interrupts."""
        return self._wire.bells[self.id]

    def answer(self) -> None:
        """Take an interrupt."""
        try:
            os.eventfd_read(self._wire.bells[self.id])
        except BlockingIOError:
            return

    def close(self) -> None:
        """Leave: our state falls to 0, as the driver makes it."""
        self._wire.states[self.id] = 0
        os.eventfd_write(self._wire.bells[1 - self.id], 1)
        self.rw.close()


class Side(Protocol):
    """What a driver needs of its device."""

    id: int
    rw: Region

    def state(self, peer: int) -> int:
        """Return a peer's state."""
        ...

    def set_state(self, value: int) -> None:
        """Set ours."""
        ...

    def ring(self, peer: int, vector: int) -> None:
        """Interrupt the other."""
        ...


class Offered(NamedTuple):
    """What a descriptor says of a buffer; ``after``: the descriptor that goes on with the chain."""

    offset: int
    length: int
    flags: int = 0
    after: int = 0


class ConsoleDriver:
    """The guest's console driver.

    :ivar size: rows and columns it was told.
    """

    #: per queue: descriptors, driver part, device part, and the first of its buffers
    PARTS = ((0x200, 0x280, 0x2C0, 0x1000), (0x400, 0x480, 0x4C0, 0x6000))
    LENGTH = 0x400

    def __init__(self, device: Side) -> None:
        self.device = device
        self.rw = device.rw
        self.queue_size = 0
        self.size = (0, 0)
        self.features = 0
        self._made = [0, 0]
        self._taken = [0, 0]
        self._unread = b""

    async def until(self, condition: Callable[[], bool]) -> None:
        """Spin until the device has acted, as the driver does."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # nobody would set an event: the device is on the far side
                await asyncio.sleep(0)

    async def write_register(self, offset: int, value: bytes) -> None:
        """Write a register as the specification says, and wait until the device has seen it."""
        self.rw.write(offset, value)
        self.rw.store(0x08, offset)
        self.device.ring(1 - self.device.id, 0)
        await self.until(lambda: self.rw.load(0x08) == 0)

    async def _status(self, value: int) -> None:
        await self.write_register(0x44, struct.pack("<I", value))

    async def probe(self, accept: int = 0x13) -> None:
        """Bring the console up."""
        if self.device.state(1 - self.device.id) != 1:
            raise ConnectionError("backend not ready")
        self.device.set_state(1)
        assert self.rw.load(0) == 1
        await self._status(0)
        await self._status(1)
        await self._status(3)
        for half in (1, 0):
            await self.write_register(0x10, struct.pack("<I", half))
            self.features |= self.rw.load(0x0C) << 32 * half
        for half, value in ((1, accept), (0, 1)):
            await self.write_register(0x18, struct.pack("<I", half))
            await self.write_register(0x14, struct.pack("<I", value))
        await self._status(0xB)
        if not self.rw.load(0x44) & 8:
            raise ConnectionError("features refused")
        cols, rows = struct.unpack("<HH", self.rw.read(0x4C, 4))
        self.size = (rows, cols)
        for number, (desc, driver, device, _) in enumerate(self.PARTS):
            await self.write_register(0x1C, struct.pack("<I", number))
            self.queue_size, vector = struct.unpack("<HH", self.rw.read(0x20, 4))
            assert vector == 0  # INTx
            self.rw.write(desc, bytes(0x100))
            await self.write_register(0x20, struct.pack("<H", self.queue_size))
            await self.write_register(0x24, struct.pack("<H", 0))
            await self.write_register(0x28, struct.pack("<Q", desc))
            await self.write_register(0x30, struct.pack("<Q", driver))
            await self.write_register(0x38, struct.pack("<Q", device))
            await self.write_register(0x26, struct.pack("<H", 1))
        self._made = [0, 0]
        self._taken = [0, 0]
        for slot in range(self.queue_size):
            self.offer(0, slot, Offered(self.PARTS[0][3] + slot * self.LENGTH, self.LENGTH, 2))
        await self._status(0xF)

    def offer(self, queue: int, slot: int, buffer: Offered) -> None:
        """Make one descriptor available; nothing is checked, so that tests can lie."""
        desc, driver, _, _ = self.PARTS[queue]
        self.rw.write(desc + 16 * slot, struct.pack("<QIHH", *buffer))
        self.rw.write(driver + 4 + 2 * (self._made[queue] % self.queue_size), struct.pack("<H", slot))
        self._made[queue] = (self._made[queue] + 1) & 0xFFFF
        self.rw.write(driver + 2, struct.pack("<H", self._made[queue]))
        self.device.ring(1 - self.device.id, 0)

    def _used(self, queue: int) -> tuple[int, int] | None:
        _, _, device, _ = self.PARTS[queue]
        (index,) = struct.unpack("<H", self.rw.read(device + 2, 2))
        if index == self._taken[queue]:
            return None
        slot, length = struct.unpack("<II", self.rw.read(device + 4 + 8 * (self._taken[queue] % self.queue_size), 8))
        self._taken[queue] = (self._taken[queue] + 1) & 0xFFFF
        return slot, length

    async def print(self, data: bytes) -> None:
        """Send as hvc does: one buffer, then spin until the device has taken it."""
        at = self.PARTS[1][3]
        for start in range(0, len(data), self.LENGTH):
            piece = data[start : start + self.LENGTH]
            self.rw.write(at, piece)
            self.offer(1, 0, Offered(at, len(piece)))
            await self.until(lambda: self._used(1) is not None)

    def read(self) -> bytes:
        """Return what came, and make the buffers available again."""
        data = b""
        while (used := self._used(0)) is not None:
            slot, length = used
            at = self.PARTS[0][3] + slot * self.LENGTH
            data += self.rw.read(at, length)
            self.offer(0, slot, Offered(at, self.LENGTH, 2))
        return data
