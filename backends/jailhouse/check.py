# SPDX-License-Identifier: Apache-2.0
"""What would go wrong with a cell, said before any call that could hang the board.

Jailhouse checks little: a truncated file, RAM outside the root cell's or a cell that never answers stop the whole
machine, two cells in the same RAM are not noticed at all, and a file for another architecture succeeds and does
nothing. Every rule here comes from something that was seen on a board (docs/reference/jailhouse-cells.md).
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.jailhouse import codec
from backends.jailhouse.model import (
    NAME_MAX,
    PAGE,
    PEERS_MAX,
    Arch,
    CellFlag,
    ConsoleType,
    Mem,
    PciType,
    System,
    SystemFlag,
    bits,
    cpu_list,
    known_bits,
    name_of,
    pins,
)
from runphi_async.errors import CellError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.jailhouse.model import Cell, Memory

#: Pages that the hypervisor maps to read a configuration, which may begin anywhere in the first.
CONFIG_PAGES: Final = 16


class Severity(enum.StrEnum):
    """How bad a finding is."""

    #: the board hangs, or the cell cannot be made or run
    ERROR = "error"
    #: it works, but hardly as meant
    WARNING = "warning"


class Finding(NamedTuple):
    """Something that is wrong with a configuration.

    :ivar where: the field, such as ``memory[3]``; empty: the file as a whole.
    :ivar words: what is wrong and what comes of it.
    :ivar mend: what to do about it.
    """

    severity: Severity
    where: str
    words: str
    mend: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where or 'file'}: {self.words}; {self.mend}"


class Named(NamedTuple):
    """A cell and what to call it in a finding about another one."""

    title: str
    cell: Cell


def check_bytes(data: bytes, system: System | None = None, others: Sequence[Named] = ()) -> list[Finding]:
    """Return what is wrong with a file, beginning with whether it can be read at all."""
    try:
        config = codec.decode(data)
    except CellError as exc:
        return [_error("", exc.msg, exc.hint or "build it again")]
    return check_system(config) if isinstance(config, System) else check_cell(config, system, others)


def check_cell(cell: Cell, system: System | None = None, others: Sequence[Named] = ()) -> list[Finding]:
    """Return what is wrong with a cell: by itself, on a board, and beside other cells."""
    findings = [*_name(cell), *_size(cell), *_cpus(cell), *_memory(cell), *_messages(cell), *_devices(cell)]
    if system is not None:
        findings += [*_fits(cell, system), *_within_root(cell, system)]
    for other in others:
        findings += _beside(cell, other)
    return sorted(findings, key=lambda finding: finding.severity)


def check_system(system: System) -> list[Finding]:
    """Return what is wrong with a system configuration."""
    root = system.root_cell
    findings = [*_size(root), *_devices(root)]
    if not any(root.cpu_set):
        findings.append(_error("root_cell.cpu_set", "the root cell has no CPU", "list every CPU that is online"))
    for number, region in enumerate(root.memory):
        if _overlap(region, system.hypervisor_memory) and not region.flags & Mem.IO:
            # Configurations that are shipped with the Omnivisor do this, and run.
            words = f"overlaps the hypervisor's own {_span(system.hypervisor_memory)}, which Linux can write to then"
            findings.append(_warning(f"root_cell.memory[{number}]", words, "end the region before it"))
    if not system.flags & SystemFlag.VIRTUAL_DEBUG_CONSOLE:
        words = "without VIRTUAL_DEBUG_CONSOLE nothing of the hypervisor's console can be read"
        findings.append(_warning("flags", words, "set the flag"))
    return findings


def hopeless(findings: Iterable[Finding]) -> bool:
    """Return whether the tool must not be called with this configuration."""
    return any(finding.severity is Severity.ERROR for finding in findings)


def _error(where: str, words: str, mend: str) -> Finding:
    return Finding(Severity.ERROR, where, words, mend)


def _warning(where: str, words: str, mend: str) -> Finding:
    return Finding(Severity.WARNING, where, words, mend)


# Section: the cell by itself


def reads_as_id(name: str) -> bool:
    """Return whether the tool takes a name for a number: what C's ``strtoll`` reads whole, in base 8, 10 or 16."""
    return re.fullmatch(r"[ \t-\r]*\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)|", name) is not None


