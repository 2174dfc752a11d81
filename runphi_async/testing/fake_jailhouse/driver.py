# SPDX-License-Identifier: Apache-2.0
"""What the kernel's driver and the hypervisor do with an ioctl: their checks, in their order, and their side effects.

Called with the driver's mutex held. Where the real machine hangs, so does this one.
"""

from __future__ import annotations

from errno import E2BIG, EBUSY, EEXIST, EINVAL, ENOENT, EPERM
from typing import TYPE_CHECKING, Any, Final

from backends.jailhouse import codec, layout, model
from backends.jailhouse.model import Arch, CellFlag, Mem, PciType, System, SystemFlag
from runphi_async.errors import CellError
from runphi_async.testing.fake_jailhouse import link, rcpus, spawning, vpci
from runphi_async.testing.fake_jailhouse.place import Errno
from runphi_async.testing.fake_jailhouse.ring import Ring
from runphi_async.testing.fake_jailhouse.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.jailhouse.model import Cell
    from runphi_async.testing.fake_jailhouse.asked import Image, Target
    from runphi_async.testing.fake_jailhouse.place import Place

#: What the module was built for, besides a dialect.
ARCHITECTURE: Final = Arch.ARM64
REVISION: Final = 14
#: Messages to cells with an active communication region.
SHUTDOWN_REQUEST: Final = 1
RECONFIG_COMPLETED: Final = 2
#: Page figures as recorded with one root cell, and per cell without and with a virtual PCI device.
POOL: Final = 994
ROOT_PAGES: Final = 59
CELL_PAGES: Final = 13
_LOADABLE: Final = Mem.WRITE | Mem.LOADABLE


