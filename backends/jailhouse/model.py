# SPDX-License-Identifier: Apache-2.0
"""Cell and system configurations of Jailhouse as data: every field of every dialect, under one name each.

One set of types for all dialects: a field that a dialect lacks keeps its default, so that plans, checks and
comparisons need not know which fork wrote a file. Where a field lies in the file is the matter of ``layout``.
Flags are plain integers here, because a file may hold bits that nobody has named yet; the enumerations give the names.
"""

from __future__ import annotations

import enum
import functools
import operator
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Longest name of a cell in bytes; the tool cuts longer ones without a word.
NAME_MAX: Final = 31
#: Most peers of one shared memory device.
PEERS_MAX: Final = 12
#: Size of a page, and so of a communication region.
PAGE: Final = 4096


class Arch(enum.IntEnum):
    """Architecture byte of configurations since revision 14."""

    X86 = 0
    ARM = 1
    ARM64 = 2


class CellFlag(enum.IntFlag, boundary=enum.KEEP):
    """Flags of a cell."""

    PASSIVE_COMMREG = 0x1
    TEST_DEVICE = 0x2
    AARCH32 = 0x4
    VIRTUAL_CONSOLE_PERMITTED = 0x40000000
    VIRTUAL_CONSOLE_ACTIVE = 0x80000000


class Mem(enum.IntFlag, boundary=enum.KEEP):
    """Flags of a memory region; those from COLORED to TCM_B exist in forks only."""

    READ = 0x1
    WRITE = 0x2
    EXECUTE = 0x4
    DMA = 0x8
    IO = 0x10
    COMM_REGION = 0x20
    LOADABLE = 0x40
    ROOTSHARED = 0x80
    NO_HUGEPAGES = 0x100
    COLORED = 0x200
    COLORED_NO_COPY = 0x400
    TMP_ROOT_REMAP = 0x800
    TCM_A = 0x1000
    TCM_B = 0x2000
    IO_UNALIGNED = 0x8000
    IO_8 = 0x10000
    IO_16 = 0x20000
    IO_32 = 0x40000
    IO_64 = 0x80000


class ConsoleType(enum.IntEnum):
    """Kinds of a UART."""

    NONE = 0
    EFIFB = 1
    UART_8250 = 2
    PL011 = 3
    XUARTPS = 4
    MVEBU = 5
    HSCIF = 6
    SCIFA = 7
    IMX = 8
    IMX_LPUART = 9
    SCIF = 10


class ConsoleFlag(enum.IntFlag, boundary=enum.KEEP):
    """Flags of a console; without MMIO it is port I/O, without REGDIST_4 registers are a byte apart."""

    MMIO = 0x1
    REGDIST_4 = 0x2
    FB_1920x1080 = 0x4
    INVERTED_GATE = 0x1000
    MDR_QUIRK = 0x2000


class CacheType(enum.IntEnum):
    """Kinds of a cache region."""

    L3_CODE = 1
    L3_DATA = 2
    L3 = 3


class CacheFlag(enum.IntFlag, boundary=enum.KEEP):
    """Flags of a cache region."""

    ROOTSHARED = 0x1


class PciType(enum.IntEnum):
    """Kinds of a PCI device."""

    DEVICE = 1
    BRIDGE = 2
    IVSHMEM = 3


class MsiFlag(enum.IntFlag, boundary=enum.KEEP):
    """Bit field of a PCI device's MSI capability."""

    BITS_64 = 0x1
    MASKABLE = 0x2


class CapFlag(enum.IntFlag, boundary=enum.KEEP):
    """Flags of a PCI capability; bit 15 of its id marks an extended one."""

    WRITE = 0x1


class SystemFlag(enum.IntFlag, boundary=enum.KEEP):
    """Flags of a system configuration."""

    VIRTUAL_DEBUG_CONSOLE = 0x1


class Protocol(enum.IntEnum):
    """Protocols of shared memory devices; the virtio ones are bases to which the device's id is added."""

    UNDEFINED = 0x0000
    VETH = 0x0001
    CUSTOM = 0x4000
    VIRTIO_FRONT = 0x8000
    VIRTIO_BACK = 0xC000


class Console(msgspec.Struct, frozen=True):
    """A UART, or none."""

    address: int = 0
    size: int = 0
    type: int = 0
    flags: int = 0
    divider: int = 0
    gate_nr: int = 0
    clock_reg: int = 0


