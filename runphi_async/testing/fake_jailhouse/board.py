# SPDX-License-Identifier: Apache-2.0
"""Configurations of the board that the fake plays: QEMU's ``virt`` machine with 1 GiB and four CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.jailhouse import codec
from backends.jailhouse.model import (
    Arch,
    ArmPlatform,
    Cell,
    CellFlag,
    Console,
    ConsoleFlag,
    ConsoleType,
    Irqchip,
    Mem,
    Memory,
    PciDevice,
    PciType,
    Protocol,
    System,
    SystemFlag,
    bitmap,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

#: First byte of the RAM that demo cells get, and of what is never theirs.
DEMO_RAM: Final = 0x7FA00000
END_OF_ROOT_RAM: Final = 0x7FA10000
#: Where the bare-metal demos look for their command line.
COMMAND_LINE: Final = 0x1000
UART: Final = Console(address=0x09000000, type=ConsoleType.PL011, flags=ConsoleFlag.MMIO | ConsoleFlag.REGDIST_4)
_BAR_INTX: Final = (0xFFFFF000, 0, 0, 0, 0, 0)
_GIC: Final = 0x08000000


def same(start: int, size: int, flags: int) -> Memory:
    """Return a region that lies at the same address for the guest."""
    return Memory(start, start, size, flags)


def ivshmem(slot: int, regions: int, dev_id: int, peers: int, protocol: int = Protocol.UNDEFINED) -> PciDevice:
    """Return a shared memory device."""
    return PciDevice(
        type=PciType.IVSHMEM,
        domain=1,
        bdf=slot << 3,
        bar_mask=_BAR_INTX,
        shmem_regions_start=regions,
        shmem_dev_id=dev_id,
        shmem_peers=peers,
        shmem_protocol=protocol,
    )


def demo_shmem(own: int, extra: int) -> tuple[Memory, ...]:
    """Return the regions of the demo's shared memory device for peer ``own`` of three."""
    outputs = (
        same(0x7FAFA000 + 0x2000 * peer, 0x2000, Mem.READ | (Mem.WRITE if peer == own else 0) | extra)
        for peer in range(3)
    )
    return (
        same(0x7FAF0000, 0x1000, Mem.READ | extra),
        same(0x7FAF1000, 0x9000, Mem.READ | Mem.WRITE | extra),
        *outputs,
    )


def net_shmem(own: int) -> tuple[Memory, ...]:
    """Return the regions of the network device for peer ``own`` of two."""
    shared = Mem.READ | Mem.ROOTSHARED
    return (
        same(0x7FB00000, 0x1000, shared),
        Memory(),
        *(same(0x7FB01000 + 0x7F000 * peer, 0x7F000, shared | (Mem.WRITE if peer == own else 0)) for peer in range(2)),
    )


def root_config(cpus: int = 4, *, virtual_console: bool = True) -> System:
    """Return the system configuration."""
    root = codec.new_cell(
        "qemu-arm64",
        Arch.ARM64,
        vpci_irq_base=96,
        cpu_set=bitmap(range(cpus)),
        memory=(
            *demo_shmem(0, 0),
            *net_shmem(0),
            same(0x09000000, 0x37000000, Mem.READ | Mem.WRITE | Mem.IO),
            same(0x40000000, END_OF_ROOT_RAM - 0x40000000, Mem.READ | Mem.WRITE | Mem.EXECUTE),
            same(0x4010000000, 0x10000000, Mem.READ | Mem.WRITE | Mem.IO),
        ),
        irqchips=(Irqchip(_GIC, 0, 32, (0xFFFFFFFF,) * 4),),
        pci_devices=(ivshmem(0, 0, 0, 3), ivshmem(1, 5, 0, 2, Protocol.VETH)),
    )
    return codec.new_system(
        root,
        Arch.ARM64,
        flags=SystemFlag.VIRTUAL_DEBUG_CONSOLE if virtual_console else 0,
        hypervisor_memory=Memory(phys_start=0x7FC00000, size=0x400000),
        debug_console=Console(UART.address, 0x1000, UART.type, UART.flags),
        pci_mmconfig_base=0x08E00000,
        pci_is_virtual=1,
        pci_domain=1,
        platform=ArmPlatform(maintenance_irq=25, gic_version=3, gicd_base=_GIC, gicr_base=0x080A0000),
    )


def inmate_demo() -> Cell:
    """Return the stock demo cell: CPU 1, 64 KiB, the board's UART and a shared memory device."""
    return codec.new_cell(
        "inmate-demo",
        Arch.ARM64,
        flags=CellFlag.PASSIVE_COMMREG,
        vpci_irq_base=144 - 32,
        console=UART,
        cpu_set=bitmap([1]),
        memory=(*demo_shmem(1, Mem.ROOTSHARED), _uart(), *_ram_and_comm(DEMO_RAM)),
        irqchips=(Irqchip(_GIC, 0, 32, (0, 0, 0, 1 << (144 - 128))),),
        pci_devices=(ivshmem(0, 0, 1, 3),),
    )


def small_cell(
    name: str,
    cpus: Iterable[int] = (1,),
    *,
    ram: int = DEMO_RAM,
    size: int = 0x10000,
    flags: int = CellFlag.PASSIVE_COMMREG | CellFlag.VIRTUAL_CONSOLE_ACTIVE,
    uart: bool = False,
    timeout: int = 0,
    arch: Arch = Arch.ARM64,
) -> Cell:
    """Return a cell with RAM at guest address 0 and, unless told otherwise, the virtual console."""
    return codec.new_cell(
        name,
        arch,
        flags=flags,
        vpci_irq_base=144 - 32,
        msg_reply_timeout=timeout,
        console=UART if uart else Console(),
        cpu_set=bitmap(cpus),
        memory=(*([_uart()] if uart else []), *_ram_and_comm(ram, size)),
    )


def _uart() -> Memory:
    return same(UART.address, 0x1000, Mem.READ | Mem.WRITE | Mem.IO | Mem.ROOTSHARED)


def _ram_and_comm(ram: int, size: int = 0x10000) -> tuple[Memory, Memory]:
    return (
        Memory(ram, 0, size, Mem.READ | Mem.WRITE | Mem.EXECUTE | Mem.LOADABLE),
        Memory(0, 0x80000000, 0x1000, Mem.READ | Mem.WRITE | Mem.COMM_REGION),
    )
