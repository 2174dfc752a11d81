# SPDX-License-Identifier: Apache-2.0
"""The Xen config generator: six decisions, six Xen halves, one xl.cfg.

:func:`plan` is pure; facts about host and image are gathered before by the backend. What depends on the record
directory, which exists only after the plan, and the domain's uuid are added by :func:`configuration`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.guest import initrd
from backends.xen import boot as xen_boot
from backends.xen import comm as xen_comm
from backends.xen import cpu as xen_cpu
from backends.xen import dev as xen_dev
from backends.xen import mem as xen_mem
from backends.xen import net as xen_net
from backends.xen import xlcfg
from backends.xen.machine import Type, check_wishes, wish
from runphi_async.errors import PlanError
from runphi_async.partition import boot, comm, cpu, mem, mounts
from runphi_async.partition.spec import GuestKind, PartitionPlan
from runphi_async.units import MIB, human

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

CONFIG: Final = "xl.cfg"
#: for the record and its reader; the driver runs it in the record directory
COMMAND: Final = ("xl", "create", "-q", "-e", "-p", CONFIG)
RAMDISK: Final = "ramdisk"
DISK: Final = "disk"


class XenPlan(PartitionPlan, frozen=True, omit_defaults=True, kw_only=True):
    """A partition on Xen."""

    #: what xl.cfg says, but for what is known only when the domain is made
    keys: dict[str, str | int | tuple[str, ...]]
    #: of the container
    id: str
    #: the root filesystem a Linux guest gets, and whether it gets it as "ramdisk" or "disk"
    rootfs: str | None = None
    rootfs_by: str | None = None
    #: our init's RAM disk with this container's settings
    initrd: bytes = b""


def domain_name(container_id: str, uuid: str) -> str:
    """Return the domain's name: the id for people, and something that keeps two roots' ids and bare numbers apart."""
    return f"{container_id}.{uuid[:8]}"


def plan(spec: GuestSpec, facts: HostFacts, config: PlanConfig, *, pv_note: bool) -> XenPlan:
    """Plan the partition.

    :param pv_note: whether the image has the notes of a PV kernel.
    :raises PlanError: when it cannot be had; the message says what is missing.
    """
    check_wishes(spec)
    memory = mem.decide(spec, facts.page_size, config.memory_default, config.memory_minimum)
    cpus = cpu.decide(spec, facts.cpus)
    booting = boot.decide(spec, facts.image, config.kernel, facts.arch)
    channels = comm.decide(spec)
    chosen = xen_boot.guest_type(spec, booting, facts, pv_note)
    xen_comm.check(spec, facts)
    extra = xen_comm.extra(spec, facts)
    network = xen_net.decide(spec, facts)
    entries: dict[str, Value] = {
        **xen_boot.keys(spec, booting, chosen),
        **xen_mem.keys(memory, facts),
        **xen_cpu.keys(spec, cpus, facts),
        **xen_net.keys(spec, config.bridges, network),
        **xen_dev.keys(spec, facts, config),
        # Nobody carries these out with -e; they tell what we do: a domain that shut down is kept until we saw why.
        "on_poweroff": "preserve",
        "on_reboot": "preserve",
        "on_crash": "preserve",
    }
    how, told = _rootfs(spec, facts, config, memory.bytes)
    mounted = mounts.decide(spec, shares=False, copies=True)
    own_initrd = b""
    if how is not None and facts.initrd is not None and spec.process is not None:
        conf = initrd.container_conf(
            spec.process,
            readonly=spec.readonly_root,
            rootfs=how,
            mounts=mounted.guest,
            net=bool(network.macs),
        )
        copies = {bind.name: facts.copies[bind.source] for bind in mounted.binds}
        own_initrd = initrd.with_conf(facts.initrd, conf, copies)
    xlcfg.render(entries)  # what cannot be written is refused now, not when it is made
    return XenPlan(
        backend="xen",
        kind=spec.kind,
        arch=booting.arch,
        memory_bytes=memory.bytes,
        vcpus=cpus.count,
        pins=cpus.pins,
        argv=COMMAND,
        id=spec.id,
        keys=entries,
        rootfs=spec.rootfs if how else None,
        rootfs_by=how,
        netns=spec.netns if network.macs else None,
        macs=network.macs,
        channels=(*spec.channels, *extra),
        console=spec.console,
        handed=xen_boot.handed(spec, booting),
        initrd=own_initrd,
        explain=(
            *booting.explain,
            xen_boot.explain(chosen, facts),
            memory.explain,
            *cpus.explain,
            *xen_cpu.explain(entries),
            *told,
            *mounted.explain,
            *network.explain,
            "comm: PV console" + (", control lines in xenstore" if channels.control else ""),
            *(f"comm: channel {channel.name}: {channel.text()}" for channel in spec.channels),
            *(f"comm: PV channel {channel.name}, a console of the guest's" for channel in extra),
        ),
    )


def _rootfs(spec: GuestSpec, facts: HostFacts, config: PlanConfig, memory: int) -> tuple[str | None, list[str]]:
    """How a Linux guest gets the image: into its RAM while it is small, else as a disk made of it."""
    if spec.kind is not GuestKind.LINUX:
        return None, []
    boot.linux_process(spec, facts.initrd, "xen.initrd")
    how = wish(spec, "rootfs") or (RAMDISK if facts.rootfs_bytes <= config.ramdisk_max_bytes else DISK)
    if how not in (RAMDISK, DISK):
        raise PlanError(f"cannot hand over the rootfs by {how!r}", f"one of: {RAMDISK}, {DISK}")
    # Once as an archive and once unpacked, beside the kernel.
    need = facts.rootfs_bytes * 2 + 64 * MIB
    if how == RAMDISK and need > memory:
        raise PlanError(
            f"cannot put a rootfs of {human(facts.rootfs_bytes)} into {human(memory)} of RAM: it needs {human(need)}",
            "raise the memory limit, or set annotation org.runphi.xen.rootfs=disk",
        )
    what = "in its RAM" if how == RAMDISK else "on a disk made of it"
    return how, [f"dev: rootfs of {human(facts.rootfs_bytes)} {what}; what the guest writes ends with it"]


def configuration(plan: XenPlan, directory: str, uuid: str, disk: str | None = None) -> bytes:
    """Return the xl.cfg of a guest whose record is in ``directory``.

    :param uuid: finds the domain also when its making is cut short.
    :param disk: file with the root filesystem.
    """
    own: dict[str, Value] = {"name": domain_name(plan.id, uuid), "uuid": uuid}
    entries: dict[str, Value] = {**own, **plan.keys, **xen_comm.keys(plan.channels, directory)}
    for file in plan.handed:
        entries["kernel" if file.name == xen_boot.IMAGE else "ramdisk"] = f"{directory}/{file.name}"
    if plan.initrd:
        entries["ramdisk"] = f"{directory}/{xen_boot.GUEST_INITRD}"
    if disk is not None:
        others = entries.get("disk", ())
        assert isinstance(others, tuple)
        entries["disk"] = (f"{disk},raw,{xen_dev.ROOT_DISK},rw", *others)
    return xlcfg.render(entries)


def guest_type(plan: XenPlan) -> Type:
    """Return the kind of guest that was planned."""
    return Type(str(plan.keys["type"]))
