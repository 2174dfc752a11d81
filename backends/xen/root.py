# SPDX-License-Identifier: Apache-2.0
"""How a Linux guest on Xen gets the image: into its RAM while it is small, else as a disk made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backends.guest import initrd as initrds
from backends.xen.wishes import DISK, RAMDISK
from runphi_async.errors import PlanError
from runphi_async.partition import boot, mounts
from runphi_async.partition.mounts import Mounts
from runphi_async.partition.spec import GuestKind
from runphi_async.units import MIB, human

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.wishes import XenWishes
    from runphi_async.partition.mem import Memory
    from runphi_async.partition.net import Network
    from runphi_async.partition.spec import GuestSpec


class Handing(msgspec.Struct, frozen=True):
    """The way decided, and why.

    :ivar how: ``RAMDISK`` or ``DISK``; None: the guest has no use for the image.
    :ivar disk_dir: where the disk is made.
    """

    how: str | None
    disk_dir: str | None
    mounted: Mounts
    explain: tuple[str, ...]


def choose(spec: GuestSpec, wishes: XenWishes, facts: HostFacts, config: PlanConfig, memory: Memory) -> Handing:
    """Decide how the image gets there, and what is mounted over it.

    :raises PlanError: it cannot.
    """
    mounted = mounts.decide(spec, shares=False, copies=True)
    if spec.kind is not GuestKind.LINUX:
        return Handing(None, None, mounted, mounted.explain)
    boot.linux_process(spec, facts.initrd, "xen.initrd")
    how = wishes.rootfs or (RAMDISK if facts.rootfs_bytes <= config.ramdisk_max_bytes else DISK)
    # Once as an archive and once unpacked, beside the kernel.
    need = facts.rootfs_bytes * 2 + 64 * MIB
    if how == RAMDISK and need > memory.bytes:
        raise PlanError(
            f"cannot put a rootfs of {human(facts.rootfs_bytes)} into {human(memory.bytes)} of RAM: "
            f"it needs {human(need)}",
            "raise the memory limit, or set annotation org.runphi.xen.rootfs=disk",
        )
    what = "in its RAM" if how == RAMDISK else "on a disk made of it"
    told = f"dev: rootfs of {human(facts.rootfs_bytes)} {what}; what the guest writes ends with it"
    return Handing(how, config.image_dir if how == DISK else None, mounted, (told, *mounted.explain))


def initrd(spec: GuestSpec, facts: HostFacts, handing: Handing, network: Network) -> bytes:
    """Return our init's RAM disk with the container's settings; nothing for other guests."""
    if handing.how is None:
        return b""
    process, base = boot.linux_process(spec, facts.initrd, "xen.initrd")
    conf = initrds.container_conf(
        process,
        readonly=spec.readonly_root,
        rootfs=handing.how,
        mounts=handing.mounted.guest,
        net=bool(network.macs),
    )
    copies = {bind.name: facts.copies[bind.source] for bind in handing.mounted.binds}
    return initrds.with_conf(base, conf, copies)
