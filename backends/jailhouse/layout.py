# SPDX-License-Identifier: Apache-2.0
"""Where each dialect of Jailhouse keeps the fields of a configuration: tables, and nothing else.

All structures are packed and little-endian. A cell is a header, then arrays without any alignment in the order of the
dialect's table; a system is one fixed part whose last member is the root cell's header, then the root cell's arrays.
Signature and revision do not identify a layout, since forks changed the one without changing the other; ``codec``
finds the dialect by adding up sizes.

Sources: offsets measured with ``offsetof`` on the headers ``include/jailhouse/cell-config.h`` of siemens/jailhouse
(e57d1eff and the tags v0.9, v0.10, v0.12), of DanieleOttaviano/jailhouse (628a02d8 and its history) and on those that
runPHI ships for qemu-arm64 and Kria; see docs/reference/jailhouse-dialects.md.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.jailhouse import model

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

#: Codes of members: ``struct``'s, ``4I`` for an array, ``31s`` for text, ``12r`` for bytes that are kept as they are.
U8: Final = "B"
U16: Final = "H"
U32: Final = "I"
U64: Final = "Q"


class Member(NamedTuple):
    """One member of a structure: a code, or a structure inside it, ``times`` times."""

    name: str
    kind: str | Layout
    times: int = 1

    @property
    def size(self) -> int:
        """Bytes it takes."""
        if isinstance(self.kind, Layout):
            return self.kind.size * self.times
        return struct.calcsize("<" + self.kind.replace("r", "s"))


class Layout:
    """A packed structure, and the type that holds its values."""

    def __init__(self, name: str, kind: type[msgspec.Struct], members: tuple[Member, ...]) -> None:
        self.name = name
        self.type = kind
        self.members = members
        self.size = sum(member.size for member in members)

    def offset(self, name: str) -> int:
        """Return where a member begins."""
        place = 0
        for member in self.members:
            if member.name == name:
                return place
            place += member.size
        raise KeyError(name)


class Array(NamedTuple):
    """One of the arrays behind a header: ``counter`` counts elements, or bytes where ``layout`` is None."""

    name: str
    counter: str
    layout: Layout | None

    @property
    def unit(self) -> int:
        """Bytes that a count of one stands for."""
        return 1 if self.layout is None else self.layout.size


class Dialect(NamedTuple):
    """A layout that is found in the field.

    :ivar cells: signature and revision of cells, each pair as seen; likewise ``systems``.
    :ivar header: of a cell, the counters of ``arrays`` among its members.
    :ivar system: fixed part of a system configuration without the root cell, None where it was never measured.
    :ivar unwritable: why this dialect is only read; None: it is written too.
    :ivar macros: what C source of this dialect is compiled against; None: no C source is written.
    """

    name: str
    title: str
    cells: tuple[tuple[bytes, int], ...]
    systems: tuple[tuple[bytes, int], ...]
    header: tuple[Member, ...]
    memory: Layout
    arrays: tuple[Array, ...]
    system: tuple[Member, ...] | None
    unwritable: str | None
    macros: str | None

    @property
    def header_size(self) -> int:
        """Bytes of a cell's header."""
        return sum(member.size for member in self.header)

    @property
    def system_size(self) -> int:
        """Bytes of a system's fixed part, the root cell's header included."""
        return sum(member.size for member in self.system or ()) + self.header_size


def members(text: str) -> tuple[Member, ...]:
    """Return members from ``code name name …`` lines; a leading structure's name is looked up."""
    found = []
    for line in text.splitlines():
        if not line.strip():
            continue
        kind, *names = line.split()
        count, _, nested = kind.rpartition("*")
        what = _NESTED.get(nested, nested)
        found += [Member(name, what, int(count or 1)) for name in names]
    return tuple(found)


_NESTED: dict[str, str | Layout] = {}


def _layout(name: str, kind: type[msgspec.Struct], text: str) -> Layout:
    made = Layout(name, kind, members(text))
    _NESTED[name] = made
    return made


