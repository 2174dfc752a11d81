# SPDX-License-Identifier: Apache-2.0
"""Every offset, size and flag against the figures that were measured on Jailhouse's own headers.

The tables here are the measured ones (``offsetof`` and ``sizeof``), not derived from the code under test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.jailhouse import layout, model
from backends.jailhouse.layout import DIALECTS, Layout, Member

if TYPE_CHECKING:
    import enum

MAINLINE_HEADER = """
0x00 6 signature
0x06 2 revision
0x08 32 name
0x28 4 id
0x2c 4 flags
0x30 4 cpu_set_size
0x34 4 num_memory_regions
0x38 4 num_cache_regions
0x3c 4 num_irqchips
0x40 4 num_pio_regions
0x44 4 num_pci_devices
0x48 4 num_pci_caps
0x4c 4 num_stream_ids
0x50 4 vpci_irq_base
0x54 8 cpu_reset_address
0x5c 8 msg_reply_timeout
0x64 32 console
"""
HEADERS = {
    "mainline": MAINLINE_HEADER,
    "mainline-13": MAINLINE_HEADER,
    "coloured": """
0x30 4 cpu_set_size
0x34 4 num_memory_regions
0x4c 4 num_stream_ids
0x50 4 num_qos_devices
0x54 4 vpci_irq_base
0x58 8 cpu_reset_address
0x60 8 msg_reply_timeout
0x68 32 console
""",
    "omnivisor-2024": """
0x30 4 cpu_set_size
0x34 4 rcpu_set_size
0x38 4 num_memory_regions
0x50 4 num_stream_ids
0x54 4 num_qos_devices
0x58 4 vpci_irq_base
0x5c 8 cpu_reset_address
0x64 8 msg_reply_timeout
0x6c 32 console
""",
    "omnivisor": """
0x30 4 cpu_set_size
0x34 4 rcpu_set_size
0x38 4 fpga_regions_size
0x3c 4 num_memory_regions
0x54 4 num_stream_ids
0x58 4 num_qos_devices
0x5c 4 num_rcpu_devices
0x60 4 num_fpga_devices
0x64 4 vpci_irq_base
0x68 8 cpu_reset_address
0x70 8 msg_reply_timeout
0x78 32 console
""",
    "mainline-10": """
0x40 4 pio_bitmap_size
0x48 4 num_pci_caps
0x4c 4 vpci_irq_base
0x60 32 console
""",
    "mainline-9": "0x58 8 msg_reply_timeout",
}
SYSTEMS = {
    "mainline": """
0x000 6 signature
0x006 2 revision
0x008 4 flags
0x00c 32 hypervisor_memory
0x02c 32 debug_console
0x04c 8 pci_mmconfig_base
0x054 1 pci_mmconfig_end_bus
0x055 1 pci_is_virtual
0x056 2 pci_domain
0x058 224 iommu_units
0x138 44 platform
""",
    "coloured": """
0x00c 40 hypervisor_memory
0x034 32 debug_console
0x05e 2 pci_domain
0x060 4 no_spectre_mitigation
0x064 224 iommu_units
0x144 16 coloring
0x154 48 memguard
0x184 16 qos
0x194 44 platform
""",
    "omnivisor": """