def _name(cell: Cell) -> Iterable[Finding]:
    raw = cell.name.encode("utf-8", "surrogateescape")
    if len(raw) > NAME_MAX:
        yield _error("name", f"has {len(raw)} bytes; the driver cuts it at {NAME_MAX}", f"use at most {NAME_MAX} bytes")
    if "\0" in cell.name:
        yield _error("name", "has a zero byte inside; Jailhouse takes what is before it", "fill the rest with zeros")
    if not cell.name:
        yield _error("name", "is empty; the tool takes an empty name for the root cell", "give the cell a name")
    elif reads_as_id(cell.name):
        words = f"{cell.name!r} is a number; the tool takes it for the id of a cell unless told --name"
        yield _warning("name", words, "begin the name with a letter")
    elif not cell.name.isprintable() or not cell.name.isascii():
        yield _warning("name", "has unusual characters", "use letters, digits and dashes")


def _size(cell: Cell) -> Iterable[Finding]:
    size = codec.encoded_size(cell)
    if size > CONFIG_PAGES * PAGE:
        words = f"{size} bytes are more than the {CONFIG_PAGES * PAGE} that the hypervisor maps"
        yield _error("", words, "use fewer regions")
    elif size > (CONFIG_PAGES - 1) * PAGE:
        words = f"{size} bytes fit into the hypervisor's {CONFIG_PAGES} pages only where they begin early in a page"
        yield _warning("", words, "use fewer regions")


def _cpus(cell: Cell) -> Iterable[Finding]:
    cpus = bits(cell.cpu_set)
    if not cpus and not _elsewhere(cell):
        words = "no CPU; Jailhouse makes such a cell and nothing runs in it"
        yield _error("cpu_set", words, "give the cell a CPU")
    if 0 in cpus and cell.architecture == Arch.X86:
        yield _error("cpu_set", "CPU 0 cannot leave the root cell on x86", "use other CPUs")
    if len(cell.cpu_set) % 8:
        words = f"{len(cell.cpu_set)} bytes are read as words of 8, beyond the end"
        yield _error("cpu_set", words, "make it a multiple of 8 bytes")


def _elsewhere(cell: Cell) -> bool:
    """Return whether a cell runs on remote cores or in an FPGA, which need no CPU."""
    return any(cell.rcpu_set) or any(cell.fpga_regions)


def _memory(cell: Cell) -> Iterable[Finding]:
    for number, region in enumerate(cell.memory):
        where = f"memory[{number}]"
        yield from _region(where, region)
        for later, other in enumerate(cell.memory[number + 1 :], number + 1):
            if _overlap_guest(region, other):
                words = f"overlaps memory[{later}] at guest address {max(region.virt_start, other.virt_start):#x}"
                yield _error(where, words, "move one of them")
            elif _overlap(region, other) and not (region.flags | other.flags) & Mem.IO:
                yield _warning(where, f"is the same memory as memory[{later}]", "keep one of them")
    if not any(region.flags & Mem.LOADABLE for region in cell.memory) and not _elsewhere(cell):
        yield _warning("memory", "no region is LOADABLE, so no image can be loaded", "set the flag on the cell's RAM")


def _region(where: str, region: Memory) -> Iterable[Finding]:
    if not region.size:
        return
    flags = region.flags
    if flags & ~known_bits(Mem):
        yield _warning(where, f"flags {flags & ~known_bits(Mem):#x} are unknown", "clear them")
    if flags & Mem.TMP_ROOT_REMAP:
        yield _warning(where, "TMP_ROOT_REMAP is the hypervisor's own", "clear it")
    if flags & Mem.COMM_REGION:
        if region.size != PAGE:
            yield _error(where, f"a communication region of {region.size:#x} bytes", f"make it {PAGE:#x}")
        return
    ends = (region.phys_start + region.size, region.virt_start + region.size)
    if max(ends) > 1 << 64:
        yield _error(where, "goes beyond the end of the address space", "make it smaller")
    if not flags & Mem.IO and (region.phys_start | region.virt_start | region.size) % PAGE:
        yield _error(where, f"{_span(region)} is not made of whole pages", f"align it to {PAGE:#x}")
    if flags & Mem.LOADABLE and not flags & Mem.WRITE:
        yield _error(where, "is LOADABLE but not WRITE: every load into it fails", "set WRITE")
    if flags & Mem.LOADABLE and flags & Mem.ROOTSHARED:
        yield _warning(where, "is LOADABLE and shared with the root cell, which can change it any time", "choose one")
    if flags & Mem.COLORED and not region.colors:
        yield _error(where, "is COLORED, but has no colours", "name the colours, or clear the flag")
    if region.colors and not flags & Mem.COLORED:
        yield _warning(where, "has colours, but is not COLORED: they have no effect", "set the flag, or clear them")


