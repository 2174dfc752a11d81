# SPDX-License-Identifier: Apache-2.0
"""The QEMU config generator: six decisions, six QEMU halves, one command line.

:func:`plan` is pure: facts about host and image are gathered before (:func:`gather` reads the image's
header), so a plan can be made, compared and explained without a hypervisor. The backend's ``plan()`` calls
it; the record keeps it as ``partition.conf`` renders it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from backends.guest import elf, initrd, nics
from backends.qemu import boot as qemu_boot
from backends.qemu import comm as qemu_comm
from backends.qemu import cpu as qemu_cpu
from backends.qemu import dev as qemu_dev
from backends.qemu import mem as qemu_mem
from backends.qemu import net as qemu_net
from backends.qemu.machine import HostFacts, Machine, QemuPlan, accel_for, value
from runphi_async.errors import PlanError
from runphi_async.host import nic
from runphi_async.lifeline import stub
from runphi_async.partition import boot, comm, cpu, dev, mem, mounts, net
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.qemu.machine import PlanConfig
    from runphi_async.partition.mounts import Mounts
    from runphi_async.partition.net import Network
    from runphi_async.partition.spec import GuestSpec

#: Debian's package of the QEMU for each guest architecture, for the hint
_PACKAGES: Final = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


def gather(
    spec: GuestSpec,
    *,
    accel: str,
    binaries: Mapping[str, str],
    kernel: str | None = None,
    initrd_path: str | None = None,
    qmp_fd: int | None = None,
    accel_reason: str = "",
) -> HostFacts:
    """Collect what :func:`plan` wants to know; the only part that touches files."""
    return HostFacts(
        accel=accel,
        accel_reason=accel_reason,
        arch=os.uname().machine,
        binaries=dict(binaries),
        online_cpus=tuple(sorted(os.sched_getaffinity(0))),
        image=elf.inspect(boot.boot_image(spec, kernel)),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        kernel=kernel,
        initrd=_read(initrd_path) if initrd_path is not None and spec.kind is GuestKind.LINUX else None,
        qmp_fd=qmp_fd,
        links=nics.look(spec.netns),
        no_taps=nic.obstacle() if spec.netns is not None else "",
    )


#: descriptor of the first tap in QEMU where no QMP socket lies in front of it
FIRST_TAP_FD: Final = stub.FIRST_EXTRA


def plan(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> QemuPlan:
    """Plan the partition.

    :raises PlanError: when it cannot be had; the message says what is missing.
    """
    check(spec)
    memory = mem.decide(spec, facts.page_size, config.memory_default, config.memory_minimum)
    cpus = cpu.decide(spec, facts.online_cpus)
    booting = boot.decide(spec, facts.image, facts.kernel, facts.arch)
    devices = dev.decide(spec)
    network = net.decide(spec, facts.links, facts.no_taps)
    mounted = mounts.decide(spec)
    comm.refuse_vchan(spec)
    channels = comm.decide(spec)

    accel = accel_for(facts, booting.arch)
    machine = qemu_boot.machine(spec, booting, accel)
    qemu_boot.check(spec, booting, memory)
    transport = "device" if machine is Machine.MICROVM else "pci"
    options = qemu_boot.machine_options(machine, booting, spec.kind, pci=bool(channels.shared))
    options += qemu_mem.machine_options(devices.share_rootfs)
    first_tap = FIRST_TAP_FD if facts.qmp_fd is None else facts.qmp_fd + 1
    argv = [
        *start_helper(spec, booting.arch, facts),
        "-machine", ",".join([machine, *options]),
        *qemu_mem.args(memory, shared=devices.share_rootfs),
        *qemu_cpu.args(cpus, booting.arch, facts),
        *qemu_boot.args(spec, booting, machine),
        *qemu_net.args(network, spec.kind, machine, transport, first_tap),
        *qemu_comm.args(channels, transport, facts.qmp_fd),
        *qemu_dev.args(devices, machine, transport, accel),
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
        files=guest_files(spec, facts, mounted, network),
        handed=qemu_boot.handed(spec, booting),
        virtiofs=spec.rootfs if devices.share_rootfs else None,
        binds=mounted.binds,
        netns=spec.netns if network.macs else None,
        macs=network.macs,
        channels=spec.channels,
        console=spec.console,
        explain=(
            *booting.explain,
            qemu_boot.explain(booting, machine, facts.image),
            memory.explain,
            *cpus.explain,
            qemu_cpu.explain(booting.arch, facts),
            *devices.explain,
            *qemu_dev.explain(devices, machine, accel),
            *network.explain,
            *net.explain_netconf(spec),
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


def guest_files(spec: GuestSpec, facts: HostFacts, mounted: Mounts, network: Network) -> dict[str, bytes]:
    """The RAM disk of a Linux guest: our init, and what it shall run."""
    if spec.kind is not GuestKind.LINUX:
        return {}
    process, base = boot.linux_process(spec, facts.initrd, "qemu.initrd")
    conf = initrd.container_conf(process, readonly=spec.readonly_root, mounts=mounted.guest, net=bool(network.macs))
    return {qemu_boot.GUEST_INITRD: initrd.with_conf(base, conf)}


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise PlanError(f"cannot read the guest's RAM disk {path}: {exc.strerror}") from exc


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
