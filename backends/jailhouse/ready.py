# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run Jailhouse, and what is in its way: pure decisions about what ``machinefacts`` reads.

``bin/start_jailhouse`` asks before it calls the tool, ``runphi doctor`` shows the same. The driver answers most of
these mistakes with one and the same "Invalid argument", and one of them (a root system that uses the memory of its
guests) only when it is too late.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.base import Finding, Level
from backends.jailhouse import check
from backends.jailhouse.errortext import NOT_ENABLED, NOT_LOADED
from backends.jailhouse.model import Arch, ArmPlatform, System, bits
from runphi_async.board import ranges
from runphi_async.board.ranges import Range
from runphi_async.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.jailhouse.sysfs import View
    from runphi_async.board.board import Board

#: What the kernel calls the architectures of configurations.
_MACHINES: Final = {Arch.X86: ("x86_64", "i686"), Arch.ARM: ("armv7l", "armv8l"), Arch.ARM64: ("aarch64",)}
#: bytes of PCI configuration space for each bus
_BUS: Final = 1 << 20


class Machine(NamedTuple):
    """What was read of the machine; None: it could not be.

    :ivar uid: of whoever asks.
    :ivar tool: path of the ``jailhouse`` tool, "" when there is none.
    :ivar machine: what ``uname -m`` says.
    :ivar module: whether the kernel's list of modules names Jailhouse's.
    :ivar device: why /dev/jailhouse cannot be opened, "" when it can.
    :ivar firmware: names of the hypervisor images where the kernel looks for firmware.
    :ivar wanted: the name of the image that the driver will ask for.
    :ivar system: the system configuration; ``problem``: why there is none.
    :ivar iomem: regions of the address space that Linux has given away, with what for.
    :ivar online: CPUs.
    :ivar gic: version of the interrupt controller.
    :ivar iommus: those that Linux drives.
    """

    uid: int
    tool: str
    machine: str
    kernel: str
    view: View
    module: bool | None
    device: str
    firmware: tuple[str, ...]
    wanted: str
    system_path: str
    system: System | None
    problem: str
    iomem: tuple[tuple[Range, str], ...] | None
    cmdline: str
    online: tuple[int, ...] | None
    gic: int | None
    iommus: tuple[str, ...]
    board: Board | None


class Step(StrEnum):
    """What has to be done before cells can be made."""

    LOAD = "load the module"
    ENABLE = "enable the hypervisor"


def steps(machine: Machine) -> tuple[Step, ...]:
    """Return what is left to do; nothing when Jailhouse is enabled."""
    if machine.view.enabled:
        return ()
    return (Step.ENABLE,) if machine.view.module else (Step.LOAD, Step.ENABLE)


def judge(machine: Machine) -> list[Finding]:
    """Return what was found, good and bad, in the order in which it matters; an error keeps Jailhouse from starting."""
    found = [*_caller(machine), *_state(machine)]
    if not machine.view.enabled:
        found += [*_module(machine), *_firmware(machine)]
    found += _config(machine)
    if machine.system is not None and not machine.view.enabled:
        found += [*_memory(machine, machine.system), *_cpus(machine, machine.system), *_chips(machine, machine.system)]
    return found


def hopeless(found: list[Finding]) -> bool:
    """Return whether the tool need not be called."""
    return any(finding.level is Level.ERROR for finding in found)


def _say(level: Level, text: str, mend: str = "") -> Finding:
    return Finding(level, "jailhouse", text, mend)


def _error(text: str, mend: str) -> Finding:
    return _say(Level.ERROR, text, mend)


# Section: Jailhouse itself


def _caller(machine: Machine) -> Iterator[Finding]:
    if machine.uid != 0:
        yield _error("only root may drive Jailhouse", "run it as root")
    if not machine.tool:
        yield _error("the `jailhouse` tool is not there", "install Jailhouse's tools, or set jailhouse.tool")


