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
import struct
from typing import TYPE_CHECKING, Final, Protocol

from consoles.errors import SourceError
from consoles.sharedmem import regions
from consoles.sharedmem.regions import open_region

if TYPE_CHECKING:
    from consoles.sharedmem.regions import Region

REG_ID: Final = 0x00
REG_MAX_PEERS: Final = 0x04
REG_INT_CONTROL: Final = 0x08
REG_DOORBELL: Final = 0x0C
REG_STATE: Final = 0x10

STATE_RESET: Final = 0
STATE_READY: Final = 1

#: Where the kernel shows PCI devices.
PCI: Final = "/sys/bus/pci/devices"
#: What is said of a store into a register that is played: offset and value.
_STORE: Final = struct.Struct("<II")


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


class _Registers(Protocol):
    def load(self, offset: int) -> int: ...

    def store(self, offset: int, value: int) -> None: ...

    def close(self) -> None: ...


class UioDevice:
    """A device by ``/dev/uioN``, or by a directory that stands for one (blocks no longer than opening a file does).

    Such a directory holds a file for each of the driver's maps. What a file cannot do is done by two FIFOs: whoever
    stores into a register says so in ``stores`` (offset and value), and reads interrupts from ``interrupts``.

    :raises SourceError: it is none, or cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._open: list[_Registers] = []
        try:
            states, self.rw = self._reach(path)
        except SourceError:
            self.close()
            raise
        self._states = states
        self._registers = self._open[0]
        self.id = self._registers.load(REG_ID)
        self._registers.store(REG_INT_CONTROL, 1)

    def _reach(self, path: str) -> tuple[Region, Region]:
        places = [place_of(path, name) for name in ("registers", "state_table", "rw_section")]
        played = os.path.isdir(path)
        events = f"{path}/interrupts" if played else f"{regions.DEV}/{os.path.basename(path)}"
        try:
            self._fd = os.open(events, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise SourceError(f"cannot open {path}: {exc.strerror}") from exc
        registers = open_region(places[0])
        self._open.append(registers)
        if played:
            self._open[0] = _Played(registers, f"{path}/stores")
        states, rw = open_region(places[1], read_only=True), open_region(places[2])
        self._open += [states, rw]
        return states, rw

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
        for part in self._open:
            part.close()
        self._open.clear()
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


class _Played:
    """Registers in a file: the FIFO beside it tells whoever plays the hypervisor what was stored."""

    def __init__(self, registers: Region, stores: str) -> None:
        self._registers = registers
        try:
            self._fd = os.open(stores, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            registers.close()
            raise SourceError(f"cannot use {stores}: {exc.strerror}") from exc

    def load(self, offset: int) -> int:
        return self._registers.load(offset)

    def store(self, offset: int, value: int) -> None:
        self._registers.store(offset, value)
        with contextlib.suppress(OSError):  # nobody plays it any more: a register takes everything all the same
            os.write(self._fd, _STORE.pack(offset, value))

    def close(self) -> None:
        self._registers.close()
        os.close(self._fd)


class StateTable:
    """Only the table with the peers' state words, for whoever wants to see them come and go.

    To be kept as long as anybody uses the device: the driver may reset our state word with each descriptor that closes.

    :raises SourceError: there is no such device.
    """

    def __init__(self, path: str) -> None:
        self._words = open_region(place_of(path, "state_table"), read_only=True)

    def state(self, peer: int) -> int:
        """Return a peer's state word; 0 while it is not there."""
        return self._words.load(4 * peer)

    def close(self) -> None:
        """Unmap it."""
        self._words.close()


def bell(path: str, peer: int) -> DeviceBell:
    """Open the doorbell of a device for a channel in its memory, and say that we are there.

    :raises SourceError: it is no such device.
    """
    device = UioDevice(path)
    device.set_state(STATE_READY)
    return DeviceBell(device, peer)


def find(pci: str) -> str:
    """Return the uio device of a PCI device such as ``0001:00:02.0``.

    :raises SourceError: the root system has none for it, and how to get one.
    """
    try:
        nodes = os.listdir(f"{PCI}/{pci}/uio")
    except OSError:
        nodes = []
    if not nodes:
        raise SourceError(
            f"cannot find the uio device of PCI device {pci}: bind it to uio_ivshmem (a console's back end by "
            '`echo "110a 4106 110a 4106 ffc003 ffffff" > /sys/bus/pci/drivers/uio_ivshmem/new_id`)'
        )
    return f"/dev/{nodes[0]}"


def place_of(path: str, name: str) -> str:
    """Return where one of a device's maps is, as ``open_region`` wants it.

    :raises SourceError: the device has no such map.
    """
    if os.path.isdir(path):
        found = os.path.exists(f"{path}/{name}")
        place = f"{path}/{name}"
    else:
        known = re.fullmatch(r"/dev/(uio[0-9]+)", path)
        if known is None:
            raise SourceError(f"cannot use {path} as a shared-memory device: write /dev/uioN")
        maps = _maps(known[1])
        found = name in maps
        place = f"{path}:{maps.get(name)}"
    if not found:
        raise SourceError(
            f"cannot use {path}: it has no {name}; bind the device to uio_ivshmem and give it a R/W section"
        )
    return place


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