# Section: structures that all dialects share

CONSOLE: Final = _layout(
    "jailhouse_console",
    model.Console,
    """
    Q address
    I size
    H type flags
    I divider gate_nr
    Q clock_reg
    """,
)
MEMORY: Final = _layout("jailhouse_memory", model.Memory, "Q phys_start virt_start size flags")
CACHE: Final = _layout(
    "jailhouse_cache",
    model.Cache,
    """
    I start size
    B type padding
    H flags
    """,
)
IRQCHIP: Final = _layout(
    "jailhouse_irqchip",
    model.Irqchip,
    """
    Q address
    I id pin_base
    4I pin_bitmap
    """,
)
PIO: Final = _layout("jailhouse_pio", model.Pio, "H base length")
_PCI_HEAD: Final = """
    B type iommu
    H domain bdf
    6I bar_mask
    H caps_start num_caps
    B num_msi_vectors msi_flags
    H num_msix_vectors msix_region_size
    Q msix_address
"""
PCI: Final = _layout(
    "jailhouse_pci_device",
    model.PciDevice,
    _PCI_HEAD
    + """
    I shmem_regions_start
    B shmem_dev_id shmem_peers
    H shmem_protocol
    """,
)
#: Before ivshmem 2 (v0.9 to v0.11): one region, no peers; the last two bytes are padding, kept where peers are now.
PCI_V1: Final = _layout(
    "jailhouse_pci_device_v1",
    model.PciDevice,
    _PCI_HEAD
    + """
    I shmem_regions_start
    H shmem_protocol
    B shmem_dev_id shmem_peers
    """,
)
PCI_CAP: Final = _layout("jailhouse_pci_capability", model.PciCapability, "H id start len flags")
STREAM: Final = _layout("jailhouse_stream_id", model.StreamId, "I id")
IOMMU: Final = _layout(
    "jailhouse_iommu",
    model.Iommu,
    """
    I type
    Q base
    I size
    12r extra
    """,
)

# Section: structures of the forks

#: The colour fork's: 40 bytes.
MEMORY_COLORED: Final = _layout("jailhouse_memory_colored", model.Memory, "Q phys_start virt_start size flags colors")
QOS_DEVICE: Final = _layout(
    "jailhouse_qos_device",
    model.QosDevice,
    """
    15s name
    B flags
    I base
    """,
)
RCPU_DEVICE: Final = _layout(
    "jailhouse_rcpu_device",
    model.RcpuDevice,
    """
    I rcpu_id
    31s name compatible
    """,
)
FPGA_DEVICE: Final = _layout(
    "jailhouse_fpga_device",
    model.FpgaDevice,
    """
    32s dto module bitstream
    I region_id
    Q conf_addr
    B flags
    """,
)
COLORING: Final = _layout("jailhouse_coloring", model.Coloring, "Q way_size root_map_offset")
MEMGUARD: Final = _layout(
    "jailhouse_memguard_config",
    model.Memguard,
    """
    I num_irqs hv_timer
    B irq_prio_min irq_prio_max irq_prio_step irq_prio_threshold
    I num_pmu_irq
    8I pmu_cpu_irq
    """,
)
QOS: Final = _layout("jailhouse_qos", model.Qos, "Q nic_base nic_size")
FPGA: Final = _layout(
    "jailhouse_fpga",
    model.Fpga,
    """
    32s base_bitstream
    Q base_addr
    B flags
    I max_regions
    """,
)

# Section: the platform part of a system; which one it is depends on the architecture

