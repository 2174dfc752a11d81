# SPDX-License-Identifier: Apache-2.0
"""Jailhouse half of the network decision: a place in a shared memory device that the root cell has as well.

This module also lays out any shared memory device, as its memory regions follow one rule: state table, read/write
section, one output section a peer, one behind the other, the peer's own being the one it may write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.jailhouse.desk import Part
from backends.jailhouse.plan import RW, Flag, Region
from runphi_async.board import board as boards
from runphi_async.board import ranges
from runphi_async.board.board import Ivshmem
from runphi_async.board.claims import Claim, Kind, holders
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from runphi_async.partition.spec import GuestSpec

#: class of a device, low 16 bits; a console's cell is the front end of virtio device 3
_PROTOCOLS: Final = {"raw": 0x0000, "veth": 0x0001, "console": 0x8003}


class Joined(msgspec.Struct, frozen=True):
    """A place in a shared memory device."""

    slot: Ivshmem
    peer: int
    protocol: int
    part: Part


def choose(spec: GuestSpec, facts: Facts) -> tuple[Joined | None, Part]:
    """Find a place in a network device, if the container asks for one."""
    if spec.net is None or not spec.net.wanted:
        return None, Part(explain=(f"net: none for {spec.id}, as it asks for none",))
    if spec.rpu:
        raise PlanError("cannot connect a remote processor to a network: it has no PCI", 'leave "net" out')
    name = spec.net.name
    slots = [slot for slot in facts.board.ivshmem if slot.protocol == "veth"]
    named = [slot for slot in slots if name in (None, slot.name)]
    if not named:
        known = ", ".join(slot.name for slot in slots) or "none"
        what = f"network '{name}'" if name else "a network"
        raise PlanError(
            f"cannot give the cell {what}: board '{facts.board.name}' has no such device", f"it has: {known}"
        )
    for slot in named:
        joined = join(slot, facts)
        if joined is not None:
            host = f"the root system has the other end, PCI {facts.board.vpci.domain:04x}:{slot.bdf}"
            said = [f"net: peer {joined.peer} of {slot.name}; {host}"]
            said += [f"net: settings '{spec.netconf}' are for the guest itself"] if spec.netconf else []
            return joined, Part(explain=tuple(said))
    who = "; ".join(f"{slot.name}: {holders(facts.held, Kind.IVSHMEM, slot.name)}" for slot in named)
    raise PlanError(f"cannot give the cell a network: every place is taken; {who}", "delete one of these containers")


def join(slot: Ivshmem, facts: Facts, *, alone: bool = False) -> Joined | None:
    """Take the lowest free place of a device, None if there is none.

    :param alone: no other cell may have a place: every peer can write the read/write section.
    """
    held = {
        number
        for other in facts.held
        if other.claim.kind is Kind.IVSHMEM and other.claim.pool == slot.name
        for number in range(other.claim.start, other.claim.end)
    }
    free = [peer for peer in ranges.numbers(slot.ids) if peer not in held]
    if not free or (alone and held):
        return None
    peer = free[0]
    claim = Claim(Kind.IVSHMEM, 1, slot.peers, slot.name) if alone else Claim(Kind.IVSHMEM, peer, peer + 1, slot.name)
    protocol = slot.protocol if isinstance(slot.protocol, int) else _PROTOCOLS[slot.protocol]
    return Joined(slot, peer, protocol, Part(sections(slot, peer), claims=(claim,)))


def sections(slot: Ivshmem, peer: int) -> tuple[Region, ...]:
    """Return the device's memory as one peer may use it; a section without size keeps its place in the list."""
    at = slot.base
    out: list[Region] = []
    plan = [("state table", boards.PAGE, False), ("read/write section", int(slot.rw), True)]
    plan += [(f"output of peer {n}", int(slot.output), n == peer) for n in range(slot.peers)]
    for what, size, writable in plan:
        rights = RW if writable else (Flag.READ,)
        what = f"{slot.name}, {what}"
        out.append(Region(what, at, at, size, (*rights, Flag.ROOTSHARED)) if size else Region(what))
        at += size
    return tuple(out)
