# SPDX-License-Identifier: Apache-2.0
"""After a supervisor died: find every container again and go on where it stood.

First all records are found, which asks nobody; then all containers are taken over side by side, and verbs are
answered meanwhile: one that is about a container waits until that one is taken over, and for no other.

What can be found of a guest lies in its record, in its stub and in the VMM; nothing is believed that the kernel
does not confirm (pid and start time, pidfd).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from backends import detect
from backends.base import Accounting, Verdict
from consoles.sharedmem import shmfiles
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.container.guest import Guest
from runphi_async.errors import RunphiError, StateError
from runphi_async.events import LedgerProblem, Sick
from runphi_async.host.files import boot_id
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.record.lifecycle import Event, Status
from runphi_async.record.store import VERSION, Record
from runphi_async.terminals.console import take_back

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.base import Backend, Driver
    from runphi_async.container.registry import Supervisor

log = logging.getLogger(__name__)

#: The backend that keeps the ledger of the run directory: of the others' hypervisors each has an allocator.
LEDGERED: Final = "jailhouse"


class Recovery:
    """What a supervisor does once, when it starts."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        supervisor.recovered = anyio.Event()

    async def find(self) -> None:
        """Find every record, so that verbs know of all; one bad record hides no other."""
        supervisor = self._supervisor
        run_dir = supervisor.store.run_dir
        try:
            for name in await anyio.to_thread.run_sync(shmfiles.sweep, run_dir, supervisor.store.names()):
                log.warning("removed /dev/shm/%s, which was left over", name)
        except OSError as exc:
            log.error("cannot sweep /dev/shm: %s", exc)
        for name in supervisor.store.names():
            with self._contained(name):
                await _find(supervisor, name)

    async def adopt(self) -> None:
        """Bring every container back to life, or to its end; one that does not answer keeps no other waiting."""
        async with anyio.create_task_group() as tasks:
            for name in self._supervisor.adopting:
                tasks.start_soon(self._adopt, name, name=f"adopt {name}")
        try:
            await _look_over(self._supervisor)
        except Exception:
            log.exception("ledger: cannot compare it with the hypervisor")
        self._supervisor.recovered.set()

    async def _adopt(self, name: str) -> None:
        guest = self._supervisor.guests[name]
        try:
            with self._contained(name):
                await _take_over(self._supervisor, guest)
        finally:
            self._supervisor.adopting.pop(name).set()

    @contextlib.contextmanager
    def _contained(self, name: str) -> Iterator[None]:
        """Whatever is wrong with one: the next supervisor would end of it, too, and with it every verb of all."""
        try:
            yield
        except (RunphiError, OSError, msgspec.MsgspecError) as exc:
            log.error("%s: cannot recover: %s", name, exc)
            _keep_sick(self._supervisor, name, str(exc))
        except Exception as exc:
            log.exception("%s: cannot recover", name)
            _keep_sick(self._supervisor, name, str(exc))


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
            guest.note(LedgerProblem(problem=odd.text))


async def _find(supervisor: Supervisor, name: str) -> None:
    store = supervisor.store
    record = await _record(supervisor, name)
    if record is None:
        log.warning("%s: removing a record that was never finished", name)
        shmfiles.unlink(store.directory(name))
        await anyio.to_thread.run_sync(store.remove, name, None, name)
        return
    supervisor.adopt(Guest(record, store, supervisor.config, supervisor.events))
    supervisor.adopting[name] = anyio.Event()


async def _take_over(supervisor: Supervisor, guest: Guest) -> None:
    record = guest.record
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
    if record.version != VERSION:
        process.close()
        raise StateError(f"another version of runPHI made it (record {record.version}, here {VERSION})")
    await _adopt(supervisor, guest, process)
    log.info("%s: adopted, %s", record.name, record.status)


