# SPDX-License-Identifier: Apache-2.0
"""The end of a plan for a cell: what the halves contribute is put together, and checked to go with one another."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import msgspec

from backends.jailhouse.plan import Chip, Region, SharedDevice
from runphi_async.board import board as boards
from runphi_async.board import ranges
from runphi_async.board.claims import Claim, Kind, Owner, holders, refuse, taken
from runphi_async.board.ranges import Range
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts, Part
    from backends.jailhouse.net import Joined
    from runphi_async.board.board import Board
    from runphi_async.partition.spec import GuestSpec


class Tail(msgspec.Struct, frozen=True):
    """What the end helper puts together."""

    regions: tuple[Region, ...]
    chips: tuple[Chip, ...]
    devices: tuple[SharedDevice, ...]
    vpci_irq_base: int
    claims: tuple[Claim, ...]
    explain: tuple[str, ...]


def end_helper(spec: GuestSpec, facts: Facts, joined: list[Joined], parts: tuple[Part, ...]) -> Tail:
    """Put the managers' parts together and check that they go with one another."""
    regions = tuple(region for part in parts for region in part.regions)
    _check_regions(regions)
    first = 0
    devices: list[SharedDevice] = []
    for place in joined:
        slot = place.slot
        domain = facts.board.vpci.domain
        devices.append(SharedDevice(slot.name, domain, slot.device, first, place.peer, slot.peers, place.protocol))
        first += len(place.part.regions)
    block, pins, explain = _interrupts(facts, devices)
    claims = [claim for part in parts for claim in part.claims]
    if block is not None:
        claims.append(Claim(Kind.IRQ, block.start, block.end, what="virtual PCI"))
    irqs = {irq for part in parts for irq in part.irqs} | set(pins)
    refuse(Owner(spec.id), claims, facts.held)
    base = block.start - boards.FIRST_SPI if block is not None else 0
    return Tail(regions, _chips(facts.board, irqs), tuple(devices), base, tuple(claims), explain)


def _check_regions(regions: tuple[Region, ...]) -> None:
    """A region over another one would hide it from the cell."""
    real = [region for region in regions if region.size]
    for one, two in combinations(real, 2):
        if one.guest.overlaps(two.guest):
            raise PlanError(
                f"cannot lay out the cell: {one.what} at guest address {one.guest.text()} covers {two.what} at "
                f"{two.guest.text()}",
                "link the image for another address, or lower its memory limit",
            )


def _interrupts(facts: Facts, devices: list[SharedDevice]) -> tuple[Range | None, set[int], tuple[str, ...]]:
    """Take four interrupts for the virtual PCI host of a cell with shared memory."""
    numbers = ranges.numbers(facts.board.vpci.irqs)
    if not devices or not numbers:
        return None, set(), ()
    like = Claim(Kind.IRQ, 0, 1)
    free = ranges.without([Range(n, n + 1) for n in numbers], taken(facts.held, like))
    block = ranges.first_fit(free, boards.PINS_PER_CELL)
    if block is None:
        who = holders(facts.held, Kind.IRQ)
        raise PlanError(f"cannot give the cell interrupts for its shared memory: none are left; {who}")
    pins = {block.start + (device.bdf >> 3 & 3) for device in devices}
    sentence = (
        f"cell: interrupts {block.start}-{block.end - 1} for its virtual PCI, of which it gets {ranges.listed(pins)}"
    )
    return block, pins, (sentence,)


def _chips(board: Board, irqs: set[int]) -> tuple[Chip, ...]:
    found = []
    for chip in board.irqchip:
        pins = tuple(sorted(irqs & set(ranges.numbers(chip.pins))))
        irqs = irqs - set(pins)
        if pins:
            found.append(Chip(chip.address, chip.id, chip.pin_base, pins))
    return tuple(found)
