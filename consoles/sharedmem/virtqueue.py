# SPDX-License-Identifier: Apache-2.0
"""The device's side of a split virtqueue in shared memory, for a driver that is not trusted.

Virtio 1.2, section 2.7. Every index and descriptor is copied once and checked against the memory before use; a chain is
at most as long as the queue. What does not fit raises ``Broken``, and the queue is not used any more until it is reset.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from consoles.sharedmem.regions import fence
from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from consoles.sharedmem.regions import Region

F_NEXT: Final = 1
F_WRITE: Final = 2
F_INDIRECT: Final = 4
NO_INTERRUPT: Final = 1
_DESCRIPTOR: Final = struct.Struct("<QIHH")


class Broken(RunphiError):
    """Raised when the driver's part of a queue makes no sense."""


class Buffer(NamedTuple):
    """One piece of memory of a chain; ``writable`` by the device."""

    offset: int
    length: int
    writable: bool


class Chain(NamedTuple):
    """What the driver made available at once, under its ``head``."""

    head: int
    buffers: tuple[Buffer, ...]


class Queue:
    """One virtqueue; the three parts lie at offsets of ``region``.

    :param resume: another device served it before us and gave back all it had taken: go on behind that.
    :raises Broken: they do not fit into it.
    """

    def __init__(self, region: Region, size: int, desc: int, driver: int, device: int, *, resume: bool = False) -> None:
        if not 0 < size <= 1024 or size & (size - 1):
            raise Broken(f"a queue of {size} entries")
        parts = (
            ("descriptors", desc, 16 * size, 16),
            ("driver", driver, 6 + 2 * size, 2),
            ("device", device, 6 + 8 * size, 4),
        )
        for name, offset, length, alignment in parts:
            if offset % alignment or offset + length > region.size:
                raise Broken(f"its {name} part at {offset:#x} does not fit")
        self._region = region
        self._size = size
        self._desc = desc
        self._driver = driver
        self._device = device
        self._seen = self._used = self._load16(device + 2) if resume else 0
        if not resume:
            region.store(device, 0)

    def _load16(self, offset: int) -> int:
        return self._region.load(offset & ~3) >> (8 * (offset & 2)) & 0xFFFF

    def waiting(self) -> int:
        """Return how many chains the driver has made available."""
        count = (self._load16(self._driver + 2) - self._seen) & 0xFFFF
        if count > self._size:
            raise Broken(f"{count} entries in a queue of {self._size}")
        return count

    def peek(self) -> Chain | None:
        """Return the oldest chain; it stays until ``done``."""
        if self.waiting() == 0:
            return None
        fence()
        head = self._load16(self._driver + 4 + 2 * (self._seen % self._size))
        buffers = []
        index, left = head, self._region.size
        for _ in range(self._size):
            if index >= self._size:
                raise Broken(f"descriptor {index} of {self._size}")
            offset, length, flags, after = _DESCRIPTOR.unpack(self._region.read(self._desc + 16 * index, 16))
            if flags & F_INDIRECT:
                raise Broken("an indirect descriptor, which was not offered")
            left -= length
            if offset + length > self._region.size or left < 0:
                raise Broken(f"a buffer of {length} bytes at {offset:#x}")
            buffers.append(Buffer(offset, length, bool(flags & F_WRITE)))
            if not flags & F_NEXT:
                return Chain(head, tuple(buffers))
            index = after
        raise Broken("a chain without end")

    def done(self, chain: Chain, written: int) -> None:
        """Give the oldest chain back; ``written`` bytes of it were filled."""
        at = self._device + 4 + 8 * (self._used % self._size)
        self._region.store(at, chain.head)
        self._region.store(at + 4, written)
        fence()
        self._seen = (self._seen + 1) & 0xFFFF
        self._used = (self._used + 1) & 0xFFFF
        self._region.store(self._device, self._used << 16)  # flags 0: the driver is to ring

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to be told of what was given back."""
        return not self._load16(self._driver) & NO_INTERRUPT
