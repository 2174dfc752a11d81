# SPDX-License-Identifier: Apache-2.0
"""What a cell will be: pure data, in the words of the board, before any layout of bytes.

``generator.py`` makes it, ``cellfile.py`` turns it into the hypervisor's configuration, the record keeps it as
``config<name>.conf``. Flags are names, as the dialects number them differently.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Self

import msgspec

from backends import recalled
from runphi_async.board import ranges
from runphi_async.board.claims import Claim, bits
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind, PartitionPlan
from runphi_async.units import human

if TYPE_CHECKING:
    from runphi_async.board.ranges import Range


class Flag(StrEnum):
    """What a cell may do with a memory region, and how it is treated."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"
    DMA = "dma"
    IO = "io"
    COMM_REGION = "comm-region"
    #: the root cell writes it before the cell starts
    LOADABLE = "loadable"
    #: it stays the root cell's as well
    ROOTSHARED = "rootshared"
    COLORED = "colored"


RW = (Flag.READ, Flag.WRITE)
LOADABLE_RAM = (*RW, Flag.EXECUTE, Flag.LOADABLE)


class Region(msgspec.Struct, frozen=True, omit_defaults=True):
    """A memory region of the cell; one without size is a placeholder in a shared memory device."""

    what: str
    phys: int = 0
    virt: int = 0
    size: int = 0
    flags: tuple[Flag, ...] = ()
    #: mask of cache colours
    colors: int = 0

    @property
    def guest(self) -> Range:
        """Where the cell sees it."""
        return ranges.Range(self.virt, self.virt + self.size)


class Chip(msgspec.Struct, frozen=True):
    """An interrupt controller and the interrupts the cell gets from it."""

    address: int
    id: int
    pin_base: int
    pins: tuple[int, ...]


class SharedDevice(msgspec.Struct, frozen=True):
    """A shared memory device (ivshmem) of the cell."""

    name: str
    domain: int
    bdf: int
    #: index of the first of its regions
    first_region: int
    peer: int
    peers: int
    #: number of the protocol, as the device's class shows it
    protocol: int


class Uart(msgspec.Struct, frozen=True, omit_defaults=True):
    """The UART that the cell's communication region names; type "none": it has none."""

    type: str = "none"
    address: int = 0
    size: int = 0
    regdist: int = 4


class Virtual(StrEnum):
    """Whether the cell may print on the hypervisor's console."""

    NO = "no"
    #: it may, and does when it chooses to
    PERMITTED = "permitted"
    #: it is told to
    ACTIVE = "active"


class Source(StrEnum):
    """Where the console's bytes come from."""

    NONE = "none"
    VIRTUAL = "virtual"
    UART = "uart"
    #: a byte ring in a shared memory device
    IVSHMEM = "ivshmem"
    #: a virtio console over a shared memory device
    VIRTIO = "virtio"


class ConsoleChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which console the runtime reads."""

    source: Source = Source.NONE
    #: of the UART or shared memory device
    name: str = ""
    #: device node of the root system where it can be read
    tty: str = ""
    #: it takes input
    input: bool = False
    #: PCI address of the shared memory device in the root system, by which ``tty`` is looked up where it is empty
    pci: str = ""
    #: which peer of the shared memory device the cell is
    peer: int = 0
    #: bytes of the ring
    size: int = 0


class Form(StrEnum):
    """What has to be done with something before it is loaded."""

    #: a file, as it is
    RAW = "raw"
    #: a text with a NUL behind it
    TEXT = "text"
    #: an ELF file: its segments, from the lowest address on
    ELF = "elf"
    #: a device tree, of the record where it is no absolute path: memory, command line and so on are written into it
    DTB = "dtb"
    #: a RAM disk, as it is
    RAMDISK = "ramdisk"
    #: the RAM disk made of our init and the image's root file system
    ROOTFS = "rootfs"
    #: an image for a remote processor, loaded by the root system's remoteproc
    RPU = "rpu"


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing to load into the cell, in this order."""

    form: Form
    #: a path, or the text itself
    source: str
    address: int = 0
    #: bytes kept for it
    size: int = 0
    #: a file of the configuration, which the tool may open itself; one of the image is copied first
    ours: bool = False


class CellPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A cell.

    :ivar name: what the hypervisor calls it: at most 31 bytes, never a number.
    :ivar loads: what to load before it starts.
    :ivar cmdline: kernel command line, for the device tree.
    """

    name: str
    board: str
    dialect: str
    arch: str
    cpus: tuple[int, ...]
    rpus: tuple[int, ...]
    regions: tuple[Region, ...]
    chips: tuple[Chip, ...]
    devices: tuple[SharedDevice, ...]
    uart: Uart
    virtual_console: Virtual
    console: ConsoleChoice
    passive: bool
    reply_timeout: int
    reset_address: int
    vpci_irq_base: int
    loads: tuple[Load, ...]
    cmdline: str = ""


class JailhousePlan(PartitionPlan, frozen=True, omit_defaults=True, kw_only=True):
    """The plan of a cell, and what it must claim in the ledger.

    :ivar initrd: the RAM disk with our init, to which configuration and root file system are appended.
    :ivar conf_init: what that init reads, but for what is known only when the cell is made.
    """

    cell: CellPlan
    claims: tuple[Claim, ...] = ()
    initrd: str = ""
    conf_init: bytes = b""

    def kept(self) -> Self:
        """Return what stays of it in the record: init's settings lie in its RAM disk by then."""
        return msgspec.structs.replace(super().kept(), conf_init=b"")

    def conf(self) -> tuple[str, ...]:
        """Return the cell in readable lines."""
        return tuple(_lines(self.cell))


def _lines(cell: CellPlan) -> list[str]:
    lines = [
        f"board = {cell.board}",
        f"dialect = {cell.dialect}",
        f"cell = {cell.name}",
        f"cpus = {ranges.listed(cell.cpus) or '-'}",
        f"rpus = {ranges.listed(cell.rpus) or '-'}",
        f"console = {_console(cell.console)}",
        f"virtual_console = {cell.virtual_console}",
        f"uart = {cell.uart.type}" + (f" {cell.uart.address:#x}" if cell.uart.address else ""),
        f"comm = {'passive' if cell.passive else f'active, reply_timeout {cell.reply_timeout}'}",
        f"reset_address = {cell.reset_address:#x}",
        f"vpci_irq_base = {cell.vpci_irq_base}",
    ]
    lines += [f"memory.{i} = {_region(region)}" for i, region in enumerate(cell.regions)]
    lines += [f"irqchip.{i} = {chip.address:#x} {ranges.listed(chip.pins)}" for i, chip in enumerate(cell.chips)]
    lines += [f"ivshmem.{i} = {_device(device)}" for i, device in enumerate(cell.devices)]
    lines += [f"load.{i} = {_load(load)}" for i, load in enumerate(cell.loads)]
    return [*lines, f"cmdline = {cell.cmdline or '-'}"]


def _console(console: ConsoleChoice) -> str:
    words = [console.source, console.name, console.tty, "input and output" if console.input else "output only"]
    return " ".join(filter(None, words)) if console.source is not Source.NONE else "-"


def _region(region: Region) -> str:
    if not region.size:
        return f"- # {region.what}, of no size"
    phys = "hypervisor" if Flag.COMM_REGION in region.flags else f"{region.phys:#x}"
    color = f" colors={ranges.listed(bits(region.colors))}" if region.colors else ""
    flags = "|".join(region.flags)
    return f"{phys} -> {region.virt:#x} {region.size:#x} {flags}{color} # {region.what}, {human(region.size)}"


def _device(device: SharedDevice) -> str:
    place = f"{device.bdf >> 8:02x}:{device.bdf >> 3 & 31:02x}.{device.bdf & 7}"
    peer = f"peer {device.peer} of {device.peers}"
    return f"{device.domain:04x}:{place} {peer}, protocol {device.protocol:#06x} # {device.name}"


def _load(load: Load) -> str:
    if load.form is Form.RPU:
        return f"{load.form} {load.source}"
    return f"{load.form} {load.source!r} at {load.address:#x}" + (f" {load.size:#x}" if load.size else "")


class _Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept of a cell before its plan was (records of version 2).

    :ivar console: the channel that is the console, in place of the cell's own.
    """

    cell: CellPlan
    console: Channel | None = None


_decoder = msgspec.json.Decoder(JailhousePlan)
_memory = msgspec.json.Decoder(_Memory)


def recall(kept: msgspec.Raw) -> JailhousePlan:
    """Return the plan that a record keeps, as far as a guest's later life asks for it.

    :raises msgspec.ValidationError: it is damaged.
    """
    return recalled.plan_of(kept, _decoder, _plan_of)


def _plan_of(memory: bytes) -> JailhousePlan:
    """Of what kind the guest is counts only while its cell is made."""
    known = _memory.decode(memory)
    return JailhousePlan(
        backend="jailhouse",
        kind=GuestKind.INMATE,
        arch=known.cell.arch,
        memory_bytes=0,
        vcpus=len(known.cell.cpus),
        cell=known.cell,
        channels=(known.console,) if known.console is not None else (),
        console=known.console.name if known.console is not None else None,
    )
