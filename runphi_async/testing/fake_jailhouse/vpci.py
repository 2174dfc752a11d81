# SPDX-License-Identifier: Apache-2.0
"""Shared memory devices (ivshmem) of the fake: what the root system has of them, and the cells' side.

For the root system a device is a directory ``dev/uioN`` as ``consoles.sharedmem.ivshmem.UioDevice`` takes one. The
hypervisor's part, which is routing doorbells and keeping the state table, is played by the process of the cell that has
the device too; so a device works between the root system and one cell at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from typing import TYPE_CHECKING, Final

from backends.jailhouse.model import PAGE, PciType, Protocol
from consoles.sharedmem.ivshmem import REG_DOORBELL, REG_ID, REG_INT_CONTROL, REG_MAX_PEERS, REG_STATE
from consoles.sharedmem.regions import open_region

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends.jailhouse.model import Cell, PciDevice
    from consoles.sharedmem.regions import Region
    from runphi_async.testing.fake_jailhouse.place import Place

_STORE: Final = struct.Struct("<II")
_EVENT: Final = struct.pack("<I", 1)


def show(place: Place, root: Cell) -> None:
    """Make the root system's devices: the driver uio_ivshmem is bound to all but networks."""
    number = 0
    for device in root.pci_devices:
        if device.type != PciType.IVSHMEM or device.shmem_protocol == Protocol.VETH:
            continue
        folder = place.devices / f"uio{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        registers = bytearray(PAGE)
        struct.pack_into("<I", registers, REG_ID, device.shmem_dev_id)
        struct.pack_into("<I", registers, REG_MAX_PEERS, device.shmem_peers)
        (folder / "registers").write_bytes(registers)
        (folder / "state_table").write_bytes(bytes(PAGE))
        if size := root.memory[device.shmem_regions_start + 1].size:
            (folder / "rw_section").touch()
            os.truncate(folder / "rw_section", size)
        for fifo in ("stores", "interrupts"):
            os.mkfifo(folder / fifo, 0o600)
        (folder / "bdf").write_text(f"{device.bdf}\n")
        number += 1


def hide(place: Place) -> None:
    """Remove them: the virtual PCI host has gone."""
    for folder in place.devices.glob("uio*"):
        shutil.rmtree(folder, ignore_errors=True)


def of_cell(place: Place, cell: Cell) -> Iterator[Side]:
    """Return a cell's side of each device that the root system has as well: what links them is the address."""
    folders = {int((folder / "bdf").read_text()): folder for folder in place.devices.glob("uio*")}
    for device in cell.pci_devices:
        folder = folders.get(device.bdf)
        if device.type == PciType.IVSHMEM and folder is not None and (folder / "rw_section").exists():
            yield Side(folder, device)


class Side:
    """A cell's side of a device, which plays the hypervisor for the root system's.

    :ivar rang: set when the cell is interrupted.
    """

    def __init__(self, folder: Path, device: PciDevice) -> None:
        import asyncio  # costs more than all else that a call of the tool imports, and only a cell's process needs it

        self.id = device.shmem_dev_id
        self.protocol = device.shmem_protocol
        self.rw: Region = open_region(f"{folder}/rw_section")
        self.rang = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._table = open_region(f"{folder}/state_table")
        registers = open_region(f"{folder}/registers")
        self._root = registers.load(REG_ID)
        registers.close()
        self._path = folder / "stores"
        self._stores = -1
        self._events = os.open(folder / "interrupts", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._enabled = self._pending = False
        self._listen()

    def _listen(self) -> None:
        self._stores = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._stores, self._stored)

    def _stored(self) -> None:
        """The root system stored into its registers, or its last descriptor is closed."""
        data = os.read(self._stores, 4096)
        for offset, value in _STORE.iter_unpack(data):
            if offset == REG_INT_CONTROL:
                self._enabled = bool(value & 1)
                if self._enabled and self._pending:
                    self._interrupt()
            elif offset == REG_DOORBELL and value == self.id << 16:  # vector 0: INTx has no other
                self.rang.set()
            elif offset == REG_STATE:
                self._table.store(4 * self._root, value)
                self.rang.set()
        if not data:  # as the driver's release does
            self._table.store(4 * self._root, 0)
            self.rang.set()
            self._enabled = self._pending = False
            self._leave()
            self._listen()

    def _leave(self) -> None:
        self._loop.remove_reader(self._stores)
        os.close(self._stores)

    def _interrupt(self) -> None:
        """Interrupt the root system once; it asks to be interrupted again."""
        if not self._enabled:
            self._pending = True
            return
        self._enabled = self._pending = False
        with contextlib.suppress(BlockingIOError):
            os.write(self._events, _EVENT)

    def state(self, peer: int) -> int:
        """Return a peer's state word."""
        return self._table.load(4 * peer)

    def set_state(self, value: int) -> None:
        """Set the cell's own state word, which interrupts the root system."""
        if self._table.load(4 * self.id) != value:
            self._table.store(4 * self.id, value)
            self._interrupt()

    def ring(self, peer: int, vector: int) -> None:
        """Interrupt a peer, if it has such a vector."""
        if peer == self._root and vector == 0:
            self._interrupt()

    def close(self) -> None:
        """The cell is destroyed."""
        self.set_state(0)
        self._leave()
        os.close(self._events)
        self._table.close()
        self.rw.close()
