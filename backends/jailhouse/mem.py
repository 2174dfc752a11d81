# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of the memory decision: which physical memory, and where the cell sees it.

The guest address comes from the image: the load address the container names, the lowest address of an ELF image, or
else the template's. Physical memory is the lowest free place that fits, unless guest and physical addresses are to be
the same and the image says where it wants to lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.jailhouse.desk import Part, kinds
from backends.jailhouse.plan import LOADABLE_RAM, RW, Flag, Region
from runphi_async.board import board as boards
from runphi_async.board import ranges
from runphi_async.board.claims import Claim, Kind, bits, holders, taken
from runphi_async.board.ranges import Range
from runphi_async.errors import PlanError
from runphi_async.partition import mem
from runphi_async.partition.image import ImageFormat
from runphi_async.partition.spec import GuestKind
from runphi_async.units import human, round_up

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from runphi_async.board.board import Rpu, Template
    from runphi_async.board.claims import Held
    from runphi_async.partition.spec import GuestSpec

#: what the cell's main memory is called among its regions
RAM: Final = "RAM"
#: below it a Cortex-R sees its own memory, whatever the board's addresses are
RPU_LOCAL: Final = 0x10_0000


class CellMemory(msgspec.Struct, frozen=True):
    """The memory decided.

    :ivar ram: the cell's main memory.
    :ivar image_start: guest address where the image begins.
    """

    bytes: int
    ram: Region
    image_start: int
    part: Part


def choose(spec: GuestSpec, facts: Facts, template: Template, rpu: Rpu | None) -> CellMemory:
    """Find memory for the cell.

    :raises PlanError: there is none, or the image does not fit; names who has what.
    """
    granule = int(template.granule)
    decided = mem.decide(spec, boards.PAGE, kinds(template.memory), kinds(template.minimum), granule)
    size = decided.bytes
    wanted, why = _wanted_address(spec, facts, template)
    colors = _colors(spec, facts)
    fixed = wanted - wanted % granule if wanted is not None and template.link == "identity" else None
    place = _find(facts, size, granule, colors, fixed)
    virt = place.start if template.link == "identity" or wanted is None else wanted - wanted % granule
    start = place.start if wanted is None else wanted
    _check_fits(spec, facts, Range(virt, virt + size), start, rpu)
    flags = LOADABLE_RAM + ((Flag.DMA,) if template.dma else ()) + ((Flag.COLORED,) if colors else ())
    ram = Region(RAM, place.start, virt, size, flags, colors)
    claims = [Claim(Kind.MEMORY, place.start, place.end, colors=colors, what="RAM")]
    explain = [decided.explain, f"memory: RAM at {place.start:#x}, which the cell sees at {virt:#x} ({why})"]
    if colors:
        explain.append(f"memory: cache colours {ranges.listed(bits(colors))}, so it spreads over {human(place.size)}")
    regions = [ram]
    if template.reset_ram and virt > 0:
        low = _reset_ram(facts, int(template.reset_ram), claims)
        regions.insert(0, low)
        claims.append(Claim(Kind.MEMORY, low.phys, low.phys + low.size, what=low.what))
        explain.append(f"memory: {human(low.size)} more at guest address 0, for a reset vector or loader")
    for part in template.shared:
        regions.append(Region(part.name, part.start, part.start, int(part.size), (*RW, Flag.ROOTSHARED)))
        claims.append(Claim(Kind.MEMORY, part.start, part.range.end, shared=True, what=part.name))
        explain.append(f"memory: {human(part.size)} at {part.start:#x} shared with the root cell and others alike")
    return CellMemory(size, ram, start, Part(tuple(regions), (), tuple(claims), tuple(explain)))


def _wanted_address(spec: GuestSpec, facts: Facts, template: Template) -> tuple[int | None, str]:
    """Return the guest address where the image begins, None for any, and why."""
    segments = facts.image.segments
    if spec.kind is GuestKind.INMATE and facts.image.format is ImageFormat.ELF and segments:
        if spec.load_address is not None:
            raise PlanError(
                f"cannot load {spec.inmate} at {spec.load_address:#x}: an ELF image says itself where it lies",
                "leave the load address out",
            )
        outside = [part.start for part in segments if not spec.rpu or part.start >= RPU_LOCAL]
        if outside:
            return min(outside), "its ELF header says so"
    elif spec.load_address is not None:
        return spec.load_address, "the container says so"
    if template.link == "identity":
        return None, "the physical address, as the board says"
    return template.link, "the board's usual place"


