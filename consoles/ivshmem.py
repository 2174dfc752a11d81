# SPDX-License-Identifier: Apache-2.0
"""Jailhouse's shared-memory device (ivshmem version 2) as the root cell's driver ``uio_ivshmem`` shows it.

One page of registers, a table with a state word for each peer, and memory that all peers read and write. The registers
are touched by single aligned 32-bit accesses only (``Mapping.load`` and ``store``): anything wider stops the CPU. When
our last descriptor is closed, also by our death, the driver sets our state to 0, and the other side sees it.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final, Protocol

from consoles import regions
from consoles.regions import open_region
from consoles.sources.base import SourceError

if TYPE_CHECKING:
    from consoles.regions import Region

REG_ID: Final = 0x00
REG_MAX_PEERS: Final = 0x04
REG_INT_CONTROL: Final = 0x08
REG_DOORBELL: Final = 0x0C
REG_STATE: Final = 0x10

STATE_RESET: Final = 0
STATE_READY: Final = 1


class Device(Protocol):
    """One side of a shared-memory device.

    :ivar id: which peer we are.
    :ivar rw: the memory that both sides write.
    """

    id: int
    rw: Region

    def state(self, peer: int) -> int:
        """Return a peer's state word; 0 while it is not there."""
        ...

    def set_state(self, value: int) -> None:
        """Set our own state word, which interrupts the others."""
        ...

    def ring(self, peer: int, vector: int) -> None:
        """Interrupt a peer."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that is readable when we were interrupted."""
        ...

    def answer(self) -> None:
        """Take the interrupt, and let the next one come."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


class UioDevice:
    """A device by ``/dev/uioN`` (blocks no longer than opening a file does).

    :raises SourceError: it is none, or cannot be used.
    """

    def __init__(self, path: str) -> None:
        found = re.fullmatch(r"/dev/(uio\d+)", path)
        if found is None:
            raise SourceError(f"cannot use {path} as a shared-memory device: write /dev/uioN")
        self._fd = -1
        maps = _maps(found[1])
        for wanted in ("registers", "state_table", "rw_section"):
            if wanted not in maps:
                raise SourceError(
                    f"cannot use {path}: it has no {wanted}; bind the device to uio_ivshmem and give it a R/W section"
                )
        try:
            self._fd = os.open(f"{regions.DEV}/{found[1]}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise SourceError(f"cannot open {path}: {exc.strerror}") from exc
        self._regions: list[Region] = []
        try:
            for name in ("registers", "state_table", "rw_section"):
                self._regions.append(open_region(f"{path}:{maps[name]}", read_only=name == "state_table"))
        except SourceError:
            self.close()
            raise
        self._registers, self._states, self.rw = self._regions
        self.id = self._registers.load(REG_ID)
        self._registers.store(REG_INT_CONTROL, 1)

    def state(self, peer: int) -> int:
        """Return a peer's state word."""
        return self._states.load(4 * peer)

    def set_state(self, value: int) -> None:
        """Set our own state word."""
        self._registers.store(REG_STATE, value)

    def ring(self, peer: int, vector: int) -> None:
        """Interrupt a peer."""
        self._registers.store(REG_DOORBELL, peer << 16 | vector)

    def fileno(self) -> int:
        """Return the descriptor of interrupts."""
        return self._fd

    def answer(self) -> None:
        """Take the interrupt: the driver delivers one and waits to be asked again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4)
        self._registers.store(REG_INT_CONTROL, 1)

    def close(self) -> None:
        """Unmap and close; the driver resets our state."""
        for region in self._regions:
            region.close()
        self._regions.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DeviceBell:
    """A device's interrupts as the doorbell of a channel (``consoles.sources.shmem.Bell``)."""

    def __init__(self, device: Device, peer: int, vector: int = 0) -> None:
        self._device = device
        self._peer = peer
        self._vector = vector

    def fileno(self) -> int:
        """Return the descriptor of interrupts."""
        return self._device.fileno()

    def answer(self) -> None:
        """Take the interrupt."""
        self._device.answer()

    def ring(self) -> None:
        """Interrupt the guest."""
        self._device.ring(self._peer, self._vector)

    def close(self) -> None:
        """Leave the device."""
        self._device.close()


def bell(path: str, peer: int) -> DeviceBell:
    """Open the doorbell of ``/dev/uioN`` for a channel in its memory, and say that we are there.

    :raises SourceError: it is no such device.
    """
    device = UioDevice(path)
    device.set_state(STATE_READY)
    return DeviceBell(device, peer)


def _maps(name: str) -> dict[str, int]:
    """Return the numbers of a uio device's maps by their names."""
    directory = f"{regions.SYSFS}/{name}/maps"
    found = {}
    try:
        for entry in os.listdir(directory):
            with open(f"{directory}/{entry}/name") as file:
                found[file.read().strip()] = int(entry.removeprefix("map"))
    except OSError as exc:
        raise SourceError(f"cannot use /dev/{name}: {exc.strerror}") from exc
    return found
