# SPDX-License-Identifier: Apache-2.0
"""Board files: what a partitioning hypervisor may give away on one board.

A static partitioning hypervisor has no allocator: whoever plans a cell must know which memory, CPUs, interrupts,
serial ports and shared memory devices the board's root configuration leaves free. A board file (TOML) says so; the
planner and the ledger read nothing else about the hardware. The files in ``boards/`` are shipped, ``template.toml``
there explains every key, and ``docs/reference/boards.md`` is the reference.

:func:`load` refuses a file that cannot be used, with file, key and a hint. :func:`findings` goes further and lists
everything that looks wrong, for ``runphi board check``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from runphi_async.board import ranges
from runphi_async.board.ranges import Range
from runphi_async.config.section import Size

PAGE: Final = 4096
#: an ivshmem device interrupts by one of four pins of its cell's virtual PCI host
PINS_PER_CELL: Final = 4
#: interrupts below this one are private to a CPU
FIRST_SPI: Final = 32

Address = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
#: text such as "0-2,5"
Numbers = str
Dialect = Literal["mainline", "mainline-13", "coloured", "omnivisor-2024", "omnivisor"]
UartType = Literal["8250", "pl011", "xuartps", "mvebu", "hscif", "scifa", "imx", "imx-lpuart", "scif"]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common options of every table of the file."""


class Cpus(_Table, frozen=True, kw_only=True):
    """The board's CPUs, as the hypervisor counts them."""

    all: Numbers
    #: those that are never given away: the root cell needs one, and x86 insists on CPU 0
    root: Numbers = "0"

    def lent(self) -> tuple[int, ...]:
        """Return the CPUs a cell may get, ascending."""
        kept = ranges.numbers(self.root)
        return tuple(cpu for cpu in ranges.numbers(self.all) if cpu not in kept)


class Memory(_Table, frozen=True, kw_only=True):
    """A range of physical memory."""

    name: str = ""
    start: Address
    size: Size

    @property
    def range(self) -> Range:
        """The range as numbers."""
        return Range(self.start, self.start + self.size)


class Uart(_Table, frozen=True, kw_only=True):
    """A serial port."""

    name: str
    type: UartType
    address: Address
    size: Size = Size(PAGE)
    #: its interrupt as the GIC counts (SPI + 32); 0 = none
    irq: int = 0
    #: bytes between two registers
    regdist: Literal[1, 4] = 4
    #: the root cell or the hypervisor writes to it as well: output of several cells gets mixed, input is not theirs
    shared: bool = False
    #: device node by which the root system reads what comes out of it; a container may ask for that node
    tty: str = ""


class Irqchip(_Table, frozen=True, kw_only=True):
    """An interrupt controller of the root cell."""

    address: Address
    id: int = 0
    #: interrupt of the first pin
    pin_base: int = FIRST_SPI
    #: interrupts the root cell has and may give away
    pins: Numbers


class Comm(_Table, frozen=True, kw_only=True):
    """The communication region between hypervisor and cell."""

    address: Address = 0x8000_0000
    size: Size = Size(PAGE)
    #: the cell is never asked: an active region without time limit can freeze the whole board
    passive: bool = True
    #: for an active region: how many turns of a loop the hypervisor waits for an answer
    reply_timeout: int = 0


class Vpci(_Table, frozen=True, kw_only=True):
    """The virtual PCI host of the cells, which carries ivshmem devices."""

    domain: int = 1
    #: interrupts, four for each cell, of which the last two bits of a device's number choose one
    irqs: Numbers = ""


class Ivshmem(_Table, frozen=True, kw_only=True):
    """A shared memory device that the root configuration has and a cell may join."""

    name: str
    #: what is spoken over it: a network, a console, or a number such as 0x4001
    protocol: Literal["raw", "veth", "console"] | int = "raw"
    #: PCI address as in "00:01.0"
    bdf: str
    #: start of its memory: state table, read/write section, output sections
    base: Address
    #: size of the section all peers write
    rw: Size = Size(0)
    #: size of each peer's own section
    output: Size = Size(0)
    peers: int = 2
    #: peer ids a cell may take; the root cell has 0
    ids: Numbers = "1"
    #: device by which the root system reaches it; empty: looked up by its PCI address
    uio: str = ""

    @property
    def range(self) -> Range:
        """The memory of the device."""
        return Range(self.base, self.base + PAGE + self.rw + self.peers * self.output)

    @property
    def device(self) -> int:
        """The bus, device and function as PCI packs them."""
        bus, _, rest = self.bdf.partition(":")
        slot, _, function = rest.partition(".")
        return int(bus, 16) << 8 | int(slot, 16) << 3 | int(function, 16)


