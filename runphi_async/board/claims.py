# SPDX-License-Identifier: Apache-2.0
"""Who has which part of a board: the rules, as pure functions. ``ledger.py`` keeps the claims on disk.

Everything that is given away is a range of numbers: CPUs, addresses, interrupts, peers of a shared memory device. Two
claims of one kind exclude each other where their ranges meet, with two exceptions: both say that they share (a serial
port that several cells print to), or both are coloured memory without a common colour.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from runphi_async.board import ranges
from runphi_async.board.ranges import Range
from runphi_async.errors import PlanError
from runphi_async.units import human

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Kind(StrEnum):
    """What can be claimed."""

    CPU = "cpu"
    MEMORY = "memory"
    #: remote processors
    RPU = "rpu"
    #: peer numbers; the pool is the device
    IVSHMEM = "ivshmem"
    IRQ = "irq"
    #: register addresses of serial ports and other devices
    DEVICE = "device"


class Claim(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of the board."""

    kind: Kind
    start: int
    end: int
    #: claims of different pools never meet
    pool: str = ""
    #: mask of cache colours; 0 = uncoloured memory, which has them all
    colors: int = 0
    shared: bool = False
    #: what it is for, for people
    what: str = ""

    @property
    def range(self) -> Range:
        """Its numbers."""
        return Range(self.start, self.end)

    def text(self) -> str:
        """Return it in words: ``memory 0x70000000-0x7000ffff``, ``CPU 2``."""
        match self.kind:
            case Kind.MEMORY:
                color = f" of colours {ranges.listed(bits(self.colors))}" if self.colors else ""
                return f"memory {self.range.text()}{color}"
            case Kind.DEVICE:
                return f"device {self.what or '?'} at {self.start:#x}"
            case Kind.IVSHMEM:
                return f"peer {ranges.listed(range(self.start, self.end))} of {self.pool}"
            case Kind.IRQ:
                return f"interrupt {ranges.listed(range(self.start, self.end))}"
            case Kind.CPU | Kind.RPU:
                return f"{self.kind.upper()} {ranges.listed(range(self.start, self.end))}"

    def excludes(self, other: Claim) -> bool:
        """Whether both cannot be had at the same time."""
        if self.kind is not other.kind or self.pool != other.pool or not self.range.overlaps(other.range):
            return False
        if self.shared and other.shared:
            return False
        return not (self.colors and other.colors and not self.colors & other.colors)