class Memory(msgspec.Struct, frozen=True):
    """A memory region; an all-zero one is a placeholder. ``colors`` exists in forks only."""

    phys_start: int = 0
    virt_start: int = 0
    size: int = 0
    flags: int = 0
    colors: int = 0


class Cache(msgspec.Struct, frozen=True):
    """A part of the last-level cache."""

    start: int = 0
    size: int = 0
    type: int = 0
    padding: int = 0
    flags: int = 0


class Irqchip(msgspec.Struct, frozen=True):
    """Interrupts of a chip: bit n of the bitmap is the interrupt pin_base + n."""

    address: int = 0
    id: int = 0
    pin_base: int = 0
    pin_bitmap: tuple[int, ...] = (0, 0, 0, 0)


class Pio(msgspec.Struct, frozen=True):
    """A range of x86 ports."""

    base: int = 0
    length: int = 0


class PciDevice(msgspec.Struct, frozen=True):
    """A PCI device, real or virtual."""

    type: int = 0
    iommu: int = 0
    domain: int = 0
    bdf: int = 0
    bar_mask: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
    caps_start: int = 0
    num_caps: int = 0
    num_msi_vectors: int = 0
    msi_flags: int = 0
    num_msix_vectors: int = 0
    msix_region_size: int = 0
    msix_address: int = 0
    shmem_regions_start: int = 0
    shmem_dev_id: int = 0
    shmem_peers: int = 0
    shmem_protocol: int = 0


class PciCapability(msgspec.Struct, frozen=True):
    """A capability of a PCI device."""

    id: int = 0
    start: int = 0
    len: int = 0
    flags: int = 0


class StreamId(msgspec.Struct, frozen=True):
    """An IOMMU stream: 32 bits, or for the MMU-500 15 bits of id and 15 of mask."""

    id: int = 0


class QosDevice(msgspec.Struct, frozen=True):
    """A device whose bandwidth a fork regulates."""

    name: str = ""
    flags: int = 0
    base: int = 0


class RcpuDevice(msgspec.Struct, frozen=True):
    """A remote core, such as an RPU, of the Omnivisor."""

    rcpu_id: int = 0
    name: str = ""
    compatible: str = ""


class FpgaDevice(msgspec.Struct, frozen=True):
    """A bitstream of the Omnivisor."""

    dto: str = ""
    module: str = ""
    bitstream: str = ""
    region_id: int = 0
    conf_addr: int = 0
    flags: int = 0


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """A cell's configuration.

    :ivar dialect: name of the layout that it was read from, or is to be written in.
    :ivar signature: what the file says; zeros for the root cell inside a system configuration.
    :ivar architecture: None where the dialect does not say.
    :ivar cpu_set: bitmap of CPUs, bit n of the whole is CPU n; likewise ``rcpu_set`` and ``fpga_regions``.
    :ivar pio_bitmap: port permissions of revisions before 11.
    """

    dialect: str
    signature: bytes
    architecture: int | None
    revision: int
    name: str
    id: int = 0
    flags: int = 0
    vpci_irq_base: int = 0
    cpu_reset_address: int = 0
    msg_reply_timeout: int = 0
    console: Console = Console()
    cpu_set: bytes = b""
    rcpu_set: bytes = b""
    fpga_regions: bytes = b""
    memory: tuple[Memory, ...] = ()
    caches: tuple[Cache, ...] = ()
    irqchips: tuple[Irqchip, ...] = ()
    pio_bitmap: bytes = b""
    pio: tuple[Pio, ...] = ()
    pci_devices: tuple[PciDevice, ...] = ()
    pci_caps: tuple[PciCapability, ...] = ()
    stream_ids: tuple[StreamId, ...] = ()
    qos_devices: tuple[QosDevice, ...] = ()
    rcpu_devices: tuple[RcpuDevice, ...] = ()
    fpga_devices: tuple[FpgaDevice, ...] = ()


class Iommu(msgspec.Struct, frozen=True):
    """An IOMMU of the system; ``extra`` is the part that differs by kind."""

    type: int = 0
    base: int = 0
    size: int = 0
    extra: bytes = bytes(12)


class Coloring(msgspec.Struct, frozen=True):
    """Cache colouring of a system; forks only."""

    way_size: int = 0
    root_map_offset: int = 0


