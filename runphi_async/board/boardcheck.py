# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a board file that can be read: numbers compared with one another.

The hypervisor itself notices almost none of this: cells that share memory are made without a word, and a cell whose
memory lies outside the root cell's hangs the board when it is loaded. So it is found here.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Final

from runphi_async.board import ranges
from runphi_async.board.board import FIRST_SPI, PAGE, PINS_PER_CELL, Finding
from runphi_async.board.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runphi_async.board.board import Board, Device, Ivshmem, Rpu, Template, Uart

_BDF: Final = re.compile(r"[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.IGNORECASE)
#: consoles that are no device of the board
PLAIN_CONSOLES: Final = ("virtual", "none")
#: layouts with remote processors, and with coloured memory
RPU_DIALECTS: Final = ("omnivisor-2024", "omnivisor")
COLOR_DIALECTS: Final = ("coloured", *RPU_DIALECTS)
#: peers of one shared memory device, at most
MAX_PEERS: Final = 12


def findings(board: Board) -> list[Finding]:
    """Return everything that is wrong, in the order of the file."""
    lists = list(_lists(board))
    if lists:  # the other checks read them
        return lists
    checks: tuple[Callable[[Board], Iterator[Finding]], ...] = (
        _names,
        _cpus,
        _memory,
        _interrupts,
        _comm,
        _ivshmem,
        _rpus,
        _cache,
        _devicetree,
        _templates,
    )
    return [finding for check in checks for finding in check(board)]


def _lists(board: Board) -> Iterator[Finding]:
    named = [("cpus.all", board.cpus.all), ("cpus.root", board.cpus.root), ("vpci.irqs", board.vpci.irqs)]
    named += [(f"irqchip[{i}].pins", chip.pins) for i, chip in enumerate(board.irqchip)]
    named += [(f"ivshmem[{i}].ids", slot.ids) for i, slot in enumerate(board.ivshmem)]
    if board.cache is not None:
        named.append(("cache.colors", board.cache.colors))
    for key, text in named:
        try:
            ranges.numbers(text)
        except ValueError as exc:
            yield Finding(key, str(exc), 'write it as "0-3,5"')


def _names(board: Board) -> Iterator[Finding]:
    for table in ("uart", "ivshmem", "rpu", "device"):
        entries: tuple[Uart | Ivshmem | Rpu | Device, ...] = getattr(board, table)
        seen: set[str] = set()
        for i, entry in enumerate(entries):
            if entry.name in seen or entry.name in PLAIN_CONSOLES:
                yield Finding(f"{table}[{i}].name", f"'{entry.name}' is taken", "give each one a name of its own")
            seen.add(entry.name)
    for name in {uart.name for uart in board.uart} & {slot.name for slot in board.ivshmem}:
        yield Finding("ivshmem", f"'{name}' is the name of a UART too", "a console is chosen by that name")


def _cpus(board: Board) -> Iterator[Finding]:
    every, root = ranges.numbers(board.cpus.all), ranges.numbers(board.cpus.root)
    for cpu in root:
        if cpu not in every:
            yield Finding("cpus.root", f"CPU {cpu} is not one of cpus.all '{board.cpus.all}'")
    if not root:
        yield Finding("cpus.root", "the root cell keeps no CPU", "the root system needs at least one")
    if not board.cpus.lent():
        yield Finding("cpus", "no CPU is left for cells", fatal=False)
    if board.arch == "x86" and 0 not in root:
        yield Finding("cpus.root", "CPU 0 cannot be given to a cell on x86", "add 0")


def _memory(board: Board) -> Iterator[Finding]:
    root = ranges.merged(part.range for part in board.ram)
    if not board.memory:
        yield Finding(
            "memory", "missing: there is no RAM for cells", "add [[memory]]: RAM the root system leaves alone"
        )
    for i, part in enumerate(board.memory):
        key = f"memory[{i}]"
        if part.size == 0 or part.start % PAGE or part.size % PAGE:
            yield Finding(key, f"{part.range.start:#x}, {part.size:#x} bytes: not whole pages of 4 KiB")
        elif not any(part.range.within(ram) for ram in root):
            yield Finding(
                key,
                f"{part.range.text()} is not RAM of the root cell",
                "loading a cell there hangs the board; only what [[ram]] holds can be loaded",
            )
    for (i, one), (j, two) in combinations(enumerate(board.memory), 2):
        if one.range.overlaps(two.range):
            yield Finding(f"memory[{j}]", f"{two.range.text()} overlaps memory[{i}], {one.range.text()}")
    for i, uart in enumerate(board.uart):
        if uart.size == 0:
            yield Finding(f"uart[{i}].size", "no registers")
        if any(uart.address < part.range.end and part.start < uart.address + uart.size for part in board.memory):
            yield Finding(f"uart[{i}].address", f"{uart.address:#x} lies in memory lent to cells")


def _interrupts(board: Board) -> Iterator[Finding]:
    lent = board.lends
    for i, chip in enumerate(board.irqchip):
        for pin in ranges.numbers(chip.pins):
            if not chip.pin_base <= pin < chip.pin_base + 128:
                last = chip.pin_base + 127
                yield Finding(f"irqchip[{i}].pins", f"{pin} is not one of the 128 from {chip.pin_base} to {last}")
                break
    for i, uart in enumerate(board.uart):
        if uart.irq and uart.irq not in lent:
            yield Finding(f"uart[{i}].irq", f"interrupt {uart.irq} belongs to no irqchip of the root cell")
    for i, device in enumerate(board.device):
        for irq in device.irqs:
            if irq not in lent:
                yield Finding(f"device[{i}].irqs", f"interrupt {irq} belongs to no irqchip of the root cell")
    vpci = ranges.numbers(board.vpci.irqs)
    for irq in vpci:
        if irq not in lent:
            yield Finding("vpci.irqs", f"interrupt {irq} belongs to no irqchip of the root cell")
            break
    used = {uart.irq: uart.name for uart in board.uart if uart.irq}
    for irq in vpci:
        if irq in used:
            yield Finding("vpci.irqs", f"interrupt {irq} is that of UART '{used[irq]}'")
    if vpci and vpci[0] < FIRST_SPI:
        yield Finding("vpci.irqs", f"interrupt {vpci[0]} is private to a CPU", f"shared ones begin at {FIRST_SPI}")
    if vpci and len(vpci) < PINS_PER_CELL:
        yield Finding("vpci.irqs", f"{len(vpci)} interrupts, and a cell takes {PINS_PER_CELL}")


def _comm(board: Board) -> Iterator[Finding]:
    comm = board.comm
    if not comm.passive and comm.reply_timeout <= 0:
        yield Finding(
            "comm.reply_timeout",
            "an active communication region without a time limit",
            "a silent cell would freeze the root cell for ever: set passive = true or a time limit",
        )
    region = Range(comm.address, comm.address + comm.size)
    for i, part in enumerate(board.memory):
        if region.overlaps(part.range):
            yield Finding("comm.address", f"{region.text()} overlaps memory[{i}], which cells see at the same address")


def _ivshmem(board: Board) -> Iterator[Finding]:
    for i, slot in enumerate(board.ivshmem):
        key = f"ivshmem[{i}]"
        if not _BDF.fullmatch(slot.bdf):
            yield Finding(f"{key}.bdf", f"'{slot.bdf}' is no PCI address", 'write it as "00:01.0"')
        if not 2 <= slot.peers <= MAX_PEERS:
            yield Finding(f"{key}.peers", f"{slot.peers} peers", f"from 2 to {MAX_PEERS}")
        for id in ranges.numbers(slot.ids):
            if not 0 < id < slot.peers:
                yield Finding(f"{key}.ids", f"peer {id} is not one of 1 to {slot.peers - 1}", "0 is the root cell's")
        if slot.base % PAGE or slot.rw % PAGE or slot.output % PAGE:
            yield Finding(key, "base, rw and output must be whole pages of 4 KiB")
        if isinstance(slot.protocol, int) and not 0x4000 <= slot.protocol < 0x8000:
            yield Finding(f"{key}.protocol", f"{slot.protocol:#x} is no custom protocol", "from 0x4000 to 0x7fff")
        if slot.protocol == "console" and slot.rw < 2 * PAGE:
            yield Finding(f"{key}.rw", "a console needs a read/write section of 8 KiB")
        if slot.protocol == "console" and slot.peers != 2:
            yield Finding(f"{key}.peers", f"{slot.peers} peers", "a console has two: root system and cell")
        if slot.uio and not slot.uio.startswith("/"):
            yield Finding(f"{key}.uio", f"'{slot.uio}' is no absolute path", "/dev/uioN, or leave it out")
        for j, part in enumerate(board.memory):
            if slot.range.overlaps(part.range):
                yield Finding(f"{key}.base", f"{slot.range.text()} overlaps memory[{j}], {part.range.text()}")
    for (i, one), (j, two) in combinations(enumerate(board.ivshmem), 2):
        if one.range.overlaps(two.range):
            yield Finding(f"ivshmem[{j}].base", f"{two.range.text()} overlaps ivshmem[{i}], {one.range.text()}")
        if one.bdf.lower() == two.bdf.lower():
            yield Finding(f"ivshmem[{j}].bdf", f"'{two.bdf}' is ivshmem[{i}]'s", "the address is what links peers")
    if board.ivshmem and not board.vpci.irqs:
        yield Finding("vpci.irqs", "no interrupts for the ivshmem devices: they cannot ring a cell", fatal=False)


def _rpus(board: Board) -> Iterator[Finding]:
    if board.rpu and board.dialect not in RPU_DIALECTS:
        yield Finding("rpu", f"dialect '{board.dialect}' has no remote processors", 'use dialect "omnivisor"')
    ids = [rpu.id for rpu in board.rpu]
    for i, id in enumerate(ids):
        if id in ids[:i]:
            yield Finding(f"rpu[{i}].id", f"{id} is taken")
    if board.rpu and board.template.rpu is None:
        yield Finding("template.rpu", "missing: no guest can be planned for a remote processor", fatal=False)


def _cache(board: Board) -> Iterator[Finding]:
    cache = board.cache
    if cache is None:
        return
    if board.dialect not in COLOR_DIALECTS:
        yield Finding("cache", f"dialect '{board.dialect}' cannot colour memory", 'use dialect "omnivisor"')
    if cache.way_size % PAGE or not 2 <= cache.count <= 64:
        yield Finding("cache.way_size", f"{cache.way_size:#x} bytes are not 2 to 64 pages of 4 KiB")
        return
    for color in ranges.numbers(cache.colors):
        if color >= cache.count:
            yield Finding("cache.colors", f"there is no colour {color}: they are 0 to {cache.count - 1}")
            break


def _devicetree(board: Board) -> Iterator[Finding]:
    about = board.devicetree
    if about is None:
        return
    if board.arch != "arm64":
        yield Finding("devicetree", "device trees are made for arm64 only", "leave it out")
    if len(about.gic_reg) != 2:
        yield Finding("devicetree.gic_reg", f"{len(about.gic_reg)} ranges", "distributor, then the second part: 2")
    elif board.irqchip and about.gic_reg[0].start not in {chip.address for chip in board.irqchip}:
        where = f"{about.gic_reg[0].start:#x}"
        yield Finding("devicetree.gic_reg[0]", f"the distributor at {where} is no irqchip of the board")
    if len(about.pci) not in (0, 2):
        yield Finding("devicetree.pci", f"{len(about.pci)} ranges", "configuration space and window: 2, or none")
    for i, part in enumerate(about.pci):
        for j, other in enumerate(about.gic_reg):
            if part.range.overlaps(other.range):
                what = f"{part.range.text()} overlaps devicetree.gic_reg[{j}], {other.range.text()}"
                # a kernel claims the interrupt controller's range as a whole, and refuses the PCI host then
                yield Finding(f"devicetree.pci[{i}]", what, "give the redistributors 0x20000 for each CPU")


def _templates(board: Board) -> Iterator[Finding]:
    consoles = {*PLAIN_CONSOLES, *(uart.name for uart in board.uart), *(slot.name for slot in board.ivshmem)}
    room = max((int(part.size) for part in board.memory), default=0)
    for kind in ("inmate", "linux", "kernel", "rpu"):
        template: Template | None = getattr(board.template, kind)
        if template is None:
            continue
        key = f"template.{kind}"
        if template.console not in consoles:
            known = ", ".join(sorted(consoles))
            yield Finding(f"{key}.console", f"there is no console '{template.console}'", f"one of: {known}")
        if template.granule < PAGE or template.granule & (template.granule - 1):
            yield Finding(f"{key}.granule", f"{template.granule:#x} is no power of two from 4 KiB up")
        elif template.minimum % PAGE or template.reset_ram % PAGE:
            yield Finding(key, "minimum and reset_ram must be whole pages of 4 KiB")
        if template.memory < template.minimum:
            yield Finding(f"{key}.memory", f"less than minimum ({template.minimum.text()})")
        if template.memory > room:
            yield Finding(f"{key}.memory", f"{template.memory.text()} fit into no range of [[memory]]", fatal=False)
    if not any(getattr(board.template, kind) for kind in ("inmate", "linux", "kernel", "rpu")):
        yield Finding("template", "no kind of guest has one", "add [template.inmate]")