def _messages(cell: Cell) -> Iterable[Finding]:
    if cell.flags & CellFlag.PASSIVE_COMMREG or cell.msg_reply_timeout:
        return
    has = any(region.flags & Mem.COMM_REGION for region in cell.memory)
    how = "an active communication region" if has else "messages to answer and no communication region to do it in"
    words = f"{how} and no reply timeout: a guest that does not answer stops the root cell for ever"
    yield _error("msg_reply_timeout", words, "set PASSIVE_COMMREG in flags, or a msg_reply_timeout above 0")


def _devices(cell: Cell) -> Iterable[Finding]:
    if name_of(ConsoleType, cell.console.type) is None:
        yield _warning("console.type", f"unknown type {cell.console.type}", "use one that Jailhouse has")
    both = CellFlag.VIRTUAL_CONSOLE_ACTIVE
    if cell.flags & both and cell.console.type:
        words = "a UART and the virtual console at once: where they end in the same UART every character comes twice"
        yield _warning("console", words, "clear VIRTUAL_CONSOLE_ACTIVE, or use no UART")
    for number, device in enumerate(cell.pci_devices):
        where = f"pci_devices[{number}]"
        if name_of(PciType, device.type) is None:
            yield _error(where, f"unknown type {device.type}", "use DEVICE, BRIDGE or IVSHMEM")
        if device.num_caps and device.caps_start + device.num_caps > len(cell.pci_caps):
            words = f"capabilities {device.caps_start}+{device.num_caps} of {len(cell.pci_caps)}"
            yield _error(where, words, "correct caps_start and num_caps")
        if device.type == PciType.IVSHMEM:
            yield from _ivshmem(where, cell, number)


def _ivshmem(where: str, cell: Cell, number: int) -> Iterable[Finding]:
    device = cell.pci_devices[number]
    needed = device.shmem_regions_start + 2 + device.shmem_peers
    if needed > len(cell.memory):
        words = (
            f"needs memory regions up to {needed - 1} for {device.shmem_peers} peers, the cell has {len(cell.memory)}"
        )
        yield _error(where, words, "correct shmem_regions_start or add the regions")
    if not 1 < device.shmem_peers <= PEERS_MAX:
        yield _error(where, f"{device.shmem_peers} peers", f"use 2 to {PEERS_MAX}")
    elif device.shmem_dev_id >= device.shmem_peers:
        yield _error(where, f"is peer {device.shmem_dev_id} of {device.shmem_peers}", "count peers from 0")


# Section: the cell on a board


def _fits(cell: Cell, system: System) -> Iterable[Finding]:
    root = system.root_cell
    if (cell.architecture, cell.revision) != (system.architecture, system.revision):
        own = f"{codec.arch_name(cell.architecture)}, revision {cell.revision}"
        board = f"{codec.arch_name(system.architecture)}, revision {system.revision}"
        words = f"is for {own}, the board for {board}"
        if cell.architecture != system.architecture:
            words += ": the tool would report success and make no cell"
        yield _error("architecture", words, "build the cell for the board")
    if cell.dialect != system.dialect:
        words = f"is of dialect {cell.dialect}, the board of {system.dialect}: the hypervisor would misread it"
        yield _error("", words, f"build the cell for {system.dialect}")
    if cell.name == root.name:
        yield _error("name", f"{cell.name!r} is the root cell's", "choose another")
    cpus, roots = set(bits(cell.cpu_set)), set(bits(root.cpu_set))
    if cpus - roots:
        words = f"CPU {cpu_list(cpus - roots)} is not the root cell's, which has {cpu_list(roots)}"
        yield _error("cpu_set", words, "use CPUs of the root cell")
    elif roots and cpus == roots:
        yield _error("cpu_set", "takes every CPU of the root cell", "leave it one")
    virtual = CellFlag.VIRTUAL_CONSOLE_ACTIVE | CellFlag.VIRTUAL_CONSOLE_PERMITTED
    if cell.flags & virtual and not system.flags & SystemFlag.VIRTUAL_DEBUG_CONSOLE:
        words = "prints on the virtual console, which the root cell cannot read"
        yield _warning("flags", words, "set VIRTUAL_DEBUG_CONSOLE in the system configuration")