0x184 16 qos
0x194 45 fpga
0x1c1 44 platform
""",
}
STRUCTS = {
    layout.CONSOLE: "0x00 8 address|0x08 4 size|0x0c 2 type|0x0e 2 flags|0x10 4 divider|0x14 4 gate_nr"
    "|0x18 8 clock_reg",
    layout.MEMORY: "0x00 8 phys_start|0x08 8 virt_start|0x10 8 size|0x18 8 flags",
    layout.MEMORY_COLORED: "0x00 8 phys_start|0x08 8 virt_start|0x10 8 size|0x18 8 flags|0x20 8 colors",
    layout.CACHE: "0x00 4 start|0x04 4 size|0x08 1 type|0x09 1 padding|0x0a 2 flags",
    layout.IRQCHIP: "0x00 8 address|0x08 4 id|0x0c 4 pin_base|0x10 16 pin_bitmap",
    layout.PIO: "0x00 2 base|0x02 2 length",
    layout.PCI: "0x00 1 type|0x01 1 iommu|0x02 2 domain|0x04 2 bdf|0x06 24 bar_mask|0x1e 2 caps_start|0x20 2 num_caps"
    "|0x22 1 num_msi_vectors|0x23 1 msi_flags|0x24 2 num_msix_vectors|0x26 2 msix_region_size|0x28 8 msix_address"
    "|0x30 4 shmem_regions_start|0x34 1 shmem_dev_id|0x35 1 shmem_peers|0x36 2 shmem_protocol",
    layout.PCI_CAP: "0x00 2 id|0x02 2 start|0x04 2 len|0x06 2 flags",
    layout.STREAM: "0x00 4 id",
    layout.QOS_DEVICE: "0x00 15 name|0x0f 1 flags|0x10 4 base",
    layout.RCPU_DEVICE: "0x00 4 rcpu_id|0x04 31 name|0x23 31 compatible",
    layout.FPGA_DEVICE: "0x00 32 dto|0x20 32 module|0x40 32 bitstream|0x60 4 region_id|0x64 8 conf_addr|0x6c 1 flags",
    # 0x13c is where gicd_base lies in a system whose platform part begins at 0x138.
    layout.ARM_PLATFORM: "0x00 1 maintenance_irq|0x01 1 gic_version|0x04 8 gicd_base|0x0c 8 gicc_base|0x14 8 gich_base"
    "|0x1c 8 gicv_base|0x24 8 gicr_base",
    layout.X86_PLATFORM: "0x00 2 pm_timer_address|0x02 1 apic_mode|0x04 4 vtd_interrupt_limit|0x08 4 tsc_khz"
    "|0x0c 4 apic_khz",
}
SIZES = {
    layout.CONSOLE: 32,
    layout.MEMORY: 32,
    layout.MEMORY_COLORED: 40,
    layout.CACHE: 12,
    layout.IRQCHIP: 32,
    layout.PIO: 4,
    layout.PCI: 56,
    layout.PCI_V1: 56,
    layout.PCI_CAP: 8,
    layout.STREAM: 4,
    layout.IOMMU: 28,
    layout.QOS_DEVICE: 20,
    layout.RCPU_DEVICE: 66,
    layout.FPGA_DEVICE: 109,
    layout.ARM_PLATFORM: 44,
    layout.X86_PLATFORM: 44,
    layout.RAW_PLATFORM: 44,
}
HEADER_SIZES = {
    "mainline": (132, 488),
    "mainline-13": (132, 488),
    "mainline-10": (128, None),
    "mainline-9": (96, None),
    "coloured": (136, 584),
    "omnivisor-2024": (140, 588),
    "omnivisor": (152, 645),
}
ORDERS = {
    "mainline": "cpu_set memory caches irqchips pio pci_devices pci_caps stream_ids",
    "mainline-13": "cpu_set memory caches irqchips pio pci_devices pci_caps stream_ids",
    "mainline-10": "cpu_set memory caches irqchips pio_bitmap pci_devices pci_caps",
    "mainline-9": "cpu_set memory caches irqchips pio_bitmap pci_devices pci_caps",
    "coloured": "cpu_set memory caches irqchips pio pci_devices pci_caps stream_ids qos_devices",
    "omnivisor-2024": "cpu_set rcpu_set memory caches irqchips pio pci_devices pci_caps stream_ids qos_devices",
    "omnivisor": "cpu_set rcpu_set fpga_regions memory caches irqchips pio pci_devices pci_caps stream_ids qos_devices "
    "rcpu_devices fpga_devices",
}
FLAGS: dict[type[enum.IntEnum] | type[enum.IntFlag], str] = {
    model.Arch: "X86 0|ARM 1|ARM64 2",
    model.CellFlag: "PASSIVE_COMMREG 0x1|TEST_DEVICE 0x2|AARCH32 0x4|VIRTUAL_CONSOLE_PERMITTED 0x40000000"
    "|VIRTUAL_CONSOLE_ACTIVE 0x80000000",
    model.Mem: "READ 0x1|WRITE 0x2|EXECUTE 0x4|DMA 0x8|IO 0x10|COMM_REGION 0x20|LOADABLE 0x40|ROOTSHARED 0x80"
    "|NO_HUGEPAGES 0x100|COLORED 0x200|COLORED_NO_COPY 0x400|TMP_ROOT_REMAP 0x800|TCM_A 0x1000|TCM_B 0x2000"
    "|IO_UNALIGNED 0x8000|IO_8 0x10000|IO_16 0x20000|IO_32 0x40000|IO_64 0x80000",
    model.ConsoleType: "NONE 0|EFIFB 1|UART_8250 2|PL011 3|XUARTPS 4|MVEBU 5|HSCIF 6|SCIFA 7|IMX 8|IMX_LPUART 9"
    "|SCIF 10",
    model.ConsoleFlag: "MMIO 0x1|REGDIST_4 0x2|FB_1920x1080 0x4|INVERTED_GATE 0x1000|MDR_QUIRK 0x2000",
    model.CacheType: "L3_CODE 1|L3_DATA 2|L3 3",
    model.CacheFlag: "ROOTSHARED 1",
    model.PciType: "DEVICE 1|BRIDGE 2|IVSHMEM 3",
    model.MsiFlag: "BITS_64 1|MASKABLE 2",
    model.CapFlag: "WRITE 1",
    model.SystemFlag: "VIRTUAL_DEBUG_CONSOLE 1",
    model.Protocol: "UNDEFINED 0|VETH 1|CUSTOM 0x4000|VIRTIO_FRONT 0x8000|VIRTIO_BACK 0xc000",
}


def measured(table: tuple[Member, ...]) -> dict[str, tuple[int, int]]:
    places, at = {}, 0
    for member in table:
        places[member.name] = (at, member.size)
        at += member.size
    return places


def rows(text: str) -> list[tuple[int, int, str]]:
    lines = [line.split() for line in text.replace("|", "\n").strip().splitlines()]
    return [(int(offset, 16), int(size), name) for offset, size, name in lines]


@pytest.mark.parametrize("name", HEADERS)
def test_members_of_cell_headers(name: str) -> None:
    found = measured(DIALECTS[name].header)
    for offset, size, member in rows(HEADERS[name]):
        assert (member, found[member]) == (member, (offset, size))


def test_mainline_header_has_no_member_but_the_measured_ones() -> None:
    assert [member.name for member in layout.MAINLINE.header] == [name for _, _, name in rows(MAINLINE_HEADER)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_members_of_systems(name: str) -> None:
    system = DIALECTS[name].system
    assert system is not None
    found = measured(system)
    for offset, size, member in rows(SYSTEMS[name]):
        assert (member, found[member]) == (member, (offset, size))


def test_the_root_cell_of_mainline_begins_where_it_was_measured() -> None:
    assert layout.MAINLINE.system_size - layout.MAINLINE.header_size == 0x164


@pytest.mark.parametrize("table", STRUCTS, ids=lambda table: table.name)
def test_members_of_structures(table: Layout) -> None:
    found = measured(table.members)
    for offset, size, member in rows(STRUCTS[table]):
        assert (member, found[member]) == (member, (offset, size))
        assert table.offset(member) == offset


@pytest.mark.parametrize("table", SIZES, ids=lambda table: table.name)
def test_sizes_of_structures(table: Layout) -> None:
    assert table.size == SIZES[table]


@pytest.mark.parametrize("name", HEADER_SIZES)
def test_sizes_of_headers(name: str) -> None:
    dialect = DIALECTS[name]
    cell, system = HEADER_SIZES[name]
    assert dialect.header_size == cell
    assert (dialect.system_size if dialect.system else None) == system


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_arrays(name: str) -> None:
    dialect = DIALECTS[name]
    assert [array.name for array in dialect.arrays] == ORDERS[name].split()
    assert {array.counter for array in dialect.arrays} <= {member.name for member in dialect.header}


@pytest.mark.parametrize("kind", FLAGS, ids=lambda kind: kind.__name__)
def test_values_of_flags(kind: type[enum.IntEnum] | type[enum.IntFlag]) -> None:
    expected = {name: int(value, 0) for name, value in (row.split() for row in FLAGS[kind].split("|"))}
    assert {member.name: member.value for member in kind} == expected


def test_every_dialect_is_covered() -> None:
    assert set(HEADERS) == set(HEADER_SIZES) == set(ORDERS) == set(DIALECTS)