class Memguard(msgspec.Struct, frozen=True):
    """Bandwidth guard of a system; forks only."""

    num_irqs: int = 0
    hv_timer: int = 0
    irq_prio_min: int = 0
    irq_prio_max: int = 0
    irq_prio_step: int = 0
    irq_prio_threshold: int = 0
    num_pmu_irq: int = 0
    pmu_cpu_irq: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0)


class Qos(msgspec.Struct, frozen=True):
    """Interconnect regulation of a system; forks only."""

    nic_base: int = 0
    nic_size: int = 0


class Fpga(msgspec.Struct, frozen=True):
    """FPGA of a system; Omnivisor only."""

    base_bitstream: str = ""
    base_addr: int = 0
    flags: int = 0
    max_regions: int = 0


class ArmPlatform(msgspec.Struct, frozen=True, tag="arm"):
    """Interrupt controller of an Arm system."""

    maintenance_irq: int = 0
    gic_version: int = 0
    padding: bytes = bytes(2)
    gicd_base: int = 0
    gicc_base: int = 0
    gich_base: int = 0
    gicv_base: int = 0
    gicr_base: int = 0


class X86Platform(msgspec.Struct, frozen=True, tag="x86"):
    """Timers and interrupt controller of an x86 system; ``rest`` fills up to the size of the Arm one."""

    pm_timer_address: int = 0
    apic_mode: int = 0
    padding: int = 0
    vtd_interrupt_limit: int = 0
    tsc_khz: int = 0
    apic_khz: int = 0
    rest: bytes = bytes(28)


class RawPlatform(msgspec.Struct, frozen=True, tag="unknown"):
    """Platform part of a file that does not say its architecture."""

    raw: bytes = bytes(44)


class System(msgspec.Struct, frozen=True, kw_only=True):
    """A system's configuration, with its root cell."""

    dialect: str
    signature: bytes
    architecture: int | None
    revision: int
    flags: int = 0
    hypervisor_memory: Memory = Memory()
    debug_console: Console = Console()
    pci_mmconfig_base: int = 0
    pci_mmconfig_end_bus: int = 0
    pci_is_virtual: int = 0
    pci_domain: int = 0
    no_spectre_mitigation: int = 0
    iommu_units: tuple[Iommu, ...] = (Iommu(),) * 8
    coloring: Coloring = Coloring()
    memguard: Memguard = Memguard()
    qos: Qos = Qos()
    fpga: Fpga = Fpga()
    platform: ArmPlatform | X86Platform | RawPlatform = ArmPlatform()
    root_cell: Cell


def name_of(kind: type[enum.IntEnum], value: int) -> str | None:
    """Return the name that an enumeration has for a value, None if it has none."""
    try:
        return kind(value).name
    except ValueError:
        return None


def known_bits(kind: type[enum.IntFlag]) -> int:
    """Return all bits that have a name."""
    return functools.reduce(operator.or_, (flag.value for flag in kind))


def flag_names(kind: type[enum.IntFlag], value: int) -> list[str]:
    """Return the names of the flags set, and the rest as one number."""
    names = [flag.name or hex(flag) for flag in kind if value & flag]
    rest = value & ~known_bits(kind)
    return [*names, hex(rest)] if rest else names


def bits(bitmap: bytes) -> tuple[int, ...]:
    """Return the numbers of the bits set in a little-endian bitmap."""
    value = int.from_bytes(bitmap, "little")
    return tuple(n for n in range(len(bitmap) * 8) if value >> n & 1)


def bitmap(numbers: Iterable[int], size: int = 8) -> bytes:
    """Return the bitmap with these bits set, of ``size`` bytes or as many words of 8 bytes as it takes."""
    value = 0
    for number in numbers:
        value |= 1 << number
    needed = -(-value.bit_length() // 64) * 8
    return value.to_bytes(max(size, needed), "little")


def pins(chip: Irqchip) -> tuple[int, ...]:
    """Return the interrupts that a chip's bitmap names."""
    return tuple(
        chip.pin_base + 32 * word + bit
        for word, value in enumerate(chip.pin_bitmap)
        for bit in bits(value.to_bytes(4, "little"))
    )


def cpu_list(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel writes a CPU list: ``0,2-3``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in parts)