class Rpu(_Table, frozen=True, kw_only=True):
    """A remote processor, for example a Cortex-R5 of a Zynq UltraScale+."""

    id: Annotated[int, msgspec.Meta(ge=0, le=63)]
    name: str
    #: its own memory, which the cell gets with it
    memory: tuple[Memory, ...] = ()


class Device(_Table, frozen=True, kw_only=True):
    """A device that a container may ask for by its device node (``--device``)."""

    name: str
    #: device nodes of the root system that mean this device
    nodes: tuple[str, ...]
    memory: tuple[Memory, ...] = ()
    irqs: tuple[int, ...] = ()


class Cache(_Table, frozen=True, kw_only=True):
    """The last level cache, where the hypervisor can colour memory."""

    #: bytes of one way; a colour is one page of it
    way_size: Size
    #: colours that cells may have
    colors: Numbers

    @property
    def count(self) -> int:
        """How many colours there are in all."""
        return int(self.way_size) // PAGE


class Template(_Table, frozen=True, kw_only=True):
    """Memory and console of one kind of guest."""

    #: RAM of a guest whose container sets no limit
    memory: Size
    #: least RAM
    minimum: Size = Size(64 << 10)
    #: RAM is a multiple of this, and starts at a multiple of it
    granule: Size = Size(64 << 10)
    #: guest address of RAM when the image says nothing; "identity" = the physical address
    link: Address | Literal["identity"] = 0
    #: RAM at guest address 0 for the first instructions, where the guest's own RAM lies elsewhere; 0 = none
    reset_ram: Size = Size(0)
    #: devices may write into the RAM by themselves
    dma: bool = False
    #: where its console is: "virtual" (the hypervisor's), a UART's name, an ivshmem device's name, or "none"
    console: str = "virtual"
    #: further memory every guest of the kind gets, shared with the root cell
    shared: tuple[Memory, ...] = ()


class Templates(_Table, frozen=True, kw_only=True):
    """The kinds of guest this board can hold."""

    inmate: Template | None = None
    linux: Template | None = None
    kernel: Template | None = None
    rpu: Template | None = None


class DeviceTree(_Table, frozen=True, kw_only=True):
    """What a Linux cell's kernel must be told of the board when neither image nor configuration brings a device tree.

    CPU n is taken to have affinity n, as on boards with one cluster.
    """

    gic: Literal["gic-v3", "gic-400"]
    #: registers of the distributor, and of the redistributors (gic-v3) or the CPU interface (gic-400)
    gic_reg: tuple[Memory, ...]
    psci: Literal["smc", "hvc"] = "smc"
    #: Hertz of the serial ports' clock
    uart_clock: int = 24_000_000
    #: configuration space of the cells' virtual PCI host, and a window that is nothing else's for its devices
    pci: tuple[Memory, ...] = ()


class Board(_Table, frozen=True, kw_only=True):
    """One board file."""

    name: str
    title: str = ""
    arch: Literal["arm64", "arm", "x86"]
    #: layout of the hypervisor's configuration files
    dialect: Dialect = "mainline"
    #: name of the root cell, cell 0
    root_cell: str
    cpus: Cpus
    #: RAM of the root cell: a cell can be loaded nowhere else
    ram: tuple[Memory, ...]
    #: RAM that the root system leaves alone, for cells
    memory: tuple[Memory, ...] = ()
    irqchip: tuple[Irqchip, ...] = ()
    uart: tuple[Uart, ...] = ()
    comm: Comm = Comm()
    vpci: Vpci = Vpci()
    ivshmem: tuple[Ivshmem, ...] = ()
    rpu: tuple[Rpu, ...] = ()
    device: tuple[Device, ...] = ()
    cache: Cache | None = None
    devicetree: DeviceTree | None = None
    template: Templates

    @property
    def lends(self) -> tuple[int, ...]:
        """Interrupts that the board's controllers can give away."""
        return tuple(sorted({pin for chip in self.irqchip for pin in ranges.numbers(chip.pins)}))


class Finding(msgspec.Struct, frozen=True):
    """Something wrong with a board file.

    :ivar key: where, as in ``ivshmem[1].base``.
    :ivar fatal: the planner would make cells that cannot work or that endanger the board.
    """

    key: str
    problem: str
    hint: str = ""
    fatal: bool = True

    def text(self, name: str) -> str:
        """Return one line for people."""
        mark = "" if self.fatal else "warning: "
        return f"{name}: {mark}{self.key}: {self.problem}" + (f"; {self.hint}" if self.hint else "")
