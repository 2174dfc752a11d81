# SPDX-License-Identifier: Apache-2.0
"""Steps of making a QEMU guest that need nothing of its driver: memory of channels, pinned vCPUs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from consoles.sharedmem import shmfiles
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.qemu.monitor import Monitor
    from runphi_async.partition.channels import Channel


def make_channels(directory: str, channels: Sequence[Channel]) -> None:
    """Make the memory of those channels that have none yet (blocks).

    :raises BackendError: there is no room for it.
    """
    for channel in channels:
        if channel.made:
            try:
                shmfiles.make(directory, channel.name, channel.size)
            except OSError as exc:
                raise BackendError(
                    f"cannot make the memory of channel '{channel.name}' in {shmfiles.SHM}: {exc.strerror}",
                    "make the channel smaller or /dev/shm larger",
                ) from exc


async def pin(monitor: Monitor, pins: Sequence[int]) -> None:
    """Pin each vCPU to its host CPU.

    :raises BackendError: that cannot be done.
    """
    cpus = await monitor.execute("query-cpus-fast")
    if not isinstance(cpus, list):
        raise BackendError("cannot pin the vCPUs: QEMU does not list them")
    for cpu, host in zip(cpus, pins, strict=False):
        try:
            os.sched_setaffinity(int(cpu["thread-id"]), {host})
        except OSError as exc:
            raise BackendError(
                f"cannot pin a vCPU to host CPU {host}: {exc.strerror}",
                "give a cpuset of online CPUs",
            ) from exc
