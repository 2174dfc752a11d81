# SPDX-License-Identifier: Apache-2.0
"""Guests that nobody takes over any more: their create was interrupted, their init process died, or they are sick.

What they had is ended and given back by whatever way is left.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from backends import detect
from backends.base import Verdict
from runphi_async.container.forgetting import forget
from runphi_async.host.files import boot_id
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.record.lifecycle import Status

if TYPE_CHECKING:
    from backends.base import Driver
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.record.store import Record

log = logging.getLogger(__name__)


def living_init(record: Record) -> Process | None:
    """Return the init process of a record, None when it is gone."""
    if record.boot_id != boot_id() or record.pid <= 0:
        return None
    try:
        return Process(record.pid, record.pid_start)
    except (OSError, OverflowError):  # gone, or no number of a process
        return None


async def recall(supervisor: Supervisor, container: Container) -> Driver:
    """Return the driver of a guest that an earlier supervisor made."""
    record = container.record
    backend = await detect.backend(record.backend, supervisor.detection)
    return backend.recall(record.plan, container.directory)


async def give_up(supervisor: Supervisor, container: Container) -> None:
    """End a guest that could not be taken over, by whatever way is left."""
    container.sick = None
    running, process = container.running, living_init(container.record)
    await anyio.to_thread.run_sync(container.kill_group)
    if running is not None:  # it was taken over far enough to come to an end of its own
        await _bury_machine(supervisor, container)
        running.ended.set()
        await container.ended()
    else:
        await bury(supervisor, container, process)


async def bury(supervisor: Supervisor, container: Container, process: Process | None) -> None:
    """A guest whose create was interrupted, or whose init died while nobody watched."""
    record = container.record
    vmm = stub.read_pid(container.directory)
    if vmm is not None and record.boot_id == boot_id():
        await anyio.to_thread.run_sync(container.kill_group)
    await _bury_machine(supervisor, container)
    if process is not None:
        process.send(9)
        process.close()
    if record.status is Status.CREATING:
        log.warning("%s: its create was interrupted: removing it", record.name)
        await forget(container)
        supervisor.drop(container)
        return
    container.stopped(Verdict(128 + 9, "the init process was killed while no supervisor ran"), delivered=False)
    container.settled.set()


async def release(supervisor: Supervisor, container: Container) -> None:
    """Let go of what a guest that has ended had outside its record, where it still has it."""
    await _bury_machine(supervisor, container, "let go of what it had", logging.WARNING)


async def _bury_machine(
    supervisor: Supervisor, container: Container, what: str = "end its guest", level: int = logging.ERROR
) -> None:
    """End what is not in the container's cgroup: a domain, a cell.

    :param what: as it is logged, behind "cannot".
    """
    record = container.record
    if record.boot_id != boot_id():
        return
    try:
        await (await recall(supervisor, container)).bury()
    except Exception as exc:
        log.log(level, "%s: cannot %s: %r", record.name, what, exc)