class Driver:
    """The driver, as one ioctl finds it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._ring = Ring(place)
        self._tree = Tree(place)
        self._state = place.state()
        self._dialect = layout.DIALECTS[place.dialect]

    @property
    def _cells(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = self._state["cells"]
        return cells

    @property
    def _root(self) -> dict[str, Any]:
        return self._cells[0]

    def name_of(self, target: Target) -> str | None:
        """Return the name of a cell, None if there is none."""
        record = self._find(target) if self._state.get("enabled") else None
        return str(record["name"]) if record else None

    # Section: enable and disable

    def enable(self, data: bytes) -> None:
        """Load the hypervisor below Linux."""
        head = data[: codec.HEAD_SIZE].ljust(codec.HEAD_SIZE, b"\0")
        if head[:5] != b"JHSYS":
            self._refuse("Not a system configuration")
        if int.from_bytes(head[6:8], "little") != REVISION:
            self._refuse("Configuration revision mismatch")
        if head[5] != ARCHITECTURE:
            self._refuse("Configuration architecture mismatch")
        if self._state.get("enabled"):
            raise Errno(EBUSY)
        if not self._place.firmware.exists():
            self._place.dmesg(" jailhouse: firmware: failed to load jailhouse.bin (-2)")
            self._place.dmesg(" jailhouse: Direct firmware load for jailhouse.bin failed with error -2")
            self._place.dmesg("jailhouse: Missing hypervisor image jailhouse.bin")
            raise Errno(ENOENT)
        self._place.dmesg(" jailhouse: firmware: direct-loading firmware jailhouse.bin")
        system = self._system(data)
        self._boot(system, data)
        self._place.dmesg("The Jailhouse is opening.")

    def _system(self, data: bytes) -> System:
        try:
            config = codec.decode(data, self._dialect.name)
        except CellError:
            raise Errno(EINVAL) from None
        assert isinstance(config, System)
        return config

    def _boot(self, system: System, data: bytes) -> None:
        root, online = system.root_cell, self._state["online"]
        self._ring.open(readable=bool(system.flags & SystemFlag.VIRTUAL_DEBUG_CONSOLE))
        say = self._ring.write
        say(f"\nInitializing Jailhouse hypervisor v0.12 (324-ge57d1eff-dirty) on CPU {online[0]}\n")
        say("Code location: 0x0000ffffc0200800\n")
        say(f"Page pool usage after early setup: mem 39/{POOL}, remap 0/131072\nInitializing processors:\n")
        cpus = list(model.bits(root.cpu_set))
        for cpu in online:
            say(f" CPU {cpu}... {'OK' if cpu in cpus else 'FAILED'}\n")
        if cpus != online:
            self._ring.close()
            raise Errno(EINVAL)
        for unit in ("irqchip", "ARM SMMU v3", "ARM SMMU", "PVU IOMMU", "PCI"):
            say(f"Initializing unit: {unit}\n")
        self._announce(root)
        say(f"Page pool usage after late setup: mem {ROOT_PAGES}/{POOL}, remap 144/131072\nActivating hypervisor\n")
        (self._place.run / "system.cell").write_bytes(data)
        self._state |= {
            "enabled": True,
            "offlined": [],
            "pages": ROOT_PAGES,
            "cells": [{"id": 0, "name": root.name, "cpus": cpus, "rcpus": list(model.bits(root.rcpu_set))}],
        }
        self._save()
        vpci.show(self._place, root)
        self._tree.enabled(POOL, ROOT_PAGES)
        self._tree.add(0, root.name, cpus, None)
        self._show_rcpus()

    def disable(self) -> None:
        """Destroy all cells, then let Linux have the machine back."""
        self._need_enabled()
        for record in self._cells[1:]:
            try:
                self._destroy(record)
            except Errno:
                self._place.dmesg(f'Jailhouse: failed to destroy cell "{record["name"]}"')
                raise
        if len(self._state["online"]) != len(self._root["cpus"]):
            raise Errno(EBUSY)
        self._ring.write("Shutting down hypervisor\n")
        for cpu in self._root["cpus"]:
            self._ring.write(f" Releasing CPU {cpu}\n")
        self._ring.close()
        vpci.hide(self._place)
        self._tree.disabled()
        self._state |= {"enabled": False, "cells": []}
        self._save()
        self._place.dmesg("The Jailhouse was closed.")

    # Section: cells

    def create(self, data: bytes) -> None:
        """Make a cell."""
        if len(data) < self._dialect.header_size or data[:5] != b"JHCLL":
            self._refuse("Not a cell configuration")
        if int.from_bytes(data[6:8], "little") != REVISION:
            self._refuse("Configuration revision mismatch")
        if data[5] != ARCHITECTURE:
            # The real driver forgets to set an error here: success, and no cell.
            self._place.dmesg("jailhouse: Configuration architecture mismatch")
            return
        self._need_enabled()
        name = data[8 : 8 + model.NAME_MAX].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        if any(record["name"] == name for record in self._cells):
            raise Errno(EEXIST)
        cell = self._cell(data)
        cpus = set(model.bits(cell.cpu_set))
        if not cpus <= set(self._root["cpus"]):
            raise Errno(EBUSY)
        taken = [cpu for cpu in sorted(cpus) if cpu in self._state["online"]]
        self._take(taken)
        rcpus.take(self._place, self._root, model.bits(cell.rcpu_set))
        try:
            self._may_reconfigure(None)
            if codec.encoded_size(cell) > 16 * model.PAGE:
                raise Errno(E2BIG)
        except Errno:
            self._give_back(taken)
            raise
        self._made(cell, name, sorted(cpus), taken)

    def _cell(self, data: bytes) -> Cell:
        try:
            config = codec.decode(data, self._dialect.name)
        except CellError:
            # The real driver reads beyond the buffer, and the whole machine stands still without a word.
            self._place.hang_machine()
        assert not isinstance(config, System)
        return config

    def _made(self, cell: Cell, name: str, cpus: list[int], taken: list[int]) -> None:
        number = next(n for n in range(len(self._cells) + 1) if all(record["id"] != n for record in self._cells))
        pages = CELL_PAGES + any(device.type == PciType.IVSHMEM for device in cell.pci_devices)
        flags = cell.flags | (cell.flags & CellFlag.VIRTUAL_CONSOLE_ACTIVE) >> 1
        self._announce(cell)
        self._root["cpus"] = [cpu for cpu in self._root["cpus"] if cpu not in cpus]
        self._state["offlined"] += taken
        self._state["pages"] += pages
        (self._place.run / f"{number}.cell").write_bytes(codec.encode(cell))
        record = {"id": number, "name": name, "cpus": cpus, "flags": int(flags), "loadable": False, "pages": pages}
        record |= {"rcpus": list(model.bits(cell.rcpu_set)), "loaded": False}
        self._tree.add(number, name, cpus, self._root)
        self._show_rcpus(record)
        spawning.spawn(self._place, number)
        self._tell_others(None)
        self._cells.append(record)
        self._save()
        self._ring.write(f'Created cell "{name}"\n')
        self._pages("creation")
        self._place.dmesg(f'Created Jailhouse cell "{name}"')

    def load(self, target: Target, images: Sequence[Image], remote: Sequence[rcpus.RcpuImage] = ()) -> None:
        """Make a cell loadable, which stops it, and write images into its memory; without images: shut it down."""
        record = self._manage(target)
        self._ask_to_stop(record)
        link.call(self._place, record["id"], "park", loadable=record["loadable"])
        if not record["loadable"]:
            record["loadable"] = True
            self._save()
            self._ring.write(f'Cell "{record["name"]}" can be loaded\n')
        for part in remote:
            rcpus.load(self._place, record, part)
        self._save()
        cell = self._config(record)
        for image in images:
            self._write(cell, image)

    def _write(self, cell: Cell, image: Image) -> None:
        if not image.data:
            return
        region = next((r for r in cell.memory if r.virt_start <= image.address < r.virt_start + r.size), None)
        if region is None:
            raise Errno(EINVAL)
        offset = image.address - region.virt_start
        if len(image.data) > region.size - offset or region.flags & _LOADABLE != _LOADABLE:
            raise Errno(EINVAL)
        place = region.phys_start + offset
        if not self._is_roots(place, len(image.data)):
            cpu = self._root["cpus"][-1]
            self._ring.write(f"Unhandled data write at {place:#x}(1)\n\nFATAL: unhandled trap (exception class 0x24)\n")
            self._ring.write(f'\nParking CPU {cpu} (Cell: "{self._root["name"]}")\n')
            self._place.hang_caller()
        with open(self._place.memory, "r+b") as memory:
            memory.seek(place)
            memory.write(image.data)

    def _is_roots(self, start: int, size: int) -> bool:
        system = codec.decode((self._place.run / "system.cell").read_bytes(), self._dialect.name)
        assert isinstance(system, System)
        at = start
        for region in sorted(system.root_cell.memory, key=lambda region: region.phys_start):
            if region.phys_start <= at < region.phys_start + region.size:
                at = region.phys_start + region.size
        return at >= start + size

    def start(self, target: Target) -> None:
        """Reset a cell's CPUs."""
        record = self._manage(target)
        self._ask_to_stop(record)
        record["loadable"] = False
        self._save()
        self._ring.write(f'Started cell "{record["name"]}"\n')
        link.call(self._place, record["id"], "start")

    def destroy(self, target: Target) -> None:
        """Take a cell away."""
        self._destroy(self._manage(target))

    def _destroy(self, record: dict[str, Any]) -> None:
        self._may_reconfigure(record)
        self._ask_to_stop(record)
        self._ring.write(f'Closing cell "{record["name"]}"\n')
        link.call(self._place, record["id"], "close")
        self._forget(record)
        self._pages("destruction")
        self._tell_others(record)
        back = [cpu for cpu in record["cpus"] if cpu in self._state["offlined"]]
        self._give_back(back)
        self._state["offlined"] = [cpu for cpu in self._state["offlined"] if cpu not in back]
        self._save()
        self._place.dmesg(f'Destroyed Jailhouse cell "{record["name"]}"')

    def _forget(self, record: dict[str, Any]) -> None:
        self._cells.remove(record)
        self._root["cpus"] = sorted({*self._root["cpus"], *record["cpus"]})
        self._state["pages"] -= record["pages"]
        rcpus.give_back(self._place, self._root, record)
        self._save()
        self._show_rcpus()
        self._tree.remove(record["id"], record["cpus"], self._root)

    def happen(self, name: str, what: dict[str, Any]) -> None:
        """Do to a cell what its guest or a fault would."""
        record = next((record for record in self._cells if record["name"] == name), None)
        if record is None:
            return
        if what.get("vanish"):
            self.vanish(name)
        else:
            link.call(self._place, record["id"], "poke", **what)

    def vanish(self, name: str) -> None:
        """Lose a cell without a word, as when somebody else destroys it."""
        record = next(record for record in self._cells if record["name"] == name)
        link.call(self._place, record["id"], "close")
        self._forget(record)
        self._give_back(record["cpus"])
        self._save()

    # Section: parts

    def _refuse(self, text: str) -> None:
        self._place.dmesg(f"jailhouse: {text}")
        raise Errno(EINVAL)

    def _need_enabled(self) -> None:
        if not self._state.get("enabled"):
            raise Errno(EINVAL)

    def _find(self, target: Target) -> dict[str, Any] | None:
        for record in self._cells:
            if record["id"] == target.id or (target.id is None and record["name"] == target.name):
                return record
        return None

    def _manage(self, target: Target) -> dict[str, Any]:
        self._need_enabled()
        record = self._find(target)
        if record is None:
            raise Errno(ENOENT)
        if record is self._root:
            raise Errno(EINVAL)
        return record

    def _may_reconfigure(self, besides: dict[str, Any] | None) -> None:
        for record in self._cells[1:]:
            if record is not besides and self._tree.state(record["id"]) == "running/locked":
                raise Errno(EPERM)

    def _ask_to_stop(self, record: dict[str, Any]) -> None:
        if not self._ask(record, SHUTDOWN_REQUEST):
            raise Errno(EPERM)
        # The hypervisor suspends the cell before it says anything: no line of the guest comes after this.
        link.call(self._place, record["id"], "halt")

    def _tell_others(self, besides: dict[str, Any] | None) -> None:
        for record in self._cells[1:]:
            if record is not besides:
                self._ask(record, RECONFIG_COMPLETED)

    def _ask(self, record: dict[str, Any], message: int) -> bool:
        """Send a message to a cell; the root cell stands still until it is answered."""
        if record["flags"] & CellFlag.PASSIVE_COMMREG:
            return True
        with self._place.frozen():
            return bool(link.call(self._place, record["id"], "message", message=message))

    def _show_rcpus(self, *others: dict[str, Any]) -> None:
        """Show who has which remote processor; only the Omnivisor has files for that."""
        if self._dialect is layout.OMNIVISOR:
            for record in (self._root, *others):
                self._tree.show_rcpus(record["id"], record["rcpus"])

    def _config(self, record: dict[str, Any]) -> Cell:
        config = codec.decode((self._place.run / f"{record['id']}.cell").read_bytes(), self._dialect.name)
        assert not isinstance(config, System)
        return config

    def _take(self, cpus: Iterable[int]) -> None:
        for cpu in cpus:
            self._place.dmesg(f"psci: CPU{cpu} killed (polled 0 ms)")
        self._set_online(set(self._state["online"]) - set(cpus))

    def _give_back(self, cpus: Iterable[int]) -> None:
        for cpu in cpus:
            self._place.dmesg(f"Detected PIPT I-cache on CPU{cpu}")
            self._place.dmesg(f"CPU{cpu}: Booted secondary processor {cpu:#012x} [0x411fd070]")
        self._set_online({*self._state["online"], *cpus})

    def _set_online(self, cpus: Iterable[int]) -> None:
        self._state["online"] = sorted(cpus)
        self._save()
        self._place.show_cpus()

    def _announce(self, cell: Cell) -> None:
        for device in cell.pci_devices:
            if device.type != PciType.IVSHMEM:
                continue
            slot = f"{device.bdf >> 8:02x}:{device.bdf >> 3 & 31:02x}.{device.bdf & 7}"
            self._ring.write(f'Adding virtual PCI device {slot} to cell "{cell.name}"\n')
            peers = [name for name, config in self._configs() if any(d.bdf == device.bdf for d in config.pci_devices)]
            if peers:
                self._ring.write("Shared memory connection established, peer cells:\n")
                self._ring.write("".join(f' "{name}"\n' for name in peers))

    def _configs(self) -> Iterable[tuple[str, Cell]]:
        if not self._state.get("enabled"):
            return
        system = codec.decode((self._place.run / "system.cell").read_bytes(), self._dialect.name)
        assert isinstance(system, System)
        yield self._root["name"], system.root_cell
        for record in self._cells[1:]:
            yield record["name"], self._config(record)

    def _pages(self, event: str) -> None:
        pages = self._state["pages"]
        self._ring.write(f"Page pool usage after cell {event}: mem {pages}/{POOL}, remap 144/131072\n")
        self._tree.pages(pages)

    def _save(self) -> None:
        self._place.write_state(self._state)