def _colors(spec: GuestSpec, facts: Facts) -> int:
    wished = spec.colors
    if wished is None:
        return 0
    cache = facts.board.cache
    if cache is None:
        raise PlanError(
            f"cannot colour the cell's memory: board '{facts.board.name}' has no cache colours",
            "leave annotation org.runphi.colors out, or use a board and a dialect with colours",
        )
    absent = [color for color in wished if color not in ranges.numbers(cache.colors)]
    if absent or not wished:
        what = f"colour {absent[0]}" if absent else "no colour"
        raise PlanError(f"cannot give the cell {what}: the board lends colours {cache.colors}")
    return sum(1 << color for color in wished)


def _find(facts: Facts, size: int, granule: int, colors: int, fixed: int | None) -> Range:
    """Return the physical range to claim."""
    cache = facts.board.cache
    span, align = size, granule
    if colors and cache is not None:  # of each way's pages the cell has those of its colours
        span = -(-size // (colors.bit_count() * boards.PAGE)) * int(cache.way_size)
        align = max(granule, int(cache.way_size))
    like = Claim(Kind.MEMORY, 0, 1, colors=colors)
    lent = [part.range for part in facts.board.memory]
    free = ranges.without(lent, taken(facts.held, like))
    if fixed is not None:
        if fixed % align:
            raise PlanError(
                f"cannot colour memory at {fixed:#x}: coloured memory starts at a multiple of {align:#x}",
                "link the image for such an address",
            )
        place = Range(fixed, fixed + span)
        if any(place.within(part) for part in free):
            return place
        if not any(place.within(part) for part in ranges.merged(lent)):
            lends = ", ".join(part.text() for part in ranges.merged(lent))
            raise PlanError(
                f"cannot place the image's RAM at {place.text()}: board '{facts.board.name}' lends {lends}",
                "link the image there, or lower its memory limit",
            )
        who = holders(_overlapping(facts, place), Kind.MEMORY)
        raise PlanError(f"cannot place the image's RAM at {place.text()}: it is taken; {who}", "delete that container")
    found = ranges.first_fit(free, span, align)
    if found is None:
        raise _shortage(facts, span, free)
    return found


def _overlapping(facts: Facts, place: Range) -> list[Held]:
    return [held for held in facts.held if held.claim.kind is Kind.MEMORY and held.claim.range.overlaps(place)]


def _shortage(facts: Facts, size: int, free: list[Range]) -> PlanError:
    largest = max((part.size for part in free), default=0)
    total = sum(part.size for part in free)
    left = f"{human(total)} are free, the largest piece has {human(largest)}" if total else "nothing is free"
    who = holders(facts.held, Kind.MEMORY)
    return PlanError(
        f"cannot give the cell {human(size)} of memory: on board '{facts.board.name}' {left}; {who}",
        "delete a container or lower the memory limit",
    )


def _reset_ram(facts: Facts, size: int, claims: list[Claim]) -> Region:
    used = [*taken(facts.held, claims[0]), *(claim.range for claim in claims)]
    free = ranges.without([part.range for part in facts.board.memory], used)
    place = ranges.first_fit(free, size, boards.PAGE)
    if place is None:
        raise _shortage(facts, size, free)
    return Region("reset RAM", place.start, 0, size, LOADABLE_RAM)


def _check_fits(spec: GuestSpec, facts: Facts, ram: Range, start: int, rpu: Rpu | None) -> None:
    """Check that the image lies in memory the cell has."""
    if spec.kind is not GuestKind.INMATE:
        return
    name = spec.inmate or "the image"
    if facts.image.format is ImageFormat.ELF:
        own = [part.range for part in rpu.memory] if rpu is not None else []
        for segment in facts.image.segments:
            part = Range(segment.start, segment.end)
            local = rpu is not None and segment.end <= RPU_LOCAL
            if not local and not part.within(ram) and not any(part.within(one) for one in own):
                raise _no_fit(name, part, ram)
    elif rpu is None:
        part = Range(start, start + facts.image.size)
        if not part.within(ram):
            raise _no_fit(name, part, ram)


def _no_fit(name: str, part: Range, ram: Range) -> PlanError:
    needs = round_up(part.end - ram.start, boards.PAGE)
    hint = "raise the container's memory limit or set org.runphi.memory"
    if part.start >= ram.start:
        hint = f"the guest needs {human(needs)}: {hint}"
    return PlanError(f"cannot place {name} in the cell's memory: it takes {part.text()}, RAM is {ram.text()}", hint)
