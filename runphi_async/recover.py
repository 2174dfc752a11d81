# SPDX-License-Identifier: Apache-2.0
"""After a supervisor died: find every container again and go on where it stood, before any verb is answered.

What can be found of a guest lies in its record, in its stub and in the VMM; nothing is believed that the kernel
does not confirm (pid and start time, pidfd).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from backends import detect
from backends.base import Accounting
from consoles import shmfiles
from runphi_async import stub
from runphi_async.cgroup import Cgroup, hierarchies
from runphi_async.console import Console, take_back
from runphi_async.consolelogs import plans
from runphi_async.container import Status
from runphi_async.errors import CgroupError, RunphiError
from runphi_async.guest import Guest
from runphi_async.partition.ledger import FILE, Ledger
from runphi_async.processes import Process
from runphi_async.store import boot_id

if TYPE_CHECKING:
    from backends.base import Backend, Driver
    from runphi_async.store import Record
    from runphi_async.supervisor import Supervisor

log = logging.getLogger(__name__)

#: The backend that keeps the ledger of the run directory: of the others' hypervisors each has an allocator.
LEDGERED: Final = "jailhouse"


async def all_guests(supervisor: Supervisor) -> None:
    """Bring every record back to life, or to its end; one bad record hides no other."""
    run_dir = supervisor.store.run_dir
    for name in await anyio.to_thread.run_sync(shmfiles.sweep, run_dir, supervisor.store.names()):
        log.warning("removed /dev/shm/%s, which was left over", name)
    for name in supervisor.store.names():
        try:
            await _one(supervisor, name)
        except (RunphiError, OSError, msgspec.MsgspecError) as exc:
            log.error("%s: cannot recover: %s", name, exc)
    await _look_over(supervisor)


async def _look_over(supervisor: Supervisor) -> None:
    """Compare what containers have claimed with what the hypervisor shows, where anything was ever claimed.

    Claims that stand for nothing are freed; the rest is said, and ``runphi doctor`` goes on saying it.
    """
    try:
        if not await anyio.to_thread.run_sync(Ledger(os.path.join(supervisor.store.run_dir, FILE), boot_id()).held):
            return
        backend = await detect.backend(LEDGERED, supervisor.detection)
        found = await backend.look_over() if isinstance(backend, Accounting) else []
    except RunphiError as exc:
        log.error("ledger: cannot compare it with the hypervisor: %s", exc)
        return
    for odd in found:
        log.warning("ledger: %s: %s", odd.name or "nobody", odd.text)
        guest = supervisor.guests.get(odd.name)
        if guest is not None:
            guest.note("ledger", problem=odd.text)


async def _one(supervisor: Supervisor, name: str) -> None:
    store = supervisor.store
    record = store.load(name)
    if record is None:
        log.warning("%s: removing a record that was never finished", name)
        shmfiles.unlink(store.directory(name))
        await anyio.to_thread.run_sync(store.remove, name, None, name)
        return
    guest = supervisor.adopt(Guest(record, store, supervisor.config, supervisor.events))
    process = _living_stub(record)
    if record.status is Status.STOPPED:
        await _release(supervisor, guest)  # our predecessor may have died between saving the end and this
        if process is not None:
            guest.stub = process
            guest.tell_again()
        return
    if record.status is Status.CREATING or process is None:
        await _bury(supervisor, guest, process)
        return
    await _adopt(supervisor, guest, process)
    log.info("%s: adopted, %s", name, record.status)


def _living_stub(record: Record) -> Process | None:
    if record.boot_id != boot_id() or record.pid <= 0:
        return None
    try:
        return Process(record.pid, record.pid_start)
    except ProcessLookupError:
        return None


async def _bury(supervisor: Supervisor, guest: Guest, process: Process | None) -> None:
    """A guest whose create was interrupted, or whose init died while nobody watched."""
    record = guest.record
    vmm = stub.read_pid(guest.directory)
    if vmm is not None and record.boot_id == boot_id():
        await anyio.to_thread.run_sync(_kill_group, record)
    await _bury_machine(supervisor, guest)
    if process is not None:
        process.send(9)
        process.close()
    if record.status is Status.CREATING:
        log.warning("%s: its create was interrupted: removing it", record.name)
        await guest.forget()
        supervisor.drop(guest)
        return
    record.status = Status.STOPPED
    record.exit_code, record.reason = 128 + 9, "the init process was killed while no supervisor ran"
    guest.save()
    guest.note("exit", code=record.exit_code, reason=record.reason, delivered=False)
    guest.settled.set()


async def _bury_machine(supervisor: Supervisor, guest: Guest) -> None:
    """End what is not in the container's cgroup: a domain, a cell."""
    record = guest.record
    if record.boot_id != boot_id():
        return
    try:
        await (await _backend(supervisor, record)).recall(record.plan, guest.directory).bury()
    except (RunphiError, OSError, msgspec.MsgspecError) as exc:
        log.error("%s: cannot end its guest: %s", record.name, exc)


async def _release(supervisor: Supervisor, guest: Guest) -> None:
    """Let go of what a guest that has ended had outside its record, where it still has it."""
    record = guest.record
    if record.boot_id != boot_id():
        return
    try:
        await (await _backend(supervisor, record)).recall(record.plan, guest.directory).release()
    except (RunphiError, OSError, msgspec.MsgspecError) as exc:
        log.warning("%s: %s", record.name, exc)


def _kill_group(record: Record) -> None:
    try:
        Cgroup(record.cgroup, hierarchies()).kill_all()
    except (CgroupError, OSError) as exc:
        log.warning("%s: %s", record.name, exc)


async def _adopt(supervisor: Supervisor, guest: Guest, process: Process) -> None:
    record = guest.record
    driver = (await _backend(supervisor, record)).recall(record.plan, guest.directory)
    guest.driver = driver
    journal, cursors, stdio = take_back(process.fd, record.terminal and not record.attached)
    guest.console = Console(
        supervisor.config,
        guest.directory,
        plans(record),
        journal,
        cursors,
        stdio,
        guest.note,
        guest.end_of_input,
        driver.console(),
        guest.console_changed,
    )
    guest.open_channels()
    guest.open_bell()
    await supervisor.enliven(guest)
    guest.hold_stub(process)
    guest.listen()
    await _find_status(guest, driver)
    if record.killed_by is not None and not guest.settled.is_set():
        driver.destroy()  # that was to be next: the guest may have been between two VMMs


async def _backend(supervisor: Supervisor, record: Record) -> Backend:
    return await detect.backend(record.backend, supervisor.detection)


async def _find_status(guest: Guest, driver: Driver) -> None:
    """The record may lag one step behind the guest: `cont` or `stop` was the last thing that was done."""
    record = guest.record
    try:
        started = await driver.adopt(guest.told())
    except RunphiError as exc:
        # A full console of an aarch64 guest stops its QEMU from answering: the guest is there all the same.
        log.warning("%s: adopted without an answer: %s", record.name, exc)
        return
    if started and record.status is Status.CREATED:
        record.status = Status.RUNNING
        record.booted = True
        guest.save()
    elif started is False and record.status is Status.RUNNING:  # `start` was about to say `cont`
        record.status = Status.CREATED
        record.booted = False
        guest.save()
