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
from typing import TYPE_CHECKING

import anyio
import msgspec

from consoles.sharedmem import shmfiles
from runphi_async.container import burial, salvage
from runphi_async.container.accounts import look_over
from runphi_async.container.assembly import assemble
from runphi_async.container.container import Sickness
from runphi_async.container.initprocess import InitProcess
from runphi_async.errors import RunphiError, StateError
from runphi_async.events import Sick
from runphi_async.record.lifecycle import Event, Status
from runphi_async.record.store import ADOPTABLE, VERSION
from runphi_async.terminals.console import take_back

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.container.running import Running
    from runphi_async.host.processes import Process

log = logging.getLogger(__name__)


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
            await look_over(self._supervisor)
        except Exception:
            log.exception("ledger: cannot compare it with the hypervisor")
        self._supervisor.recovered.set()

    async def _adopt(self, name: str) -> None:
        container = self._supervisor.guests[name]
        try:
            with self._contained(name):
                await _take_over(self._supervisor, container)
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


async def _find(supervisor: Supervisor, name: str) -> None:
    store = supervisor.store
    record = salvage.load(supervisor.shared, name)
    if record is None:
        log.warning("%s: removing a record that was never finished", name)
        shmfiles.unlink(store.directory(name))
        await anyio.to_thread.run_sync(store.remove, name, None, name)
        return
    supervisor.adopt(record)
    supervisor.adopting[name] = anyio.Event()


async def _take_over(supervisor: Supervisor, container: Container) -> None:
    record = container.record
    process = burial.living_init(record)
    if record.status is Status.STOPPED:
        await burial.release(supervisor, container)  # our predecessor may have died between saving the end and this
        if process is not None:
            container.init = InitProcess(process, container.directory)
            container.init.tell(record.exit_code or 0)  # it may not have heard it: our predecessor died before that
        return
    if record.status is Status.CREATING or process is None:
        await burial.bury(supervisor, container, process)
        return
    if record.version not in ADOPTABLE:
        process.close()
        raise StateError(f"another version of runPHI made it (record {record.version}, here {VERSION})")
    await _adopt(supervisor, container, process)
    log.info("%s: adopted, %s", record.name, record.status)


def _keep_sick(supervisor: Supervisor, name: str, problem: str) -> None:
    """Let verbs find a container that could not be taken over: it can be killed and deleted."""
    container = supervisor.guests.get(name)
    if container is None or container.settled.is_set():
        return
    container.sick = Sickness(problem, functools.partial(burial.give_up, supervisor, container))
    container.note(Sick(problem=problem))


async def _adopt(supervisor: Supervisor, container: Container, process: Process) -> None:
    try:
        driver = await burial.recall(supervisor, container)
        held = take_back(process.fd, container.record.engine_terminal)
        assembly = await assemble(container, driver, held)
        running = await supervisor.enliven(container, assembly, process)
    except BaseException:
        process.close()  # it is nobody's yet
        raise
    running.begin()
    await _find_status(container, running)
    running.heed()  # that was to be next: the guest may have been between two VMMs


async def _find_status(container: Container, running: Running) -> None:
    """The record may lag one step behind the guest: `cont` or `stop` was the last thing that was done."""
    record = container.record
    started: bool | None = record.status is Status.STARTING or None
    try:
        started = await running.driver.adopt(running.told())
    except RunphiError as exc:
        # A full console of an aarch64 guest stops its QEMU from answering: the guest is there all the same.
        log.warning("%s: adopted without an answer: %s", record.name, exc)
    except Exception:
        log.exception("%s: adopted without an answer", record.name)
    if started is None:
        return
    step = container.lifecycle.tell(Event.STARTED if started else Event.NOT_STARTED)
    if step is not None:
        record.booted = started
        container.keep()
