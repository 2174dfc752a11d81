# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of the channels: communication region and console.

A cell can print on the hypervisor's own console (output only, 2 KiB of ring, shared by all), on a serial port of the
board, or into shared memory. Only the last two may take input, a serial port only when the cell has it alone: else the
root system reads part of what was typed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backends.jailhouse.desk import Part
from backends.jailhouse.plan import RW, ConsoleChoice, Flag, Region, Source, Uart, Virtual
from consoles.sharedmem import shmem
from runphi_async.board.board import Ivshmem
from runphi_async.board.claims import Claim, Kind, units
from runphi_async.errors import PlanError
from runphi_async.partition import comm
from runphi_async.partition.spec import GuestKind
from runphi_async.units import human

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from runphi_async.board import board as boards
    from runphi_async.board.board import Template
    from runphi_async.partition.spec import GuestSpec


class CellComm(msgspec.Struct, frozen=True):
    """The channels decided.

    :ivar kind: "virtual", the UART's type, or the kind of the source: what a guest kernel calls the console after.
    :ivar slot: shared memory device of the console.
    """

    console: ConsoleChoice
    virtual: Virtual
    uart: Uart
    kind: str
    slot: Ivshmem | None
    part: Part


def choose(spec: GuestSpec, facts: Facts, template: Template) -> CellComm:
    """Choose the console; the communication region every cell has."""
    board = facts.board
    comm.refuse_vchan(spec)
    for channel in spec.channels:
        if channel.made:
            raise PlanError(
                f"cannot give the cell channel '{channel.name}': nothing can be added to a cell's memory afterwards",
                "name the place of a shared memory device of the board: shmem:/dev/uio0:2",
            )
    name, why = _wish(spec, facts, template)
    region = Region("communication region", 0, board.comm.address, int(board.comm.size), (*RW, Flag.COMM_REGION))
    asked = "is never asked before it is stopped" if board.comm.passive else "is asked before it is stopped"
    sentence = f"comm: communication region at {board.comm.address:#x}; the cell {asked}"
    base = Part((region,), explain=(sentence, *comm.explain_channels(spec)))
    for uart in board.uart:
        if uart.name == name:
            return _uart(uart, why, base, remote=spec.rpu)
    for slot in board.ivshmem:
        if slot.name == name and slot.protocol in ("console", "raw") and not spec.rpu:
            return _shared(spec, board, slot, why, base)
    if name == "virtual" and not spec.rpu:
        return _virtual(spec, board, why, base)
    if name == "none":
        none = ConsoleChoice()
        return CellComm(none, Virtual.NO, Uart(), "none", None, _with(base, explain=(f"comm: no console ({why})",)))
    known = ["virtual", "none", *(uart.name for uart in board.uart)]
    known += [slot.name for slot in board.ivshmem if slot.protocol in ("console", "raw")]
    who = "a remote processor" if spec.rpu else "the cell"
    raise PlanError(
        f"cannot give {who} console '{name}': board '{board.name}' has no such one for it",
        f"one of: {', '.join(known)}",
    )


def _wish(spec: GuestSpec, facts: Facts, template: Template) -> tuple[str, str]:
    """Return the console and why: a port that another cell has alone is no reason to refuse, unless it was named."""
    name, why = comm.console_wish(spec, template.console)
    if spec.console_port is not None:
        return name, why
    wanted = [_claim(uart) for uart in facts.board.uart if uart.name == name]
    wanted += [Claim(Kind.IVSHMEM, 1, slot.peers, slot.name) for slot in facts.board.ivshmem if slot.name == name]
    for claim in wanted:
        owners = [held.owner.name for held in facts.held if claim.excludes(held.claim)]
        if owners:
            return "none" if spec.rpu else "virtual", f"'{owners[0]}' has {name}, the usual one"
    return name, why


