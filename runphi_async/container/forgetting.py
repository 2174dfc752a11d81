# SPDX-License-Identifier: Apache-2.0
"""Removing a container that has ended: init process, cgroup, shared memory, record and log."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import anyio

from consoles.sharedmem import shmfiles
from runphi_async.errors import CgroupError

if TYPE_CHECKING:
    from runphi_async.container.container import Container
    from runphi_async.record.store import Record

log = logging.getLogger(__name__)


async def forget(container: Container) -> None:
    """Free everything the container had and remove its record; never fails."""
    if container.init is not None:
        init, container.init = container.init, None
        await init.leave(container.shared.clock)
    await anyio.to_thread.run_sync(_remove, container)


def _remove(container: Container) -> None:
    record = container.record
    if record.cgroup:
        try:
            cgroup = container.cgroup
            cgroup.kill_all()
            cgroup.remove()
        except (CgroupError, OSError) as exc:
            log.warning("%s: %s", record.name, exc)
    shmfiles.unlink(container.directory)
    container.shared.store.remove(record.name, record.root, record.id)
    remove_logs(record)


def remove_logs(record: Record) -> None:
    """Remove the container's own log directory (blocks); logs that lie elsewhere were asked for there, and stay."""
    if record.log_dir:
        shutil.rmtree(record.log_dir, ignore_errors=True)
