# SPDX-License-Identifier: Apache-2.0
"""Configurations of the board that the fake plays: QEMU's ``virt`` machine with 1 GiB and four CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backends.jailhouse import codec
from backends.jailhouse.model import (
    PAGE,
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
    RcpuDevice,
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


#: A root system's end of a virtio console, and where the memory of such devices lies: nobody's RAM.
BACK_END: Final = 0xC003
CONSOLE_MEMORY: Final = 0x7FAC0000
CONSOLE_SIZE: Final = 0x10000


def console_shmem(number: int) -> tuple[Memory, ...]:
    """Return the regions of virtio console ``number``; its output sections are of no size."""
    base = CONSOLE_MEMORY + number * CONSOLE_SIZE
    table = same(base, PAGE, Mem.READ)
    return (table, same(base + PAGE, CONSOLE_SIZE - PAGE, Mem.READ | Mem.WRITE), Memory(), Memory())


#: Remote processors of an Omnivisor board, and their own memory.
RCPUS: Final = ("r5f_0", "r5f_1")
TCM: Final = 0xFFE00000
TCM_SIZE: Final = 0x100000


def root_config(cpus: int = 4, *, virtual_console: bool = True, consoles: int = 0, dialect: str = "mainline") -> System:
    """Return the system configuration.

    :param consoles: virtio consoles beside the stock devices.
    :param dialect: with the Omnivisor's, the board has two remote processors too.
    """
    remote: dict[str, Any] = {}
    tcm: tuple[Memory, ...] = ()
    if dialect == "omnivisor":
        compatible = "xlnx,zynqmp-r5-remoteproc"
        rcpus = tuple(RcpuDevice(number, name, compatible) for number, name in enumerate(RCPUS))
        remote = {"rcpu_set": bitmap(range(len(RCPUS))), "rcpu_devices": rcpus}
        tcm = (same(TCM, TCM_SIZE, Mem.READ | Mem.WRITE | Mem.EXECUTE),)
    shared = [*demo_shmem(0, 0), *net_shmem(0)]
    devices = [ivshmem(0, 0, 0, 3), ivshmem(1, 5, 0, 2, Protocol.VETH)]
    for number in range(consoles):
        devices.append(ivshmem(2 + number, len(shared), 0, 2, BACK_END))
        shared += console_shmem(number)
    root = codec.new_cell(
        "qemu-arm64",
        Arch.ARM64,
        dialect,
        vpci_irq_base=96,
        cpu_set=bitmap(range(cpus)),
        memory=(
            *shared,
            same(0x09000000, 0x37000000, Mem.READ | Mem.WRITE | Mem.IO),
            same(0x40000000, END_OF_ROOT_RAM - 0x40000000, Mem.READ | Mem.WRITE | Mem.EXECUTE),
            same(0x4010000000, 0x10000000, Mem.READ | Mem.WRITE | Mem.IO),
            *tcm,
        ),
        **remote,
        irqchips=(Irqchip(_GIC, 0, 32, (0xFFFFFFFF,) * 4),),
        pci_devices=tuple(devices),
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