def _within_root(cell: Cell, system: System) -> Iterable[Finding]:
    own = _merged(region for region in system.root_cell.memory)
    chips = {chip.id: set(pins(chip)) for chip in system.root_cell.irqchips}
    for number, region in enumerate(cell.memory):
        where = f"memory[{number}]"
        if not region.size or region.flags & Mem.COMM_REGION:
            continue
        if _overlap(region, system.hypervisor_memory):
            words = f"{_span(region)} overlaps the hypervisor's own {_span(system.hypervisor_memory)}"
            yield _error(where, words, "choose other memory")
        gap = _gap(region, own)
        if gap is None:
            continue
        words = f"{_span(region)} is not within the root cell's memory from {gap:#x} on"
        if region.flags & Mem.LOADABLE:
            yield _error(where, words + ": loading an image hangs the board", "use memory of the root cell")
        elif not region.flags & Mem.IO:
            yield _warning(where, words, "use memory of the root cell")
    for number, chip in enumerate(cell.irqchips):
        missing = set(pins(chip)) - chips.get(chip.id, set())
        if missing:
            words = f"interrupts {cpu_list(missing)} are not the root cell's"
            yield _warning(f"irqchips[{number}]", words, "use interrupts that the system configuration lists")


def _merged(regions: Iterable[Memory]) -> list[tuple[int, int]]:
    spans = sorted((region.phys_start, region.phys_start + region.size) for region in regions if region.size)
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _gap(region: Memory, spans: Iterable[tuple[int, int]]) -> int | None:
    """Return the first address of a region that no span covers, None if all are covered."""
    at, end = region.phys_start, region.phys_start + region.size
    for first, last in spans:
        if first <= at < last:
            at = last
    return at if at < end else None


# Section: the cell beside others


def _beside(cell: Cell, other: Named) -> Iterable[Finding]:
    if cell.name == other.cell.name:
        yield _error("name", f"{cell.name!r} is {other.title}'s too", "choose another")
    shared = set(bits(cell.cpu_set)) & set(bits(other.cell.cpu_set))
    if shared:
        yield _error("cpu_set", f"CPU {cpu_list(shared)} is {other.title}'s too", "use other CPUs")
    for number, region in enumerate(cell.memory):
        for theirs, foreign in enumerate(other.cell.memory):
            if not _overlap(region, foreign) or region.flags & foreign.flags & Mem.ROOTSHARED:
                continue
            if region.colors and foreign.colors and not region.colors & foreign.colors:
                continue  # each has its own pages of the range
            words = (
                f"{_span(region)} overlaps {other.title}'s memory[{theirs}] {_span(foreign)}; Jailhouse does not notice"
            )
            yield _error(f"memory[{number}]", words, "use other memory")
    mine = {pin for chip in cell.irqchips for pin in pins(chip)}
    common = mine & {pin for chip in other.cell.irqchips for pin in pins(chip)}
    if common:
        yield _warning("irqchips", f"interrupts {cpu_list(common)} are {other.title}'s too", "use other interrupts")


def _overlap(one: Memory, two: Memory) -> bool:
    if (one.flags | two.flags) & Mem.COMM_REGION or not one.size or not two.size:
        return False
    return one.phys_start < two.phys_start + two.size and two.phys_start < one.phys_start + one.size


def _overlap_guest(one: Memory, two: Memory) -> bool:
    if not one.size or not two.size:
        return False
    return one.virt_start < two.virt_start + two.size and two.virt_start < one.virt_start + one.size


def _span(region: Memory) -> str:
    return f"{region.phys_start:#x}–{region.phys_start + region.size - 1:#x}"
