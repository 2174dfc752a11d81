# SPDX-License-Identifier: Apache-2.0
"""The records that an earlier supervisor left, and what can be put together where one is damaged.

Nothing is believed that the kernel does not confirm: a process is the container's if it works in the record.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import msgspec

from runphi_async.errors import StateError
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import Record

if TYPE_CHECKING:
    from runphi_async.container.recorded import Shared

log = logging.getLogger(__name__)


def load(shared: Shared, name: str) -> Record | None:
    """Return a record; one that is damaged is put together from what is left of it.

    None: its create never came so far that anybody could know of it.
    """
    store = shared.store
    try:
        return store.load(name)
    except StateError as exc:
        log.error("%s: %s", name, exc)
    record = store.load_made(name)
    process = _confirmed(store.directory(name), "pidfile")
    if record is None and process is None and not _target(os.path.join(store.directory(name), "bundle")):
        return None  # its create never came so far that anybody could know of it
    if record is None:
        record = _unknown(store.directory(name), name, shared.clock.wall())
        record.log_dir = os.path.join(shared.config.log.dir, name)
        for held in (process, _confirmed(store.directory(name), stub.VMM_PID)):
            if held is not None:  # nobody could ever drive it
                record.cgroup = record.cgroup or _cgroup_of(held.pid, record.id)
                held.send(9)
                held.close()
        return record
    # The record of the day on which it was made. If it was not started since, the guest itself will tell.
    status = Status.CREATED if process is None else Status.STARTING
    record = msgspec.structs.replace(record, status=status, booted=process is not None)
    if process is not None:
        record.pid, record.pid_start = process.pid, process.started
        process.close()
    store.save(record)
    return record


def _confirmed(directory: str, file: str) -> Process | None:
    """Return the process whose number is in a file of the record, if the kernel says that it works in the record."""
    try:
        pid = stub.read_pid(directory, file)
        process = Process(pid) if pid else None
    except OSError:
        return None
    if process is None:
        return None
    try:
        if os.path.samestat(os.stat(f"/proc/{process.pid}/cwd"), os.stat(directory)):
            return process
    except OSError:
        pass
    process.close()
    return None


def _cgroup_of(pid: int, container_id: str) -> str:
    """Return the cgroup a process is in, "" unless it is named after the container: else it is the engine's own."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            paths = {line.rstrip("\n").split(":", 2)[2] for line in file}
    except OSError:
        return ""
    return next((path for path in sorted(paths) if container_id in os.path.basename(path)), "")


def _unknown(directory: str, name: str, now: float) -> Record:
    """Return the record of a container of which nothing can be read: it has ended, and can be deleted.

    :param now: seconds since the epoch.
    """
    bundle = _target(os.path.join(directory, "bundle"))
    return Record(
        id=name.partition("@")[0],
        name=name,
        root="",
        bundle=bundle or directory,
        rootfs=_target(os.path.join(directory, "rootfs")),
        backend="",
        status=Status.STOPPED,
        created=os.stat(directory).st_mtime,
        boot_id="",
        exit_code=128 + 9,
        reason="its record cannot be read any more",
        finished=now,
    )


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
