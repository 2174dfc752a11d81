# SPDX-License-Identifier: Apache-2.0
"""Containers of the fake backend in this process: the product's objects, a real init process, no engine, no root."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio

from backends.base import Told
from runphi_async.config.schema import Config, Console, Log
from runphi_async.container.assembly import assemble
from runphi_async.container.registry import Supervisor
from runphi_async.host.clock import SYSTEM
from runphi_async.host.files import boot_id
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.record.lifecycle import Event, Status
from runphi_async.record.store import VERSION, Record
from runphi_async.terminals.console import FIFOS, Lifeline
from runphi_async.testing.backend import FakeBackend
from tests.unit.consolekit import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from runphi_async.container.container import Container
    from runphi_async.host.clock import Timekeeper
    from runphi_async.testing.backend import FakeDriver

#: Seconds a test waits for an end.
PATIENCE: Final = 20.0


class House:
    """A supervisor without a server, and what its containers' init processes ended with."""

    def __init__(self, path: Path, supervisor: Supervisor) -> None:
        self.path = path
        self.root = str(path / "root")
        self.supervisor = supervisor
        self.drivers: dict[str, FakeDriver] = {}
        self._pids: dict[str, int] = {}

    def record(self, name: str) -> Record:
        """Claim a record and return it."""
        backend = FakeBackend()
        store = self.supervisor.store
        assert store.claim(name, self.root) == name
        (self.path / "run" / name / "config.json").write_text(
            '{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["x"],"cwd":"/"}}'
        )
        return Record(
            version=VERSION,
            id=name,
            name=name,
            root=self.root,
            bundle=str(self.path),
            rootfs=str(self.path),
            backend=backend.name,
            status=Status.CREATING,
            created=1.0,
            boot_id=boot_id(),
            logs=(),
        )

    async def create(self, name: str, *, cmdline: str = "") -> Container:
        """Make a container as ``create`` does, without cgroup, hooks and client."""
        backend = FakeBackend()
        record = self.record(name)
        plan = await backend.plan(GuestSpec(id=name, kind=GuestKind.INMATE, rootfs="/", cmdline=cmdline))
        record.plan = backend.remember(plan)
        guest = self.supervisor.adopt(record)
        driver = self.drivers[name] = backend.driver(plan, guest.directory)
        await driver.prepare()
        for fifo in (*FIFOS, "exit", "bell"):
            os.mkfifo(os.path.join(guest.directory, fifo), 0o600)
        lifeline = Lifeline(name, ())
        try:
            assembly = await assemble(guest, driver, lifeline.held())
            exit_fd = os.open(os.path.join(guest.directory, stub.EXIT_FIFO), os.O_RDWR | os.O_CLOEXEC)
            output, bell = assembly.streams.console.output, assembly.bell.fd
            ours = {stub.Fd.EXIT: exit_fd, stub.Fd.CONSOLE: output, stub.Fd.BELL: bell}
            pid = self._spawn(guest.directory, driver, lifeline, ours)
            os.close(exit_fd)
        finally:
            lifeline.close()
        self._pids[name] = pid
        process = Process(pid)
        record.pid, record.pid_start = pid, process.started
        running = await self.supervisor.enliven(guest, assembly, process)
        running.begin()
        await driver.watch(running.told())
        guest.lifecycle.tell(Event.MADE)
        guest.save()
        self.supervisor.store.save_made(record)
        await until(lambda: stub.read_pid(guest.directory), "the stub's word about its child")
        return guest

    async def leave(self, name: str, status: Status = Status.RUNNING, *, started: bool = True) -> None:
        """Leave a guest as a supervisor does that was killed: its record and its init process.

        :param status: as the record has it.
        :param started: whether the guest runs.
        """
        backend = FakeBackend()
        record = self.record(name)
        plan = await backend.plan(GuestSpec(id=name, kind=GuestKind.INMATE, rootfs="/"))
        record.plan = backend.remember(plan)
        directory = self.supervisor.store.directory(name)
        driver = backend.driver(plan, directory)
        await driver.prepare()
        for fifo in (*FIFOS, "exit", "bell"):
            os.mkfifo(os.path.join(directory, fifo), 0o600)
        lifeline = Lifeline(name, ())
        held = [
            os.open(os.path.join(directory, fifo), os.O_RDWR | os.O_CLOEXEC) for fifo in ("exit", "con.out", "bell")
        ]
        ours = dict(zip((stub.Fd.EXIT, stub.Fd.CONSOLE, stub.Fd.BELL), held, strict=True))
        pid = self._pids[name] = self._spawn(directory, driver, lifeline, ours)
        await driver.watch(Told(lambda: None, lambda printed: None, lambda text: None))
        await until(lambda: stub.read_pid(directory), "the stub's word about its child")
        if started:
            await driver.start()
        await driver.release()
        lifeline.close()
        lifeline.journal.close()
        for fd in held:
            os.close(fd)
        process = Process(pid)
        record.pid, record.pid_start = pid, process.started
        process.close()
        record.status, record.booted, record.started = status, True, 1.0
        self.supervisor.store.save(record)
        self.supervisor.store.save_made(record)

    def _spawn(self, directory: str, driver: FakeDriver, lifeline: Lifeline, ours: Mapping[stub.Fd, int]) -> int:
        stdin, stdout, stderr = lifeline.stdio
        stdio_cursor, log_cursor = lifeline.cursors
        inherited = driver.inheritance()
        held = {
            stub.Fd.STDOUT: stdout,
            stub.Fd.STDERR: stderr,
            stub.Fd.STDIN: stdin,
            stub.Fd.STDIO_CURSOR: stdio_cursor,
            stub.Fd.LOG_CURSOR: log_cursor,
            **ours,
            **inherited.kept,
        }
        shell = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', directory, *stub.command(driver.command, None)]
        with stub.arranged(held, inherited.extra) as fds:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        pid = os.posix_spawn("/bin/sh", shell, dict(os.environ), file_actions=actions, setsid=True)
        for fd in high:
            os.close(fd)
        return pid

    async def said(self, name: str) -> int:
        """Wait until the init process has ended, and return what it was told: what the engine learns."""
        with anyio.fail_after(PATIENCE):
            while True:
                pid, status = os.waitpid(self._pids[name], os.WNOHANG)
                if pid:
                    del self._pids[name]
                    return os.waitstatus_to_exitcode(status)
                await asyncio.sleep(0.005)

    def clear(self) -> None:
        """End the init processes that are left, with their machines."""
        for pid in self._pids.values():
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@asynccontextmanager
async def house(path: Path, clock: Timekeeper = SYSTEM) -> AsyncIterator[House]:
    """A house of which all that was not ended by the test is killed, and nothing else was."""
    (path / "run").mkdir(exist_ok=True)
    config = Config(log=Log(dir=str(path / "log")), console=Console(drain_seconds=0.2))
    supervisor = Supervisor(config, str(path / "run"), clock)
    made = House(path, supervisor)
    try:
        async with anyio.create_task_group() as tasks:
            supervisor.tasks = tasks
            yield made
            tasks.cancel_scope.cancel()
    finally:
        made.clear()


async def settled(guest: Container) -> None:
    """Wait until the end of a container is known."""
    with anyio.fail_after(PATIENCE):
        await guest.settled.wait()
