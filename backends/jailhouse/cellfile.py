# SPDX-License-Identifier: Apache-2.0
"""A planned cell as the hypervisor's configuration: names become numbers, nothing is decided here."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Final

from backends.jailhouse import check, codec, csource, model
from backends.jailhouse.plan import Flag, Virtual
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.jailhouse.plan import CellPlan, Chip, SharedDevice

#: register page of a shared memory device that interrupts by a pin
BAR_MASK: Final = (0xFFFF_F000, 0, 0, 0, 0, 0)
_ARCHES: Final = {"x86": model.Arch.X86, "arm": model.Arch.ARM, "arm64": model.Arch.ARM64}
_MEMORY: Final = {flag: model.Mem[flag.name] for flag in Flag}
_VIRTUAL: Final = {
    Virtual.NO: model.CellFlag(0),
    Virtual.PERMITTED: model.CellFlag.VIRTUAL_CONSOLE_PERMITTED,
    Virtual.ACTIVE: model.CellFlag.VIRTUAL_CONSOLE_ACTIVE,
}
_UARTS: Final = {
    "none": model.ConsoleType.NONE,
    "8250": model.ConsoleType.UART_8250,
    **{name.lower().replace("_", "-"): kind for name, kind in model.ConsoleType.__members__.items() if kind > 2},
}
#: dialects that have a set of remote processors in each cell
_RPU_SETS: Final = ("omnivisor-2024", "omnivisor")


def config(plan: CellPlan) -> model.Cell:
    """Return the configuration of a planned cell.

    :raises CellError: its dialect has no place for something.
    """
    flags = _VIRTUAL[plan.virtual_console] | (model.CellFlag.PASSIVE_COMMREG if plan.passive else 0)
    uart = plan.uart
    console = model.Console()
    if uart.type != "none":
        how = model.ConsoleFlag.MMIO | (model.ConsoleFlag.REGDIST_4 if uart.regdist == 4 else 0)
        console = model.Console(uart.address, uart.size, int(_UARTS[uart.type]), int(how))
    return codec.new_cell(
        plan.name,
        _ARCHES[plan.arch],
        plan.dialect,
        flags=int(flags),
        vpci_irq_base=plan.vpci_irq_base,
        cpu_reset_address=plan.reset_address,
        msg_reply_timeout=plan.reply_timeout,
        console=console,
        cpu_set=model.bitmap(plan.cpus),
        rcpu_set=model.bitmap(plan.rpus) if plan.rpus or plan.dialect in _RPU_SETS else b"",
        memory=tuple(
            model.Memory(region.phys, region.virt, region.size, _flags(region.flags), region.colors)
            for region in plan.regions
        ),
        irqchips=tuple(_chip(chip) for chip in plan.chips),
        pci_devices=tuple(_device(device) for device in plan.devices),
    )


def write(plan: CellPlan) -> bytes:
    """Return the bytes of ``<name>.cell``."""
    return codec.encode(config(plan))


def artefacts(name: str, plan: CellPlan) -> dict[str, bytes]:
    """Return the files of a cell for its record: what the hypervisor reads, and the same as C source for people.

    :raises PlanError: the cell would endanger the board; the last look before anything is written.
    """
    cell = config(plan)
    for finding in check.check_cell(cell):
        if finding.severity is check.Severity.ERROR:
            raise PlanError(f"cannot make cell '{plan.name}': {finding.where} {finding.words}", finding.mend)
    return {f"{name}.cell": codec.encode(cell), f"{name}.c": csource.c_source(cell).encode()}


def _flags(names: tuple[Flag, ...]) -> int:
    return int(functools.reduce(operator.or_, (_MEMORY[name] for name in names), model.Mem(0)))


def _chip(chip: Chip) -> model.Irqchip:
    mask = sum(1 << (pin - chip.pin_base) for pin in chip.pins)
    words = tuple(mask >> 32 * word & 0xFFFF_FFFF for word in range(4))
    return model.Irqchip(chip.address, chip.id, chip.pin_base, words)


def _device(device: SharedDevice) -> model.PciDevice:
    return model.PciDevice(
        type=int(model.PciType.IVSHMEM),
        domain=device.domain,
        bdf=device.bdf,
        bar_mask=BAR_MASK,
        shmem_regions_start=device.first_region,
        shmem_dev_id=device.peer,
        shmem_peers=device.peers,
        shmem_protocol=device.protocol,
    )
