# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of the CPU decision: whole CPUs of the board, each for one cell alone, or a remote processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backends.jailhouse.desk import Part
from backends.jailhouse.plan import LOADABLE_RAM, Region
from runphi_async.board import ranges
from runphi_async.board.board import Rpu
from runphi_async.board.claims import Kind, holders, units
from runphi_async.errors import PlanError
from runphi_async.partition import cpu

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from runphi_async.partition.spec import GuestSpec


class CellCpus(msgspec.Struct, frozen=True):
    """The processors decided."""

    cpus: tuple[int, ...]
    rpu: Rpu | None
    part: Part


def choose(spec: GuestSpec, facts: Facts) -> CellCpus:
    """Take the lowest free CPUs, as many as the container may use, or the lowest free remote processor."""
    if spec.rpu:
        return _remote(facts)
    lent = facts.board.cpus.lent()
    if not lent:
        raise PlanError(f"cannot give the cell a CPU: board '{facts.board.name}' lends none", "see [cpus] of the board")
    decided = cpu.decide(spec, lent, "lent to cells")
    wanted = decided.count
    usable = spec.cpuset or lent
    held = _numbers(facts, Kind.CPU)
    free = [number for number in usable if number not in held]
    if wanted > len(free):
        of = f"of CPUs {ranges.listed(usable)} {ranges.listed(free) or 'none'} is free"
        who = holders(facts.held, Kind.CPU)
        hint = "a CPU belongs to one cell alone: delete a container, or ask for fewer CPUs"
        raise PlanError(f"cannot give the cell {wanted} CPU{'s' if wanted > 1 else ''}: {of}; {who}", hint)
    chosen = tuple(free[:wanted])
    explain = (
        decided.explain[0].replace("vCPU", "CPU"),
        f"cpu: CPU {ranges.listed(chosen)}, the lowest free of {ranges.listed(usable)}; the root cell is without",
    )
    return CellCpus(chosen, None, Part(claims=units(Kind.CPU, chosen), explain=explain))


def _remote(facts: Facts) -> CellCpus:
    held = _numbers(facts, Kind.RPU)
    for rpu in sorted(facts.board.rpu, key=lambda rpu: rpu.id):
        if rpu.id not in held:
            sentence = f"cpu: remote processor {rpu.id} ({rpu.name}), as the image asks for one; no CPU of the board"
            return CellCpus((), rpu, Part(claims=units(Kind.RPU, [rpu.id]), explain=(sentence,)))
    who = holders(facts.held, Kind.RPU)
    raise PlanError(f"cannot give the cell a remote processor: none is free; {who}", "delete one of these containers")


def _numbers(facts: Facts, kind: Kind) -> set[int]:
    claims = (held.claim for held in facts.held if held.claim.kind is kind)
    return {number for claim in claims for number in range(claim.start, claim.end)}


def processor_memory(rpu: Rpu | None) -> tuple[Region, ...]:
    """Return the memory that comes with a remote processor."""
    memory = rpu.memory if rpu is not None else ()
    return tuple(Region(part.name, part.start, part.start, int(part.size), LOADABLE_RAM) for part in memory)
