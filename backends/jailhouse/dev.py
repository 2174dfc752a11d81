# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of the devices: those of the board that the container names by the root system's device nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.jailhouse.desk import Part
from backends.jailhouse.plan import RW, Flag, Region
from runphi_async.board.board import Device, Memory
from runphi_async.board.claims import Claim, Kind, units

if TYPE_CHECKING:
    from collections.abc import Collection

    from backends.jailhouse.desk import Facts
    from runphi_async.board.board import Board
    from runphi_async.partition.spec import GuestSpec


def choose(spec: GuestSpec, facts: Facts, present: Collection[str]) -> Part:
    """Give the cell the devices that the container lists; what is no device of the board is left to the root system.

    :param present: names of devices that the cell has already, as its console.
    """
    known = _by_node(facts.board)
    given: dict[str, Device] = {}
    explain: list[str] = []
    for node in spec.devices:
        device = known.get(node)
        if device is None:
            port = next((uart.name for uart in facts.board.uart if uart.tty == node), None)
            what = f"{port}, which the root system uses" if port else f"no device of board '{facts.board.name}'"
            explain.append(f"dev: {node} is {what}: left out")
        elif device.name not in present:
            given[device.name] = device
    regions: list[Region] = []
    claims: list[Claim] = []
    irqs: list[int] = []
    for device in given.values():
        for part in device.memory:
            regions.append(Region(device.name, part.start, part.start, int(part.size), (*RW, Flag.IO)))
            claims.append(Claim(Kind.DEVICE, part.start, part.range.end, what=device.name))
        wanted = () if spec.rpu else device.irqs
        irqs += wanted
        claims += units(Kind.IRQ, wanted, what=device.name)
        with_irqs = f", interrupts {', '.join(map(str, wanted))}" if wanted else ""
        explain.append(f"dev: {device.name} for this cell alone, as the container lists its node{with_irqs}")
    if not explain:
        explain.append("dev: none, as the container lists no device of the board")
    return Part(tuple(regions), tuple(irqs), tuple(claims), tuple(explain))


def _by_node(board: Board) -> dict[str, Device]:
    ports = [
        Device(
            name=uart.name,
            nodes=(uart.tty,),
            memory=(Memory(start=uart.address, size=uart.size),),
            irqs=(uart.irq,) if uart.irq else (),
        )
        for uart in board.uart
        if uart.tty and not uart.shared
    ]
    return {node: device for device in (*board.device, *ports) for node in device.nodes}
