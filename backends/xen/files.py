# SPDX-License-Identifier: Apache-2.0
"""The files that xl makes a domain of, and what of them stays when it is made."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from backends.guest import handed, initrd, rootfs
from backends.xen import plan as planning
from backends.xen import wishes
from backends.xen.boot import GUEST_INITRD, IMAGE, RAMDISK
from consoles.sharedmem import shmfiles, vchan
from runphi_async.host.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.xen.plan import XenPlan
    from runphi_async.partition.channels import Channel


class Files:
    """The files of one domain, in its record and, for a disk, where disks are made.

    :param disk_dir: where its disk is made; None: it has none.
    """

    def __init__(self, directory: str, disk_dir: str | None) -> None:
        self._directory = directory
        self._disk_dir = disk_dir

    def _disk(self, uuid: str) -> str | None:
        """Return the disk with the root filesystem, which has this name only while the domain is made."""
        if self._disk_dir is None or not uuid:
            return None
        return os.path.join(self._disk_dir, f"{uuid}.img")

    async def write(self, plan: XenPlan, uuid: str) -> None:
        """Write what xl reads.

        :raises BackendError: the root filesystem cannot be packed.
        """
        disk = self._disk(uuid)
        if disk is not None and plan.rootfs is not None:
            size = await asyncio.to_thread(rootfs.measure, plan.rootfs)
            await rootfs.make_disk(disk, plan.rootfs, size)
        await asyncio.to_thread(handed.hand_over, plan.handed, self._directory, plan.memory_bytes)
        if plan.initrd:
            await asyncio.to_thread(self._write_initrd, plan)
        config = planning.configuration(plan, self._directory, uuid, disk)
        write_atomically(os.path.join(self._directory, planning.CONFIG), config)

    def _write_initrd(self, plan: XenPlan) -> None:
        with open(os.path.join(self._directory, GUEST_INITRD), "wb") as file:
            file.write(plan.initrd)
            if plan.rootfs_by == wishes.RAMDISK and plan.rootfs is not None:
                file.write(b"\0" * (-len(plan.initrd) % initrd.BLOCK))
                rootfs.append_archive(file, plan.rootfs)

    def link_channels(self, channels: Iterable[Channel], domid: int) -> None:
        """Write down where in XenStore the guest's vchan servers will be, for whoever connects to them."""
        for channel in channels:
            if channel.vchan:
                node = vchan.server(domid, channel.name)
                os.symlink(node, os.path.join(self._directory, shmfiles.LINK + channel.name))

    def forget(self, uuid: str) -> None:
        """Give up the names of what only the making needed.

        Kernel and RAM disk are in the domain's memory; its disk is held by a loop device, and freed with it whatever
        happens.
        """
        for path in (os.path.join(self._directory, GUEST_INITRD), self._disk(uuid)):
            if path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        handed.forget(self._directory, (IMAGE, RAMDISK))