def _state(machine: Machine) -> Iterator[Finding]:
    view = machine.view
    if not view.module:
        yield _say(Level.NOTE, NOT_LOADED[0], NOT_LOADED[1])
        return
    if machine.device and machine.uid == 0:
        yield _error(f"/dev/jailhouse cannot be used: {machine.device}", "load the module afresh; is devtmpfs mounted?")
    if not view.enabled or view.root is None:
        yield _say(Level.NOTE, NOT_ENABLED[0], NOT_ENABLED[1])
        return
    missing = set(view.root.cpus) - set(machine.online if machine.online is not None else view.root.cpus)
    if missing:
        text = f"CPU {ranges.listed(missing)} of the root cell is offline: `jailhouse disable` would fail half way"
        yield _say(Level.WARNING, text, "bring it online")
    name = view.root.name
    yield _say(Level.OK, f"Jailhouse is enabled; the root cell is '{name}' on CPUs {ranges.listed(view.root.cpus)}")
    wanted = {"the board file": machine.board.root_cell if machine.board is not None else name}
    if machine.system is not None:
        wanted[machine.system_path] = machine.system.root_cell.name
    for what, other in wanted.items():
        if other != name:
            mend = "stop Jailhouse and enable it with the board's own configuration, or name the right one"
            yield _error(f"the root cell that runs is '{name}', and {what} is for '{other}'", mend)


def _module(machine: Machine) -> Iterator[Finding]:
    if machine.view.module:
        yield _say(Level.OK, "Jailhouse's kernel module is loaded")
    elif machine.module is False:
        yield _error(
            f"Linux {machine.kernel} has no module jailhouse",
            "build it for this kernel and install it, then run depmod; or give its file with --module",
        )


def _firmware(machine: Machine) -> Iterator[Finding]:
    if machine.wanted in machine.firmware:
        yield _say(Level.OK, f"the hypervisor's image is there: {machine.wanted}")
        return
    others = f"; there is {', '.join(machine.firmware)}" if machine.firmware else ""
    yield _error(
        f"the hypervisor's image {machine.wanted} is not in /lib/firmware{others}", f"install {machine.wanted} there"
    )


# Section: the system configuration, by itself


def _config(machine: Machine) -> Iterator[Finding]:
    if machine.system is None:
        if machine.problem:
            yield _error(f"cannot use the system configuration: {machine.problem}", "name the board's own")
        elif not machine.view.enabled:
            text = "no system configuration is named: memory, CPUs and interrupt controller are not looked at"
            yield _say(Level.NOTE, text, "set jailhouse.system_config")
        return
    system, path = machine.system, machine.system_path
    for finding in check.check_system(system):
        level = Level.ERROR if finding.severity is check.Severity.ERROR else Level.WARNING
        yield _say(level, f"{path}: {finding.where}: {finding.words}", finding.mend)
    if system.architecture is not None and machine.machine not in _MACHINES.get(Arch(system.architecture), ()):
        own = Arch(system.architecture).name.lower()
        yield _error(f"{path} is for {own}, and this machine is {machine.machine}", "name the board's own")
    if machine.board is not None:
        yield from _board(machine.board, system, path)


def _board(board: Board, system: System, path: str) -> Iterator[Finding]:
    """The board file must lend nothing that the configuration does not have."""
    root = system.root_cell
    if board.root_cell != root.name:
        yield _error(
            f"{path} is for '{root.name}', and board '{board.name}' for '{board.root_cell}'",
            "set jailhouse.board to the file of this board, or make one: runphi board from-sysconfig FILE",
        )
        return
    if board.dialect != system.dialect:
        text = f"{path} is of dialect {system.dialect}, and board '{board.name}' of {board.dialect}"
        yield _error(text, f'set dialect = "{system.dialect}" in the board file')
    own = [Range(region.phys_start, region.phys_start + region.size) for region in root.memory if region.size]
    for part in board.memory:
        for gap in ranges.without([part.range], own):
            text = f"board '{board.name}' lends {gap.text()}, which is not the root cell's: to load there hangs it"
            yield _error(text, "lend memory that the system configuration gives to the root cell")
    missing = set(board.cpus.lent()) - set(bits(root.cpu_set))
    if missing:
        text = f"board '{board.name}' lends CPU {ranges.listed(missing)}, which the root cell does not have"
        yield _error(text, "correct [cpus] in the board file")


# Section: the system configuration on this machine


def _memory(machine: Machine, system: System) -> Iterator[Finding]:
    if machine.iomem is None:
        yield _say(Level.NOTE, "whether memory is kept free for Jailhouse cannot be told: /proc/iomem hides addresses")
        return
    ram = ranges.merged(part for part, what in machine.iomem if what == "System RAM")
    own = system.hypervisor_memory
    needed = [(Range(own.phys_start, own.phys_start + own.size), "the hypervisor")]
    needed += _lent(machine.board) if machine.board is not None else []
    mend = _reserve(machine, [part for part, _ in needed], ram)
    taken = [(part, who, other) for part, who in needed for other in ram if part.overlaps(other)]
    for part, who, other in taken:
        text = f"memory {part.text()} for {who} is not reserved: Linux uses {other.text()}{_said(machine)}"
        yield _error(text, mend)
    if not taken:
        yield _say(Level.OK, f"memory {', '.join(part.text() for part, _ in needed)} is kept free for Jailhouse")


