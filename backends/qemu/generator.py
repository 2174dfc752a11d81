# SPDX-License-Identifier: Apache-2.0
"""The QEMU config generator: six decisions, six QEMU halves, one command line.

:func:`plan` is pure: facts about host and image are gathered before, by ``gathering.py``, so a plan can be made,
compared and explained without a hypervisor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.qemu import boot, comm, cpu, dev, mem, net
from backends.qemu.machine import Machine, accel_for, value
from backends.qemu.plan import QemuPlan
from backends.qemu.virtiofs import Share
from runphi_async.errors import PlanError
from runphi_async.partition import mounts
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.qemu.machine import HostFacts, PlanConfig
    from runphi_async.partition.spec import GuestSpec

#: Debian's package of the QEMU for each guest architecture, for the hint
_PACKAGES: Final = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


def plan(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> QemuPlan:
    """Plan the partition.

    :raises PlanError: when it cannot be had; the message says what is missing.
    """
    check(spec)
    memory = mem.choose(spec, facts, config)
    cpus = cpu.choose(spec, facts)
    booting = boot.choose(spec, facts)
    devices = dev.choose(spec)
    network = net.choose(spec, facts)
    mounted = mounts.decide(spec)
    channels = comm.choose(spec)

    accel = accel_for(facts, booting.arch)
    machine = boot.machine(spec, booting, accel)
    boot.check(spec, booting, memory)
    transport = "device" if machine is Machine.MICROVM else "pci"
    options = boot.machine_options(machine, booting, spec.kind, pci=bool(channels.shared))
    options += mem.machine_options(devices.share_rootfs)
    argv = [
        *start_helper(spec, booting.arch, facts),
        "-machine", ",".join([machine, *options]),
        *mem.args(memory, shared=devices.share_rootfs),
        *cpu.args(cpus, booting.arch, facts),
        *boot.args(spec, booting, machine),
        *net.args(network, spec.kind, machine, transport, facts.qmp_fd),
        *comm.args(channels, transport, facts.qmp_fd),
        *dev.args(devices, machine, transport, accel),
        *end_helper(spec.kind),
    ]  # fmt: skip
    return QemuPlan(
        accel=accel,
        vouched=booting.image == facts.kernel and not spec.cmdline,
        backend="qemu",
        kind=spec.kind,
        arch=booting.arch,
        memory_bytes=memory.bytes,
        vcpus=cpus.count,
        pins=cpus.pins,
        argv=tuple(argv),
        files=boot.files(spec, facts, mounted, network),
        handed=boot.handed(spec, booting),
        share=Share(spec.rootfs, mounted.binds) if devices.share_rootfs else None,
        netns=spec.netns if network.macs else None,
        macs=network.macs,
        channels=spec.channels,
        console=spec.console,
        explain=(
            *booting.explain,
            boot.explain(booting, machine, facts.image),
            memory.explain,
            *cpus.explain,
            cpu.explain(booting.arch, facts),
            *devices.explain,
            *dev.explain(devices, machine, accel),
            *network.explain,
            *mounted.explain,
            *channels.explain,
        ),
    )


def with_second_try(made: QemuPlan, spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> QemuPlan:
    """Add the command line of a second try, where one is safe: a Linux guest on KVM that nobody demanded."""
    if made.kind is not GuestKind.LINUX or made.accel != "kvm":
        return made
    again = plan(spec, msgspec.structs.replace(facts, accel="tcg"), config)
    return msgspec.structs.replace(made, again=again.argv)


def check(spec: GuestSpec) -> None:
    """Refuse what only a board has.

    :raises PlanError: the container asked for it.
    """
    if spec.rpu:
        raise PlanError(
            "cannot give the guest a remote processor: QEMU's machines have none",
            "drop rpu_req and org.runphi.rpu, or choose another backend",
        )
    for name, asked in (("colors", spec.colors), ("console-port", spec.console_port)):
        if asked is not None:
            raise PlanError(
                f"cannot do what annotation org.runphi.{name} says: only boards have that",
                "drop it, or choose another backend",
            )


def start_helper(spec: GuestSpec, arch: str, facts: HostFacts) -> list[str]:
    """The head of every command line: the program, and nothing that was not asked for."""
    binary = facts.binaries.get(arch)
    if binary is None:
        raise PlanError(
            f"cannot run a guest for {arch}: there is no QEMU for it",
            f"apt-get install {_PACKAGES.get(arch, 'qemu-system')}",
        )
    return [
        binary,
        "-name", f"guest={value(spec.id)}",
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]  # fmt: skip


def end_helper(kind: GuestKind) -> list[str]:
    """The tail of every command line: wait for ``start``, and let a reboot be the guest's end.

    A Linux guest's kernel has no business to end the machine, that is its init's word: QEMU stays, so that the kernel
    can be asked for its last lines.
    """
    return ["-no-reboot", *(["-no-shutdown"] if kind is GuestKind.LINUX else []), "-S"]
