# SPDX-License-Identifier: Apache-2.0
"""A board file made of a root configuration: everything that the file given to ``jailhouse enable`` says.

It does not say which RAM the root system leaves alone. That system's ``/proc/iomem`` does: what is RAM of the root
cell and "System RAM" of nobody is free for cells. Without it the board file lacks ``[[memory]]``, and says so.
"""

from __future__ import annotations

import re
from typing import Final

from backends.jailhouse import model
from backends.jailhouse.model import Mem
from runphi_async.board import ranges
from runphi_async.board.board import PAGE, PINS_PER_CELL
from runphi_async.board.iomem import system_ram
from runphi_async.board.ranges import Range
from runphi_async.errors import CellError

#: layouts that board files do not know by themselves, and what stands for them
_DIALECTS: Final = {"mainline-10": "mainline-13", "mainline-9": "mainline-13"}
_ARCHES: Final = {int(model.Arch.X86): "x86", int(model.Arch.ARM): "arm", int(model.Arch.ARM64): "arm64"}
_UARTS: Final = {
    int(model.ConsoleType.UART_8250): "8250",
    **{int(kind): kind.name.lower().replace("_", "-") for kind in model.ConsoleType if kind > 2},
}
_RAM: Final = Mem.READ | Mem.WRITE | Mem.EXECUTE
#: less executable memory than this is a special one, such as a core's own, and no RAM
_RAM_MIN: Final = 16 << 20
#: interrupts offered for the virtual PCI hosts of cells: those of four cells
_VPCI: Final = 4 * PINS_PER_CELL


def board_file(system: model.System, iomem: str | None = None, source: str = "") -> str:
    """Return the text of a board file.

    :param iomem: contents of the running root system's ``/proc/iomem``.
    :param source: where the configuration came from, for the comment.
    :raises CellError: the configuration does not say enough.
    """
    root = system.root_cell
    if system.architecture not in _ARCHES:
        raise CellError("cannot make a board file: the configuration does not say its architecture")
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Made of the root configuration {_text(source or root.name)} by `runphi board from-sysconfig`.",
        "# What it cannot know is marked TODO: look at it, then run `runphi board check` on this file.",
        "",
        f'name = "{_name(root.name)}"',
        f'title = "{_text(root.name)}"',
        f'arch = "{_ARCHES[system.architecture]}"',
        f'dialect = "{_DIALECTS.get(system.dialect, system.dialect)}"',
        f'root_cell = "{_text(root.name)}"',
        *_cpus(root),
        *_ram(root),
        *_memory(system, iomem),
        *_irqchips(root),
        *_uart(system),
        *_vpci(system),
        *_ivshmem(system),
        *_rpus(root),
        *_cache(system),
        *_devicetree(system),
        *_templates(system),
    ]
    return "\n".join(lines) + "\n"