def _virtual(spec: GuestSpec, board: boards.Board, why: str, base: Part) -> CellComm:
    explain = [f"comm: the hypervisor's console, output only, mixed with its own messages ({why})"]
    if spec.kind is GuestKind.KERNEL:
        explain.append("comm: a Linux kernel prints its own messages there; what its processes print is lost")
    if spec.kind is GuestKind.LINUX:
        explain.append(
            "comm: init makes lines of the kernel's log of what the process prints; nothing is read from there"
        )
    # an RTOS writes to the serial port it was built for, and would be stopped for it if the port were not there
    mapped = [uart for uart in board.uart if uart.shared]
    explain += [f"comm: {uart.name} is the cell's too, in case it prints there; nobody reads that" for uart in mapped]
    part = _with(
        base,
        regions=tuple(_registers(uart) for uart in mapped),
        claims=tuple(_claim(uart) for uart in mapped),
        explain=tuple(explain),
    )
    return CellComm(ConsoleChoice(Source.VIRTUAL), Virtual.ACTIVE, Uart(), "virtual", None, part)


def _uart(uart: boards.Uart, why: str, base: Part, *, remote: bool) -> CellComm:
    alone = not uart.shared
    irqs = (uart.irq,) if alone and uart.irq and not remote else ()
    use = "for this cell alone" if alone else "shared with the root system, so output only"
    part = _with(
        base,
        regions=(_registers(uart),),
        irqs=irqs,
        claims=(_claim(uart), *units(Kind.IRQ, irqs, what=uart.name)),
        explain=(f"comm: console on {uart.name} ({uart.type} at {uart.address:#x}), {use} ({why})",),
    )
    console = ConsoleChoice(Source.UART, uart.name, uart.tty, input=alone)
    named = Uart(uart.type, uart.address, int(uart.size), uart.regdist)
    return CellComm(console, Virtual.NO, named, uart.type, None, part)


def _shared(spec: GuestSpec, board: boards.Board, slot: Ivshmem, why: str, base: Part) -> CellComm:
    pci = f"{board.vpci.domain:04x}:{slot.bdf.lower()}"
    if slot.protocol == "console":
        part = _with(base, explain=(f"comm: virtio console in shared memory '{slot.name}', both ways ({why})",))
        console = ConsoleChoice(Source.VIRTIO, slot.name, slot.uio, input=True, pci=pci)
        return CellComm(console, Virtual.NO, Uart(), "hvc", slot, part)
    if spec.kind is not GuestKind.INMATE:
        raise PlanError(
            f"cannot give the cell console '{slot.name}': a Linux kernel has no console on a byte ring",
            'name a device whose protocol is "console"',
        )
    size = 1 << int(slot.rw).bit_length() - 1 if slot.rw else 0
    if size < shmem.SIZE_MIN:
        raise PlanError(
            f"cannot give the cell console '{slot.name}': its read/write section has {int(slot.rw)} bytes",
            f"a byte ring needs {shmem.SIZE_MIN}",
        )
    size = min(size, shmem.SIZE_MAX)
    said = f"comm: console in shared memory '{slot.name}', a byte ring of {human(size)}, both ways ({why})"
    console = ConsoleChoice(Source.IVSHMEM, slot.name, slot.uio, input=True, pci=pci, size=size)
    return CellComm(console, Virtual.NO, Uart(), "ring", slot, _with(base, explain=(said,)))


def _registers(uart: boards.Uart) -> Region:
    shared = (Flag.ROOTSHARED,) if uart.shared else ()
    return Region(uart.name, uart.address, uart.address, int(uart.size), (*RW, Flag.IO, *shared))


def _claim(uart: boards.Uart) -> Claim:
    return Claim(Kind.DEVICE, uart.address, uart.address + int(uart.size), shared=uart.shared, what=uart.name)


def _with(
    base: Part,
    *,
    regions: tuple[Region, ...] = (),
    irqs: tuple[int, ...] = (),
    claims: tuple[Claim, ...] = (),
    explain: tuple[str, ...] = (),
) -> Part:
    """Return the communication region's part with the console's before it: regions in the order of stock cells."""
    return Part((*regions, *base.regions), irqs, claims, (*explain, *base.explain))
