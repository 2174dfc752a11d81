# SPDX-License-Identifier: Apache-2.0
"""The sysfs tree below /sys/devices/jailhouse: names, contents and modes as recorded.

A plain directory cannot refuse to be read, so without VIRTUAL_DEBUG_CONSOLE the file ``console`` is empty where the
real one answers EPERM; and the counters in ``statistics`` stay zero.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from runphi_async.testing.fake_jailhouse.place import cpu_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from runphi_async.testing.fake_jailhouse.place import Place

#: Counters of an arm64 board.
COUNTERS: Final = ("hypercall", "maintenance", "management", "mmio", "psci", "smccc", "total", "virt_irq", "virt_sgi")
#: Size of the hypervisor's core image.
CORE: Final = 122880
_GLOBAL: Final = ("enabled", "mem_pool_size", "mem_pool_used", "remap_pool_size", "remap_pool_used")
#: Values of a cell's state in its communication region.
STATES: Final = {0: "running", 1: "running/locked", 2: "shut down", 3: "failed", 4: "Comm ABI mismatch"}


class Tree:
    """Writes the tree."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._root = place.sysfs
        self._cells = place.sysfs / "cells"

    def inserted(self) -> None:
        """The module was loaded."""
        self._cells.mkdir(parents=True)
        self._put(self._root, **dict.fromkeys(_GLOBAL, "0\n"), console="")
        self._place.put(self._root / "uevent", "", 0o644)

    def enabled(self, pool: int, used: int) -> None:
        """The hypervisor was enabled."""
        self._put(self._root, mem_pool_size=f"{pool}\n", remap_pool_size="131072\n", remap_pool_used="144\n")
        self.pages(used)
        self._place.put(self._root / "core", bytes(CORE), 0o400)
        self._put(self._root, enabled="1\n")

    def disabled(self) -> None:
        """The hypervisor has gone; its core image stays until the next time."""
        shutil.rmtree(self._cells)
        self._cells.mkdir()
        self._put(self._root, **dict.fromkeys(_GLOBAL, "0\n"), console="")

    def pages(self, used: int) -> None:
        """Show how many pages are in use."""
        self._put(self._root, mem_pool_used=f"{used}\n")

    def add(self, number: int, name: str, cpus: Sequence[int], root: dict[str, Any] | None) -> None:
        """Show a cell; its CPUs' counters move over from the root cell."""
        folder = self._place.root / "tmp" / f"cell-{number}"
        (folder / "statistics").mkdir(parents=True)
        self._counters(folder / "statistics")
        self._put(folder, name=f"{name}\n")
        self._show_cpus(folder, cpus)
        self.show_failed(folder, ())
        self._put(folder, state="running\n" if root is None else "shut down\n")
        folder.rename(self._cells / str(number))
        for cpu in cpus:
            self._move(cpu, 0, number, make=root is None)
        if root is not None:
            self._show_cpus(self._cells / "0", root["cpus"])

    def remove(self, number: int, cpus: Iterable[int], root: dict[str, Any]) -> None:
        """Take a cell away."""
        for cpu in cpus:
            self._move(cpu, number, 0)
        self._show_cpus(self._cells / "0", root["cpus"])
        gone = self._place.root / "tmp" / f"gone-{number}"
        (self._cells / str(number)).rename(gone)
        shutil.rmtree(gone)

    def state(self, number: int) -> str:
        """Return the state of a cell."""
        return (self._cells / str(number) / "state").read_text().rstrip("\n")

    def show_state(self, number: int, state: int, failed: Iterable[int]) -> None:
        """Show a cell's state and which of its CPUs have failed."""
        folder = self._cells / str(number)
        self.show_failed(folder, failed)
        self._put(folder, state=STATES.get(state, "invalid") + "\n")

    def show_failed(self, folder: Path, failed: Iterable[int]) -> None:
        """Show which CPUs of a cell have failed."""
        numbers = list(failed)
        self._put(folder, cpus_failed=_mask(numbers), cpus_failed_list=cpu_list(numbers) + "\n")

    def show_rcpus(self, number: int, rcpus: Iterable[int]) -> None:
        """Show the remote processors of a cell, and that it has no region of an FPGA."""
        numbers, folder = list(rcpus), self._cells / str(number)
        self._put(folder, rcpus_assigned=_mask(numbers), rcpus_assigned_list=cpu_list(numbers) + "\n")
        self._put(folder, fpga_regions_assigned="0\n", fpga_regions_assigned_list="\n")

    def _show_cpus(self, folder: Path, cpus: Iterable[int]) -> None:
        numbers = list(cpus)
        self._put(folder, cpus_assigned=_mask(numbers), cpus_assigned_list=cpu_list(numbers) + "\n")

    def _move(self, cpu: int, old: int, new: int, *, make: bool = False) -> None:
        target = self._cells / str(new) / "statistics" / f"cpu{cpu}"
        if make:
            target.mkdir()
            self._counters(target)
        else:
            (self._cells / str(old) / "statistics" / f"cpu{cpu}").rename(target)

    def _counters(self, folder: Path) -> None:
        self._put(folder, **{f"vmexits_{name}": "0\n" for name in COUNTERS})

    def _put(self, folder: Path, **files: str) -> None:
        for name, text in files.items():
            self._place.put(folder / name, text)


def _mask(cpus: Iterable[int]) -> str:
    return f"{sum(1 << cpu for cpu in cpus):x}\n"
