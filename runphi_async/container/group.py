# SPDX-License-Identifier: Apache-2.0
"""The processes of a container in the making: their cgroup, and their rank for when memory runs out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from runphi_async.container.limits import limits
from runphi_async.container.memoryrank import rank_for_memory
from runphi_async.errors import CgroupError
from runphi_async.host.processes import children

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.base import Driver
    from runphi_async.container.recorded import Recorded
    from runphi_async.oci import spec as oci

log = logging.getLogger(__name__)


class Group:
    """The processes of one container.

    :param overhead: bytes that a VMM needs beside its guest's memory.
    """

    def __init__(self, container: Recorded, driver: Driver, spec: oci.Spec, overhead: int) -> None:
        self._container = container
        self._driver = driver
        self._spec = spec
        self._overhead = overhead

    async def make(self) -> None:
        """Make the cgroup."""
        group = self._container.cgroup
        await anyio.to_thread.run_sync(group.create)
        if not self._driver.command:
            return  # nothing of the guest runs in it, and its CPUs may have left this system: no cpuset has them
        await anyio.to_thread.run_sync(group.apply, limits(self._spec, self._overhead))

    async def remove(self) -> None:
        """Undo `make` as long as there is no init process, with whose end the cgroup goes."""
        try:
            await anyio.to_thread.run_sync(self._container.cgroup.remove)
        except (CgroupError, OSError) as exc:
            log.warning("%s: %s", self._container.record.name, exc)

    async def fill(self) -> None:
        """Move the init process and the guest's helpers, with what they have forked by now."""
        await anyio.to_thread.run_sync(self._fill)

    def _fill(self) -> None:
        for pid in (self._container.record.pid, *self._driver.helpers()):
            self._container.cgroup.join_family(pid)
        for pid in self._driver.helpers():
            self.rank((pid, *children(pid)))

    def rank(self, pids: Iterable[int]) -> None:
        """Give processes the container's rank for the out-of-memory killer; without one they keep the engine's."""
        rank = self._spec.process.oom_score_adj if self._spec.process is not None else None
        if rank is not None:
            for pid in pids:
                rank_for_memory(pid, rank)