def _name(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-") or "board"


def _text(name: str) -> str:
    return re.sub(r'[\\"\x00-\x1f\x7f-\xff\ud800-\udfff]', "?", name)


def _table(table: str, /, **values: object) -> list[str]:
    """Return a table of the file; ``address`` and the like are written as people write them."""
    lines = ["", f"[{table}]"]
    for key, value in values.items():
        if isinstance(value, bool):
            lines.append(f"{key} = {str(value).lower()}")
        elif isinstance(value, int):
            lines.append(f"{key} = {value:#x}" if key in _HEX else f"{key} = {value}")
        else:
            lines.append(f'{key} = "{value}"')
    return lines


#: bytes of a CPU's redistributor, of the configuration space of one bus, and of a window for virtual devices
_REDISTRIBUTOR: Final = 0x20000
_ECAM: Final = 0x100000
_WINDOW: Final = 0x10000
_HEX: Final = ("start", "size", "address", "base", "rw", "output", "protocol", "way_size")


def _cpus(root: model.Cell) -> list[str]:
    cpus = model.bits(root.cpu_set)
    if not cpus:
        raise CellError("cannot make a board file: the root cell has no CPU")
    return _table("cpus", all=ranges.listed(cpus), root=str(cpus[0]))


def _ram_ranges(root: model.Cell) -> list[Range]:
    found = [
        Range(region.phys_start, region.phys_start + region.size)
        for region in root.memory
        if region.flags & _RAM == _RAM and not region.flags & Mem.IO
    ]
    return [part for part in ranges.merged(found) if part.size >= _RAM_MIN]


def _ram(root: model.Cell) -> list[str]:
    parts = _ram_ranges(root)
    if not parts:
        raise CellError("cannot make a board file: the root cell has no RAM")
    return [line for part in parts for line in _table("[ram]", start=part.start, size=part.size)]


def _memory(system: model.System, iomem: str | None) -> list[str]:
    root = system.root_cell
    todo = ["", "# TODO: [[memory]] with name, start and size: RAM that the root system leaves alone, for cells."]
    if iomem is None:
        return [*todo, "# On the running board, --iomem /proc/iomem fills it in."]
    ram = system_ram(iomem)
    if not ram:
        raise CellError("cannot use iomem: it names no System RAM", "read /proc/iomem as root: others see zeros")
    hypervisor = system.hypervisor_memory
    used = [*ram, Range(hypervisor.phys_start, hypervisor.phys_start + hypervisor.size)]
    used += [
        Range(region.phys_start, region.phys_start + region.size)
        for device in root.pci_devices
        if device.type == model.PciType.IVSHMEM
        for region in _sections(root, device)
    ]
    free = [_paged(part) for part in ranges.without(_ram_ranges(root), used)]
    parts = [part for part in free if part.size > 0]
    if not parts:
        return [*todo, "# The root system uses all it has: boot it with mem= or reserved-memory."]
    head = ["", "# RAM of the root cell that its /proc/iomem does not call System RAM. TODO: may a device use it?"]
    tables = [_table("[memory]", name=f"ram{i}", start=part.start, size=part.size) for i, part in enumerate(parts)]
    return [*head, *[line for table in tables for line in table][1:]]


def _paged(part: Range) -> Range:
    """Return the whole pages of a range."""
    return Range(-(-part.start // PAGE) * PAGE, part.end // PAGE * PAGE)


def _irqchips(root: model.Cell) -> list[str]:
    lines: list[str] = []
    for chip in root.irqchips:
        pins = ranges.listed(model.pins(chip))
        lines += _table("[irqchip]", address=chip.address, id=chip.id, pin_base=chip.pin_base, pins=pins)
    return lines


def _uart(system: model.System) -> list[str]:
    console = system.debug_console
    kind = _UARTS.get(console.type)
    if kind is None or not console.flags & model.ConsoleFlag.MMIO:
        return []
    regdist = 4 if console.flags & model.ConsoleFlag.REGDIST_4 else 1
    size = max(PAGE, console.size)
    note = ["", "# the hypervisor's own. TODO: its irq and tty; [[uart]] for each further port"]
    table = _table("[uart]", name="uart0", type=kind, address=console.address, size=size, regdist=regdist, shared=True)
    return [*note, *table[1:]]


def _vpci(system: model.System) -> list[str]:
    """Offer the interrupts behind the root cell's own four; any that the root system does not use would do."""
    root = system.root_cell
    domain = system.pci_domain if system.pci_domain != 0xFFFF else 1
    own = root.vpci_irq_base + 32
    pins = [pin for chip in root.irqchips for pin in model.pins(chip) if pin >= own + PINS_PER_CELL][:_VPCI]
    whole = pins[: len(pins) // PINS_PER_CELL * PINS_PER_CELL]
    note = ["", f"# the root cell has {own} to {own + PINS_PER_CELL - 1}. TODO: no device may use these"]
    return [*note, *_table("vpci", domain=domain, irqs=ranges.listed(whole))[1:]]


def _sections(root: model.Cell, device: model.PciDevice) -> list[model.Memory]:
    """Return the regions of a shared memory device: state table, read/write section, output sections."""
    first = device.shmem_regions_start
    regions = list(root.memory[first : first + 2 + device.shmem_peers])
    if len(regions) < 2 + device.shmem_peers:
        raise CellError(f"cannot make a board file: device {device.bdf:#x} names regions that are not there")
    return regions


def _ivshmem(system: model.System) -> list[str]:
    lines: list[str] = []
    counts: dict[str, int] = {}
    for device in system.root_cell.pci_devices:
        if device.type != model.PciType.IVSHMEM:
            continue
        sections = _sections(system.root_cell, device)
        protocol, word = _protocol(device.shmem_protocol)
        number = counts.get(word, 0)
        counts[word] = number + 1
        bdf = f"{device.bdf >> 8:02x}:{device.bdf >> 3 & 31:02x}.{device.bdf & 7}"
        ids = [peer for peer in range(1, device.shmem_peers) if peer != device.shmem_dev_id]
        lines += _table(
            "[ivshmem]",
            name=f"{word}{number}",
            protocol=protocol,
            bdf=bdf,
            base=sections[0].phys_start,
            rw=sections[1].size,
            output=sections[2].size,
            peers=device.shmem_peers,
            ids=ranges.listed(ids),
        )
    return lines


def _protocol(number: int) -> tuple[str | int, str]:
    """Return a protocol as board files have it, and the beginning of a name. The root cell has a console's back end."""
    known = {0x0000: ("raw", "shm"), 0x0001: ("veth", "net"), 0xC003: ("console", "con")}
    return known.get(number, (number, "shm"))


def _rpus(root: model.Cell) -> list[str]:
    named = {device.rcpu_id: device.name for device in root.rcpu_devices}
    numbers = sorted({*model.bits(root.rcpu_set), *named})
    tables = [_table("[rpu]", id=number, name=_text(named.get(number, f"rpu{number}"))) for number in numbers]
    lines = [line for table in tables for line in table]
    return ["", "# TODO: the processors' own memory, [[rpu.memory]] behind each", *lines[1:]] if lines else []


def _cache(system: model.System) -> list[str]:
    way = system.coloring.way_size
    return _table("cache", way_size=way, colors=f"0-{way // PAGE - 1}") if way >= 2 * PAGE else []


def _devicetree(system: model.System) -> list[str]:
    """Say what device trees are made of, for arm64 with one of the two usual interrupt controllers."""
    arm = system.platform
    if system.architecture != model.Arch.ARM64 or not isinstance(arm, model.ArmPlatform):
        return []
    cpus = model.bits(system.root_cell.cpu_set)
    if arm.gicd_base not in {chip.address for chip in system.root_cell.irqchips}:
        return []
    if arm.gic_version == 3:
        kind, parts = "gic-v3", ((arm.gicd_base, 0x10000), (arm.gicr_base, _REDISTRIBUTOR * (max(cpus) + 1)))
    elif arm.gic_version == 2:
        kind, parts = "gic-400", ((arm.gicd_base, PAGE), (arm.gicc_base, 2 * PAGE))
    else:
        return []
    lines = _table("devicetree", gic=kind, psci="smc", uart_clock=24_000_000)
    lines[1:1] = ["# for Linux cells whose image brings no device tree. TODO: the clock of the serial ports"]
    for start, size in parts:
        lines += _table("[devicetree.gic_reg]", start=start, size=size)
    if system.pci_is_virtual and system.pci_mmconfig_base:
        lines += _table("[devicetree.pci]", start=system.pci_mmconfig_base, size=_ECAM)
        lines += _table("[devicetree.pci]", start=system.pci_mmconfig_base + _ECAM, size=_WINDOW)
    return lines


def _templates(system: model.System) -> list[str]:
    """Templates that any board can hold; their sizes are a beginning."""
    console = "virtual" if system.flags & model.SystemFlag.VIRTUAL_DEBUG_CONSOLE else "none"
    lines = _table("template.inmate", memory="1 MiB", reset_ram="64 KiB", console=console)
    linux: dict[str, object] = {"minimum": "32 MiB", "granule": "2 MiB", "link": "identity", "reset_ram": "64 KiB"}
    lines += _table("template.linux", memory="128 MiB", **linux, dma=True, console=console)
    lines += _table("template.kernel", memory="128 MiB", **linux, dma=True, console=console)
    if _rpus(system.root_cell):
        lines += _table("template.rpu", memory="1 MiB", link="identity", console="none")
    return lines