PLATFORM_SIZE: Final = 44
ARM_PLATFORM: Final = Layout(
    "platform_info.arm",
    model.ArmPlatform,
    members("""
    B maintenance_irq gic_version
    2r padding
    Q gicd_base gicc_base gich_base gicv_base gicr_base
    """),
)
X86_PLATFORM: Final = Layout(
    "platform_info.x86",
    model.X86Platform,
    members("""
    H pm_timer_address
    B apic_mode padding
    I vtd_interrupt_limit tsc_khz apic_khz
    28r rest
    """),
)
RAW_PLATFORM: Final = Layout("platform_info", model.RawPlatform, members("44r raw"))
PLATFORMS: Final[Mapping[int | None, Layout]] = {
    model.Arch.X86: X86_PLATFORM,
    model.Arch.ARM: ARM_PLATFORM,
    model.Arch.ARM64: ARM_PLATFORM,
    None: RAW_PLATFORM,
}

# Section: headers of cells

#: Signature and architecture share six bytes: five and one since mainline's f2320d2e (January 2023), before it six.
#: The codec tells them apart, so the table says six raw bytes.
_HEAD: Final = """
    6r signature
    H revision
    32s name
    I id flags
"""
_TAIL: Final = """
    I vpci_irq_base
    Q cpu_reset_address msg_reply_timeout
    jailhouse_console console
"""
_MAINLINE: Final = (
    "I num_memory_regions num_cache_regions num_irqchips num_pio_regions num_pci_devices num_pci_caps num_stream_ids"
)

_CPUS: Final = Array("cpu_set", "cpu_set_size", None)
_RCPUS: Final = Array("rcpu_set", "rcpu_set_size", None)
_MIDDLE: Final = (
    Array("caches", "num_cache_regions", CACHE),
    Array("irqchips", "num_irqchips", IRQCHIP),
    Array("pio", "num_pio_regions", PIO),
    Array("pci_devices", "num_pci_devices", PCI),
    Array("pci_caps", "num_pci_caps", PCI_CAP),
    Array("stream_ids", "num_stream_ids", STREAM),
)
_BITMAP_AGE: Final = (
    Array("memory", "num_memory_regions", MEMORY),
    Array("caches", "num_cache_regions", CACHE),
    Array("irqchips", "num_irqchips", IRQCHIP),
    Array("pio_bitmap", "pio_bitmap_size", None),
    Array("pci_devices", "num_pci_devices", PCI_V1),
    Array("pci_caps", "num_pci_caps", PCI_CAP),
)
_COLORED: Final = Array("memory", "num_memory_regions", MEMORY_COLORED)
_QOS: Final = Array("qos_devices", "num_qos_devices", QOS_DEVICE)

# Section: fixed parts of systems, without the root cell; ``platform`` is replaced by the architecture's

_SYSTEM_HEAD: Final = """
    6r signature
    H revision
    I flags
"""
_SYSTEM_PCI: Final = """
    Q pci_mmconfig_base
    B pci_mmconfig_end_bus pci_is_virtual
    H pci_domain
"""
#: 488 bytes with the root cell's header: platform at 0x138, root cell at 0x164.
_SYSTEM: Final = members(
    _SYSTEM_HEAD
    + "jailhouse_memory hypervisor_memory\njailhouse_console debug_console"
    + _SYSTEM_PCI
    + "8*jailhouse_iommu iommu_units\n44r platform"
)
_SYSTEM_COLORED_HEAD: Final = (
    _SYSTEM_HEAD
    + "jailhouse_memory_colored hypervisor_memory\njailhouse_console debug_console"
    + _SYSTEM_PCI
    + """I no_spectre_mitigation
    8*jailhouse_iommu iommu_units
    jailhouse_coloring coloring
    jailhouse_memguard_config memguard
    jailhouse_qos qos
    """
)
_SYSTEM_COLORED: Final = members(_SYSTEM_COLORED_HEAD + "44r platform")
_SYSTEM_OMNIVISOR: Final = members(_SYSTEM_COLORED_HEAD + "jailhouse_fpga fpga\n44r platform")

# Section: the dialects