def _lent(board: Board) -> list[tuple[Range, str]]:
    """Return the memory that cells get: RAM, and pages that several of them share."""
    templates = (board.template.inmate, board.template.linux, board.template.kernel, board.template.rpu)
    pages = {part.range: part.name for one in templates if one is not None for part in one.shared}
    parts = [(part.range, part.name) for part in board.memory] + list(pages.items())
    return [(part, f"cells ({name})") for part, name in parts]


def _said(machine: Machine) -> str:
    """Return what the kernel's command line has to do with it."""
    words = [word for word in machine.cmdline.split() if word.startswith(("mem=", "memmap="))]
    return f", although the kernel was booted with {' '.join(words)}" if words else ""


def _reserve(machine: Machine, needed: list[Range], ram: list[Range]) -> str:
    if not machine.machine.startswith(("aarch64", "arm")):
        words = " ".join(f"memmap={part.size:#x}${part.start:#x}" for part in ranges.merged(needed))
        return f"boot the kernel with {words}"
    below = min(part.start for part in needed) - min((part.start for part in ram), default=0)
    mend = "boot with a reserved-memory node (no-map) for it in the device tree"
    return f"{mend}, or with mem={below // MIB}M" if below >= MIB else mend


def _cpus(machine: Machine, system: System) -> Iterator[Finding]:
    if machine.online is None:
        return
    listed, online = set(bits(system.root_cell.cpu_set)), set(machine.online)
    if listed - online:
        text = f"the system configuration lists CPU {ranges.listed(listed - online)}, which is not online"
        yield _error(text, "bring it online, or take it out of the configuration: both must be the same")
    if online - listed:
        text = f"CPU {ranges.listed(online - listed)} is online, and the system configuration does not list it"
        yield _error(text, "add it to the configuration, or boot with maxcpus=: both must be the same")
    if listed == online:
        yield _say(Level.OK, f"CPUs {ranges.listed(online)} are online, as the system configuration lists them")


def _chips(machine: Machine, system: System) -> Iterator[Finding]:
    if isinstance(system.platform, ArmPlatform) and machine.gic is not None:
        wanted = system.platform.gic_version
        if wanted != machine.gic:
            yield _error(
                f"the system configuration is for GICv{wanted}, and this machine has GICv{machine.gic}",
                "name the configuration of this machine",
            )
        else:
            yield _say(Level.OK, f"interrupt controller GICv{wanted}, as the system configuration says")
    units = sum(1 for unit in system.iommu_units if unit.type)
    if units and machine.iommus:
        yield _say(
            Level.WARNING,
            f"Linux drives IOMMU {', '.join(machine.iommus)}, and the hypervisor is to take over {units}",
            "boot with intel_iommu=off or amd_iommu=off, or disable it in the device tree",
        )
    if machine.iomem is not None and system.pci_is_virtual:
        buses = system.pci_mmconfig_base, system.pci_mmconfig_base + (system.pci_mmconfig_end_bus + 1) * _BUS
        for part, what in machine.iomem:
            if part.overlaps(Range(*buses)) and "jailhouse" not in what.lower():
                yield _say(
                    Level.WARNING,
                    f"{what} at {part.text()} covers the virtual PCI host at {buses[0]:#x}: no shared memory devices",
                    "correct the size of that device in the device tree",
                )


# Section: stopping


def in_the_way(view: View, ours: dict[str, str], online: tuple[int, ...] | None) -> list[Finding]:
    """Return why Jailhouse must not be stopped: disabling it destroys every cell, even when it fails in the end.

    :param ours: names of containers by the names of their cells.
    """
    found = []
    for cell in view.cells:
        if cell.id == 0:
            missing = set(cell.cpus) - set(online if online is not None else cell.cpus)
            if missing:
                text = f"CPU {ranges.listed(missing)} of the root cell is offline: stopping would fail half way"
                found.append(_error(text, "bring it online"))
        elif cell.name in ours:
            text = f"cell '{cell.name}' is container '{ours[cell.name]}' ({cell.state})"
            found.append(_error(text, f"delete it first: runphi delete --force {ours[cell.name]}"))
        else:
            text = f"cell '{cell.name}' was made by somebody else ({cell.state})"
            found.append(_error(text, f"jailhouse cell destroy --name {cell.name}, if nobody needs it"))
    return found
