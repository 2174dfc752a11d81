# SPDX-License-Identifier: Apache-2.0
"""The Jailhouse config generator: six decisions, six Jailhouse halves, one cell.

:func:`plan` is pure: the board, the ledger's state and facts about the image are gathered before, by ``planner.py``.
It claims nothing; its result says what has to be claimed before the cell is made.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec

from backends.jailhouse import boot, cellfile, comm, cpu, desk, dev, joining, mem, net, tree
from backends.jailhouse.desk import Part
from backends.jailhouse.plan import CellPlan, JailhousePlan, Source
from runphi_async.board.claims import Kind, holders
from runphi_async.errors import PlanError
from runphi_async.partition import mounts

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from backends.jailhouse.net import Joined
    from runphi_async.partition.spec import GuestSpec

#: the tool cuts names at this many bytes without a word
NAME_MAX: Final = 31
#: a name that the tool can never take for a number, nor a shell for more than one word
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@+-]*")
#: bytes of the readable beginning of a shortened name, and hexadecimal digits of its hash
_HEAD: Final = 18
_HASH: Final = 12


class Head(msgspec.Struct, frozen=True):
    """What the start helper settles.

    :ivar name: of the cell.
    """

    name: str
    explain: tuple[str, ...]


def plan(spec: GuestSpec, facts: Facts) -> JailhousePlan:
    """Plan the cell.

    :raises PlanError: it cannot be had; says what is missing and who has it.
    """
    template = desk.template(spec, facts.board)
    head = start_helper(spec, facts)
    image = boot.decide(spec, facts)
    cpus = cpu.choose(spec, facts)
    memory = mem.choose(spec, facts, template, cpus.rpu)
    channels = comm.choose(spec, facts, template)
    booting = boot.choose(spec, facts, image, memory, channels)
    network, net_part = net.choose(spec, facts)
    devices = dev.choose(spec, facts, {channels.console.name})

    own_console = _console_place(channels, facts)
    joined = [place for place in (network, own_console) if place is not None]
    own = Part(cpu.processor_memory(cpus.rpu))
    parts = (
        *(place.part for place in joined),
        own,
        cpus.part,
        memory.part,
        booting.part,
        devices,
        net_part,
        channels.part,
    )
    tail = joining.end_helper(spec, facts, joined, parts)
    mounted = mounts.decide(spec, shares=False)
    cell = CellPlan(
        name=head.name,
        board=facts.board.name,
        dialect=facts.board.dialect,
        arch=facts.board.arch,
        cpus=cpus.cpus,
        rpus=(cpus.rpu.id,) if cpus.rpu is not None else (),
        regions=tail.regions,
        chips=tail.chips,
        devices=tail.devices,
        uart=channels.uart,
        virtual_console=channels.virtual,
        console=msgspec.structs.replace(channels.console, peer=own_console.peer if own_console else 0),
        passive=facts.board.comm.passive,
        reply_timeout=facts.board.comm.reply_timeout,
        reset_address=booting.reset_address,
        vpci_irq_base=tail.vpci_irq_base,
        loads=booting.loads,
        cmdline=booting.cmdline,
    )
    return JailhousePlan(
        backend="jailhouse",
        kind=spec.kind,
        arch=booting.arch,
        memory_bytes=memory.bytes,
        vcpus=max(1, len(cpus.cpus)),
        pins=cpus.cpus,
        files={**cellfile.artefacts(spec.id, cell), **_tree(facts, cell)},
        channels=spec.channels,
        console=spec.console,
        explain=(*head.explain, *(line for part in parts for line in part.explain), *mounted.explain, *tail.explain),
        cell=cell,
        claims=tail.claims,
        initrd=(facts.initrd or "") if booting.conf else "",
        conf_init=booting.conf,
    )


def _tree(facts: Facts, cell: CellPlan) -> dict[str, bytes]:
    """Return the device tree of a Linux cell whose image brings none."""
    if not any(load.source == tree.FILE for load in cell.loads):
        return {}
    console = cell.console
    alone = console.source is Source.UART and console.input
    uart = next((uart for uart in facts.board.uart if alone and uart.name == console.name), None)
    return {tree.FILE: tree.made(facts.board, cell.cpus, uart, cell.devices, cell.vpci_irq_base)}


def _console_place(channels: comm.CellComm, facts: Facts) -> Joined | None:
    if channels.slot is None:
        return None
    place = net.join(channels.slot, facts, alone=True)
    if place is None:
        who = holders(facts.held, Kind.IVSHMEM, channels.slot.name)
        raise PlanError(
            f"cannot give the cell console '{channels.slot.name}': it would not be alone there; {who}",
            "delete that container, or name another console: annotation org.runphi.console-port",
        )
    return place


# Section: the start helper


def start_helper(spec: GuestSpec, facts: Facts) -> Head:
    """Give the cell its name: the container's where the tool can take it, else a shorter one that is like no other."""
    used = {held.owner.cell for held in facts.held} | {facts.board.root_cell}
    name = cell_name(spec.id, used)
    board = f"cell: '{name}' on board '{facts.board.name}', layout {facts.board.dialect}"
    if name == spec.id:
        return Head(name, (board,))
    return Head(name, (board, f"cell: '{spec.id}' itself cannot be its name: too long, like a number, or taken"))


def cell_name(container: str, used: set[str]) -> str:
    """Return a name of at most 31 bytes that is in no use and that no tool takes for a number.

    :param used: names of other cells, the root cell's included.
    """
    if len(container) <= NAME_MAX and _PLAIN.fullmatch(container) and container not in used:
        return container
    head = re.sub(r"[^A-Za-z0-9_.@+-]", "_", container)
    head = head if head[:1].isalpha() else f"c{head}"
    attempt = 0
    while True:
        text = container if attempt == 0 else f"{container}#{attempt}"
        name = f"{head[:_HEAD]}-{hashlib.sha256(text.encode()).hexdigest()[:_HASH]}"
        if name not in used:
            return name
        attempt += 1