MAINLINE: Final = Dialect(
    name="mainline",
    title="Jailhouse since January 2023",
    cells=((b"JHCLL", 14),),
    systems=((b"JHSYS", 14),),
    header=members(_HEAD + "I cpu_set_size\n" + _MAINLINE + _TAIL),
    memory=MEMORY,
    arrays=(_CPUS, Array("memory", "num_memory_regions", MEMORY), *_MIDDLE),
    system=_SYSTEM,
    unwritable=None,
    macros="Jailhouse's own headers, revision 14",
)
MAINLINE_13: Final = MAINLINE._replace(
    name="mainline-13",
    title="Jailhouse v0.12 and master until January 2023",
    cells=((b"JHCELL", 13), (b"JHCELL", 12)),
    # Revision 12 still kept the IOMMUs behind the interrupt controller; only cells of that age are read.
    systems=((b"JHSYST", 13),),
    unwritable="it is older than the revision that current Jailhouse loads",
    macros=None,
)
MAINLINE_10: Final = MAINLINE_13._replace(
    name="mainline-10",
    title="Jailhouse v0.10 and v0.11",
    cells=((b"JHCELL", 10),),
    systems=(),
    header=members(
        _HEAD
        + """
    I cpu_set_size num_memory_regions num_cache_regions num_irqchips pio_bitmap_size num_pci_devices num_pci_caps
    """
        + _TAIL
    ),
    arrays=(_CPUS, *_BITMAP_AGE),
    system=None,
)
MAINLINE_9: Final = MAINLINE_10._replace(
    name="mainline-9",
    title="Jailhouse v0.9",
    cells=((b"JHCELL", 9),),
    header=MAINLINE_10.header[:-1],
)
COLOURED: Final = Dialect(
    name="coloured",
    title="colouring and QoS fork, of runPHI's qemu-arm64 demo cells",
    cells=((b"JHCELL", 13), (b"JHCLL", 14)),
    systems=((b"JHSYST", 13), (b"JHSYS", 14)),
    header=members(_HEAD + "I cpu_set_size\n" + _MAINLINE + " num_qos_devices" + _TAIL),
    memory=MEMORY_COLORED,
    arrays=(_CPUS, _COLORED, *_MIDDLE, _QOS),
    system=_SYSTEM_COLORED,
    unwritable="its revisions are not what its name says, so that a board could take it for another layout",
    macros=None,
)
OMNIVISOR_2024: Final = COLOURED._replace(
    name="omnivisor-2024",
    title="Omnivisor of 2024, of the header that runPHI ships for Kria",
    # Accessors of some of its headers skip the remote CPUs, and look for memory right behind the CPUs. The order here
    # is that of its configurations' C source, and so of its files.
    header=members(_HEAD + "I cpu_set_size rcpu_set_size\n" + _MAINLINE + " num_qos_devices" + _TAIL),
    arrays=(_CPUS, _RCPUS, _COLORED, *_MIDDLE, _QOS),
    unwritable="its own headers disagree on where memory regions begin",
)
OMNIVISOR: Final = Dialect(
    name="omnivisor",
    title="Omnivisor since October 2025",
    cells=((b"JHCLL", 14),),
    systems=((b"JHSYS", 14),),
    header=members(
        _HEAD
        + "I cpu_set_size rcpu_set_size fpga_regions_size\n"
        + _MAINLINE
        + " num_qos_devices num_rcpu_devices num_fpga_devices"
        + _TAIL
    ),
    memory=MEMORY_COLORED,
    arrays=(
        _CPUS,
        _RCPUS,
        Array("fpga_regions", "fpga_regions_size", None),
        _COLORED,
        *_MIDDLE,
        _QOS,
        Array("rcpu_devices", "num_rcpu_devices", RCPU_DEVICE),
        Array("fpga_devices", "num_fpga_devices", FPGA_DEVICE),
    ),
    system=_SYSTEM_OMNIVISOR,
    unwritable=None,
    macros="the Omnivisor's headers of October 2025",
)

#: Every dialect by name; the first is the default.
DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (MAINLINE, MAINLINE_13, MAINLINE_10, MAINLINE_9, COLOURED, OMNIVISOR_2024, OMNIVISOR)
}