class Owner(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who claims.

    :ivar name: the container's record.
    :ivar boot_id: the boot in which it claimed; claims of another boot are void.
    :ivar cell: what the hypervisor calls its partition.
    """

    name: str
    boot_id: str = ""
    cell: str = ""


class Held(msgspec.Struct, frozen=True):
    """A claim and who has it."""

    owner: Owner
    claim: Claim


class Seen(msgspec.Struct, frozen=True):
    """A cell as the hypervisor shows it; the root cell is none."""

    name: str
    cpus: tuple[int, ...]


class Discrepancy(msgspec.Struct, frozen=True):
    """The ledger and the hypervisor disagree.

    :ivar owner: whose claim it is about; empty when there is none.
    :ivar stale: the claim stands for nothing any more and may be freed.
    """

    owner: str
    problem: str
    stale: bool = False


def units(kind: Kind, numbers: Iterable[int], pool: str = "", what: str = "") -> tuple[Claim, ...]:
    """Return claims for single numbers, as few as there are runs of neighbours."""
    runs = ranges.merged(Range(number, number + 1) for number in numbers)
    return tuple(Claim(kind, run.start, run.end, pool, what=what) for run in runs)


def bits(mask: int) -> tuple[int, ...]:
    """Return the numbers of the bits set in a mask."""
    return tuple(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def taken(held: Iterable[Held], wanted: Claim) -> list[Range]:
    """Return the ranges that somebody has and that a claim like ``wanted``, wherever it lay, could not have."""
    return [other.claim.range for other in held if _same_ground(wanted, other.claim)]


def _same_ground(one: Claim, two: Claim) -> bool:
    """Whether the two would exclude each other if they met."""
    return one.excludes(msgspec.structs.replace(two, start=one.start, end=one.end))


def refuse(owner: Owner, wanted: Sequence[Claim], held: Iterable[Held]) -> None:
    """Refuse claims that others have, or that contradict one another.

    :raises PlanError: naming both owners.
    """
    for i, claim in enumerate(wanted):
        for other in wanted[:i]:
            if claim.excludes(other):
                both = f"'{owner.name}' would have it twice, as {other.what or other.text()}"
                raise PlanError(f"cannot give {claim.text()} to '{owner.name}': {both}")
    for theirs in held:
        for claim in wanted:
            if claim.excludes(theirs.claim):
                name = theirs.owner.name
                why = f"'{name}' has {theirs.claim.text()}"
                raise PlanError(f"cannot give {claim.text()} to '{owner.name}': {why}", f"delete '{name}' first")


def holders(held: Iterable[Held], kind: Kind, pool: str = "") -> str:
    """Return who has how much of something, for the message about a shortage."""
    totals: dict[str, int] = {}
    for other in held:
        if other.claim.kind is kind and other.claim.pool == pool and other.claim.range.size:
            totals[other.owner.name] = totals.get(other.owner.name, 0) + other.claim.range.size
    if not totals:
        return "nobody has any"
    if kind is Kind.MEMORY:
        return ", ".join(f"'{name}' has {human(size)}" for name, size in sorted(totals.items()))
    each = ((name, [h.claim.range for h in held if h.owner.name == name and h.claim.kind is kind]) for name in totals)
    listed = ((name, ranges.listed(n for part in parts for n in range(part.start, part.end))) for name, parts in each)
    return ", ".join(f"'{name}' has {numbers}" for name, numbers in sorted(listed))


def check(held: Sequence[Held], seen: Sequence[Seen]) -> list[Discrepancy]:
    """Compare the claims with the cells the hypervisor shows."""
    found: list[Discrepancy] = []
    cells = {cell.name: cell for cell in seen}
    for owner in dict.fromkeys(h.owner for h in held):
        cell = cells.pop(owner.cell, None)
        cpus = numbers(held, owner.name, Kind.CPU)
        if cell is None:
            found.append(Discrepancy(owner.name, f"its cell '{owner.cell}' does not exist any more", stale=True))
        elif set(cell.cpus) != set(cpus):
            has, claimed = ranges.listed(cell.cpus) or "none", ranges.listed(cpus) or "none"
            found.append(Discrepancy(owner.name, f"its cell '{cell.name}' has CPUs {has}, it claimed {claimed}"))
    for cell in cells.values():
        on = ranges.listed(cell.cpus) or "none"
        found.append(Discrepancy("", f"cell '{cell.name}' on CPUs {on} was made by somebody else"))
    for i, one in enumerate(held):
        for two in held[:i]:
            if one.owner.name != two.owner.name and one.claim.excludes(two.claim):
                both = f"{one.claim.text()} overlaps {two.claim.text()} of '{two.owner.name}'"
                found.append(Discrepancy(one.owner.name, both))
    return found


def strangers(held: Iterable[Held], seen: Iterable[Seen]) -> list[Held]:
    """Return what cells made by others have, as claims: CPUs only, as nothing shows their memory.

    One without CPUs has an empty claim, which stands for its name.
    """
    ours = {h.owner.cell for h in held}
    others = [cell for cell in seen if cell.name not in ours]
    return [
        Held(Owner(f"cell {cell.name}", cell=cell.name), claim)
        for cell in others
        for claim in units(Kind.CPU, cell.cpus) or (Claim(Kind.CPU, 0, 0),)
    ]


def numbers(held: Iterable[Held], owner: str, kind: Kind) -> tuple[int, ...]:
    """Return every number of a kind that an owner has."""
    found = (h.claim for h in held if h.owner.name == owner and h.claim.kind is kind)
    return tuple(sorted(n for claim in found for n in range(claim.start, claim.end)))
