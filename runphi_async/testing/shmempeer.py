# SPDX-License-Identifier: Apache-2.0
"""The guest's side of a shared-memory channel in Python, for tests and for trying out: honest, and made to be bent.

It is written from docs/reference/shared-memory.md and shares no code with ``consoles.sharedmem.shmem``, so that a
mistake in one shows against the other. examples/channels/runphi_channel.h is the same in C.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consoles.sharedmem.regions import Region


class Peer:
    """An honest guest on a channel.

    :ivar at: offsets of the guest's words, for tests that write nonsense there.
    """

    GENERATION, UP_HEAD, DOWN_TAIL, STATE = 0x80, 0x84, 0x88, 0x8C

    def __init__(self, region: Region) -> None:
        self.region = region
        magic, version, size, _flags = struct.unpack("<4sIII", region.read(0, 16))
        if magic != b"RPCH" or version != 1 or size > region.size:
            raise ValueError(f"no channel here: {magic!r} version {version} size {size}")
        self.down_at, self.down_size, self.up_at, self.up_size = struct.unpack("<IIII", region.read(0x10, 16))
        self.name = region.read(0x20, 32).partition(b"\0")[0].decode()

    def open(self) -> None:
        """Take part: go on where the indices stand, if they make sense."""
        region = self.region
        if self._waiting(0x84, 0x48) > self.up_size:
            region.store(self.UP_HEAD, region.load(0x48))
        if self._waiting(0x44, 0x88) > self.down_size:
            region.store(self.DOWN_TAIL, region.load(0x44))
        region.store(self.GENERATION, region.load(self.GENERATION) + 1)
        region.store(self.STATE, 1)

    def close(self) -> None:
        """Say that nothing more will come."""
        self.region.store(self.STATE, 2)

    def _waiting(self, head: int, tail: int) -> int:
        return (self.region.load(head) - self.region.load(tail)) % (1 << 32)

    def write(self, data: bytes) -> int:
        """Send what fits; return how much that was."""
        head = self.region.load(self.UP_HEAD)
        room = self.up_size - (head - self.region.load(0x48)) % (1 << 32)
        sent = data[: max(0, min(room, len(data)))]
        for number, byte in enumerate(sent):
            self.region.store_byte(self.up_at + (head + number) % self.up_size, byte)
        self.region.store(self.UP_HEAD, (head + len(sent)) % (1 << 32))
        return len(sent)

    def read(self, limit: int = 1 << 30) -> bytes:
        """Take what has come."""
        tail = self.region.load(self.DOWN_TAIL)
        waiting = min(limit, (self.region.load(0x44) - tail) % (1 << 32))
        data = b"".join(self.region.read(self.down_at + (tail + n) % self.down_size, 1) for n in range(waiting))
        self.region.store(self.DOWN_TAIL, (tail + waiting) % (1 << 32))
        return data
