# SPDX-License-Identifier: Apache-2.0
"""Device trees of Linux cells: one made for the board, and what is written into any of them.

Jailhouse has none of its own. An image brings one for the board it was made for, with the CPUs of one particular cell;
:func:`patched` fits it to the cell that was planned. Where the image brings none, :func:`made` describes what every
cell has: CPUs, PSCI, timer, interrupt controller, the serial port it owns and the virtual PCI host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.guest import fdt
from backends.guest.fdt import Node, Tree, cells, texts, wide
from backends.jailhouse.mem import RAM
from runphi_async.board import board as boards
from runphi_async.errors import PlanError, TreeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.jailhouse.plan import CellPlan, Region, SharedDevice
    from runphi_async.board.board import Board, Uart

#: name of a made tree among the plan's files
FILE: Final = "made.dtb"
#: bytes that a made tree has at most, before anything is written into it
MADE_MAX: Final = boards.PAGE
#: "compatible" of the interrupt controllers, and the flags with which their timers interrupt
_GIC: Final = {"gic-v3": ("arm,gic-v3", 4), "gic-400": ("arm,gic-400", 0xF08)}
#: private interrupts of the timer: secure, non-secure, virtual, hypervisor
_TIMERS: Final = (13, 14, 11, 10)
_SPI, _PPI, _EDGE, _LEVEL = 0, 1, 1, 4
_GIC_HANDLE, _CLOCK_HANDLE = 1, 2
#: "compatible" of serial ports and the names of their clocks
_UART: Final = {
    "pl011": (("arm,pl011", "arm,primecell"), ("uartclk", "apb_pclk")),
    "xuartps": (("cdns,uart-r1p12", "xlnx,xuartps"), ("uart_clk", "pclk")),
    "8250": (("ns16550a",), ()),
}
#: nodes with registers that no region of a cell covers: the hypervisor plays these
_PLAYED: Final = ("arm,gic", "arm,cortex-a15-gic", "pci-host-ecam-generic")


# Section: making one


def made(board: Board, cpus: Sequence[int], uart: Uart | None, devices: Sequence[SharedDevice], irq_base: int) -> bytes:
    """Return a tree for a cell of this board.

    :param uart: the serial port that the cell has alone.
    :param irq_base: first interrupt of the cell's virtual PCI host, as the hypervisor counts.
    :raises PlanError: the board file says too little.
    """
    about = board.devicetree
    if about is None:
        raise PlanError(f"cannot make a device tree: board '{board.name}' does not describe one")
    compatible, timer_flags = _GIC[about.gic]
    root = Node("", {"#address-cells": cells(2), "#size-cells": cells(2), "interrupt-parent": cells(_GIC_HANDLE)})
    root.props["model"] = texts(f"Jailhouse cell on {board.title or board.name}")
    root.make("hypervisor", compatible=texts("jailhouse,cell"))
    processors = root.make("cpus")
    processors.props |= {"#address-cells": cells(2), "#size-cells": cells(0)}
    for cpu in cpus:
        node = processors.make(f"cpu@{cpu:x}", device_type=texts("cpu"), compatible=texts("arm,armv8"))
        node.props |= {"reg": cells(0, cpu), "enable-method": texts("psci")}
    root.make("psci", compatible=texts("arm,psci-0.2"), method=texts(about.psci))
    interrupts = [number for timer in _TIMERS for number in (_PPI, timer, timer_flags)]
    root.make("timer", compatible=texts("arm,armv8-timer"), interrupts=cells(*interrupts))
    gic = root.make(f"interrupt-controller@{about.gic_reg[0].start:x}", compatible=texts(compatible))
    gic.props |= {"#interrupt-cells": cells(3), "interrupt-controller": b"", "phandle": cells(_GIC_HANDLE)}
    gic.props["reg"] = b"".join(wide(part.start, 2) + wide(int(part.size), 2) for part in about.gic_reg)
    if uart is not None:
        _serial(root, uart, about.uart_clock)
    if devices and about.pci:
        _pci(root, about.pci[0], about.pci[1], irq_base)
    return fdt.encode(Tree(root))


def _serial(root: Node, uart: Uart, clock: int) -> None:
    if uart.type not in _UART:
        raise PlanError(
            f"cannot make a device tree with {uart.name}: there is no recipe for serial ports of type {uart.type}",
            'bring a tree: "dtb" of the image, or jailhouse.dtb',
        )
    compatible, clocks = _UART[uart.type]
    name = f"serial@{uart.address:x}"
    node = root.make(name, compatible=texts(*compatible))
    node.props["reg"] = wide(uart.address, 2) + wide(int(uart.size), 2)
    if uart.irq:
        node.props["interrupts"] = cells(_SPI, uart.irq - boards.FIRST_SPI, _LEVEL)
    if clocks:
        fixed = root.make("clock", compatible=texts("fixed-clock"))
        fixed.props |= {"#clock-cells": cells(0), "clock-frequency": cells(clock), "phandle": cells(_CLOCK_HANDLE)}
        node.props |= {"clocks": cells(_CLOCK_HANDLE, _CLOCK_HANDLE), "clock-names": texts(*clocks)}
    else:
        node.props |= {"clock-frequency": cells(clock), "reg-io-width": cells(4 if uart.regdist == 4 else 1)}
        node.props["reg-shift"] = cells(2 if uart.regdist == 4 else 0)
    root.make("aliases", serial0=texts(f"/{name}"))


def _pci(root: Node, space: boards.Memory, window: boards.Memory, irq_base: int) -> None:
    node = root.make(f"pci@{space.start:x}", compatible=texts("pci-host-ecam-generic"), device_type=texts("pci"))
    node.props |= {"#address-cells": cells(3), "#size-cells": cells(2), "#interrupt-cells": cells(1)}
    node.props |= {"bus-range": cells(0, 0), "interrupt-map-mask": cells(0, 0, 0, 7)}
    node.props["interrupt-map"] = b"".join(
        cells(0, 0, 0, pin + 1, _GIC_HANDLE, _SPI, irq_base + pin, _EDGE) for pin in range(boards.PINS_PER_CELL)
    )
    node.props["reg"] = wide(space.start, 2) + wide(int(space.size), 2)
    # 32-bit memory, not prefetchable
    node.props["ranges"] = cells(0x0200_0000) + wide(window.start, 2) * 2 + wide(int(window.size), 2)


# Section: fitting one to a cell


def patched(data: bytes, cell: CellPlan, ramdisk: tuple[int, int] | None) -> bytes:
    """Return a tree with what is true of this cell alone: memory, CPUs, command line, RAM disk.

    Serial ports and other devices whose registers the cell does not have are taken out: a kernel that touches one
    loses its CPU.

    :param ramdisk: first address, and first address behind it.
    :raises TreeError: it is no tree for a Linux cell.
    """
    tree = fdt.parse(data)
    root = tree.root
    address, size = (root.number(f"#{kind}-cells") for kind in ("address", "size"))
    if address not in (1, 2) or size not in (1, 2):
        raise TreeError("cannot use the device tree: it does not say how long addresses are", _FOR_CELLS)
    own = [part for part in root.children if _is_own(part, cell.regions, address)]
    root.children = own
    _set_cpus(root, cell.cpus)
    _set_interrupts(root, cell)
    ram = [region for region in cell.regions if _is_ram(region)]
    memory = Node(f"memory@{ram[0].virt:x}", {"device_type": texts("memory")})
    memory.props["reg"] = b"".join(wide(part.virt, address) + wide(part.size, size) for part in ram)
    root.children.insert(0, memory)
    chosen = root.child("chosen") or root.make("chosen")
    chosen.props["bootargs"] = texts(cell.cmdline)
    for name in ("linux,initrd-start", "linux,initrd-end"):
        chosen.props.pop(name, None)
    if ramdisk is not None:
        chosen.props["linux,initrd-start"] = wide(ramdisk[0], address)
        chosen.props["linux,initrd-end"] = wide(ramdisk[1], address)
    tree.reserved = [part for part in tree.reserved if any(_covers(region, part[0]) for region in ram)]
    return fdt.encode(tree)


_FOR_CELLS: Final = "configs/arm64/dts of Jailhouse has trees for cells of many boards"


def _is_ram(region: Region) -> bool:
    """The loader's memory at address 0 is none of the kernel's."""
    return region.what == RAM


def _covers(region: Region, address: int) -> bool:
    return region.virt <= address < region.virt + region.size


def _is_own(node: Node, regions: Sequence[Region], address_cells: int) -> bool:
    """Whether a node of the first level stays: not the memory of another cell, nor a device of somebody else."""
    if node.name.partition("@")[0] == "memory":
        return False
    compatible, reg = node.texts("compatible"), node.props.get("reg", b"")
    if len(reg) < 4 * address_cells or any(word.startswith(_PLAYED) for word in compatible):
        return True
    start = int.from_bytes(reg[: 4 * address_cells], "big")
    return any(_covers(region, start) for region in regions)


def _set_cpus(root: Node, cpus: Sequence[int]) -> None:
    """Leave the cell's CPUs; one that the tree does not know is made like the first."""
    node = root.child("cpus")
    known = [child for child in node.children if child.name.startswith("cpu@")] if node is not None else []
    if node is None or not known:
        raise TreeError("cannot use the device tree: it has no CPUs", _FOR_CELLS)
    count = node.number("#address-cells") or 1
    by_number = {int.from_bytes(child.props.get("reg", b""), "big"): child for child in known}
    others = [child for child in node.children if child not in known and child.name != "cpu-map"]
    made = []
    for cpu in cpus:
        like = by_number.get(cpu) or Node("", {key: value for key, value in known[0].props.items() if key != "phandle"})
        made.append(Node(f"cpu@{cpu:x}", {**like.props, "reg": wide(cpu, count)}, list(like.children)))
    node.children = [*made, *others]


def _set_interrupts(root: Node, cell: CellPlan) -> None:
    """Give the virtual PCI host the cell's interrupts: another cell of the same image has others."""
    for node in root.children:
        data = node.props.get("interrupt-map", b"")
        entry = len(data) // boards.PINS_PER_CELL
        if not cell.devices or "pci-host-ecam-generic" not in node.texts("compatible") or entry < 32:
            continue
        made = b""
        for pin in range(boards.PINS_PER_CELL):
            old = data[pin * entry : (pin + 1) * entry]  # at its end: kind, number, flags
            made += old[:-8] + cells(cell.vpci_irq_base + pin) + old[-4:]
        node.props["interrupt-map"] = made