async def _record(supervisor: Supervisor, name: str) -> Record | None:
    """Return a record; one that is damaged is put together from what is left of it."""
    store = supervisor.store
    try:
        return store.load(name)
    except StateError as exc:
        log.error("%s: %s", name, exc)
    record = store.load_made(name)
    process = _confirmed(store.directory(name), "pidfile")
    if record is None and process is None and not _target(os.path.join(store.directory(name), "bundle")):
        return None  # its create never came so far that anybody could know of it
    if record is None:
        record = _unknown(store.directory(name), name)
        record.log_dir = os.path.join(supervisor.config.log.dir, name)
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


def _unknown(directory: str, name: str) -> Record:
    """Return the record of a container of which nothing can be read: it has ended, and can be deleted."""
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
        finished=time.time(),
    )


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _keep_sick(supervisor: Supervisor, name: str, problem: str) -> None:
    """Let verbs find a container that could not be taken over: it can be killed and deleted."""
    guest = supervisor.guests.get(name)
    if guest is None or guest.settled.is_set():
        return
    guest.sick = problem
    guest.last_resort = functools.partial(_give_up, supervisor, guest)
    guest.note(Sick(problem=problem))


async def _give_up(supervisor: Supervisor, guest: Guest) -> None:
    """End a guest that could not be taken over, by whatever way is left."""
    guest.last_resort = None
    process = _living_stub(guest.record)
    await anyio.to_thread.run_sync(guest.kill_group)
    if guest.alive:  # it was taken over far enough to come to an end of its own
        await _bury_machine(supervisor, guest)
        await guest.give_up()
    else:
        await _bury(supervisor, guest, process)


def _living_stub(record: Record) -> Process | None:
    if record.boot_id != boot_id() or record.pid <= 0:
        return None
    try:
        return Process(record.pid, record.pid_start)
    except (OSError, OverflowError):  # gone, or no number of a process
        return None


async def _bury(supervisor: Supervisor, guest: Guest, process: Process | None) -> None:
    """A guest whose create was interrupted, or whose init died while nobody watched."""
    record = guest.record
    vmm = stub.read_pid(guest.directory)
    if vmm is not None and record.boot_id == boot_id():
        await anyio.to_thread.run_sync(guest.kill_group)
    await _bury_machine(supervisor, guest)
    if process is not None:
        process.send(9)
        process.close()
    if record.status is Status.CREATING:
        log.warning("%s: its create was interrupted: removing it", record.name)
        await guest.forget()
        supervisor.drop(guest)
        return
    guest.stopped(Verdict(128 + 9, "the init process was killed while no supervisor ran"), delivered=False)
    guest.settled.set()


async def _bury_machine(supervisor: Supervisor, guest: Guest) -> None:
    """End what is not in the container's cgroup: a domain, a cell."""
    record = guest.record
    if record.boot_id != boot_id():
        return
    try:
        await (await _backend(supervisor, record)).recall(record.plan, guest.directory).bury()
    except Exception as exc:
        log.error("%s: cannot end its guest: %r", record.name, exc)


async def _release(supervisor: Supervisor, guest: Guest) -> None:
    """Let go of what a guest that has ended had outside its record, where it still has it."""
    record = guest.record
    if record.boot_id != boot_id():
        return
    try:
        await (await _backend(supervisor, record)).recall(record.plan, guest.directory).bury()
    except Exception as exc:
        log.warning("%s: cannot let go of what it had: %r", record.name, exc)


async def _adopt(supervisor: Supervisor, guest: Guest, process: Process) -> None:
    record = guest.record
    driver = (await _backend(supervisor, record)).recall(record.plan, guest.directory)
    guest.equip(driver, take_back(process.fd, record.engine_terminal))
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
        started = record.status is Status.STARTING or None
    except Exception:
        log.exception("%s: adopted without an answer", record.name)
        started = record.status is Status.STARTING or None
    if started is None:
        return
    step = guest.lifecycle.tell(Event.STARTED if started else Event.NOT_STARTED)
    if step is not None:
        record.booted = started
        guest.keep()
