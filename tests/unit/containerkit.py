# SPDX-License-Identifier: Apache-2.0
"""Containers of the fake backend in this process: the product's objects, a real init process, no engine, no root."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast
from unittest import mock

import anyio

from backends import detect
from backends.base import Told
from runphi_async.config.schema import Config, Console, Log
from runphi_async.container import recorded
from runphi_async.container.bundle import read_bundle
from runphi_async.container.creation import Creation
from runphi_async.container.order import Order
from runphi_async.container.registry import Supervisor
from runphi_async.host.cgroup import Limits, Stats, clean
from runphi_async.host.clock import SYSTEM
from runphi_async.host.files import boot_id
from runphi_async.host.processes import Process, children
from runphi_async.lifeline import stub
from runphi_async.partition.spec import GuestKind, GuestSpec
from runphi_async.record.lifecycle import Status
from runphi_async.record.store import VERSION, Record
from runphi_async.terminals.console import FIFOS, Lifeline
from runphi_async.testing.backend import FakeBackend
from tests.unit.consolekit import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from runphi_async.container.container import Container
    from runphi_async.host.clock import Timekeeper
    from runphi_async.testing.backend import FakeDriver

#: Seconds a test waits for an end.
PATIENCE: Final = 20.0


def state_of(pid: int) -> str:
    """Return a process's state as ps has it, "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


class Groups:
    """The cgroups of a machine without any: who is in which, and their limits. Called as ``Cgroup`` is."""

    def __init__(self) -> None:
        self.made: dict[str, set[int]] = {}
        self.limits: dict[str, Limits] = {}

    def __call__(self, path: str, used: object) -> Group:
        return Group(self, clean(path))


class Group:
    """One of them; see ``runphi_async.host.cgroup.Cgroup``."""

    def __init__(self, groups: Groups, path: str) -> None:
        self._made = groups.made
        self._limits = groups.limits
        self.path = path

    def create(self) -> None:
        self._made.setdefault(self.path, set())

    def apply(self, limits: Limits) -> None:
        assert self.path in self._made
        self._limits[self.path] = limits

    def join(self, pid: int) -> None:
        self._made[self.path].add(pid)

    def join_family(self, pid: int) -> None:
        for one in (pid, *children(pid)):
            self.join(one)

    def pids(self) -> list[int]:
        group = self._made.get(self.path, set())
        fresh = list(group)
        while fresh:  # what they forked was born in it
            fresh = [child for pid in fresh for child in children(pid) if child not in group]
            group.update(fresh)
        return sorted(pid for pid in group if state_of(pid) not in ("", "Z"))

    def oom_kills(self) -> int:
        return 0

    def stats(self) -> Stats:
        return Stats()

    def kill_all(self, *, spare: int = 0) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                if pid != spare:
                    os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        self._made.pop(self.path, None)
        self._limits.pop(self.path, None)


class Forks:
    """An engine's client, as far as a creation sees it: its forks wait to be let go, by standing still.

    :ivar pid: of the init process, 0 before it is there.
    """

    def __init__(self, house: House, name: str) -> None:
        self._house = house
        self._name = name
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.cwd = str(house.path)
        self.fds: Sequence[int] = (self._null,) * 3
        self.pid = 0

    async def spawn(self, cwd: str, argv: Sequence[str], fds: Sequence[int]) -> int:
        """Fork, and return at once."""
        self.pid = self._house.fork(self._name, cwd, argv, fds, first="kill -STOP $$; ")
        return self.pid

    async def go(self) -> None:
        """Let it go on, which it does not before it stands still."""
        await until(lambda: state_of(self.pid) == "T", "the init process stands still")
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Let go of the stdio."""
        os.close(self._null)


class House:
    """A supervisor without a server, and what its containers' init processes ended with."""

    def __init__(self, path: Path, supervisor: Supervisor, groups: Groups) -> None:
        self.path = path
        self.root = str(path / "root")
        self.supervisor = supervisor
        self.groups = groups
        self.drivers: dict[str, FakeDriver] = {}
        self._pids: dict[str, int] = {}

    # Section: containers that are made

    def bundle(self, name: str, *, cmdline: str = "", terminal: bool = False, **more: Any) -> Path:
        """Make a bundle, and return it."""
        bundle = self.path / "bundles" / name
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        (bundle / "rootfs" / "inmate").touch()
        annotations = {"org.runphi.backend": "fake", "org.runphi.cmdline": cmdline, "org.runphi.log": "none"}
        config = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": {"args": ["x"], "cwd": "/", "env": ["INMATE=/inmate"], "terminal": terminal},
            "linux": {"namespaces": []},
            "annotations": {**annotations, **more.pop("annotations", {})},
            **more,
        }
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def order(self, name: str, bundle: Path, **more: Any) -> Order:
        """Return what an engine would ask for."""
        given = {"pid_file": None, "console_socket": None, "systemd_cgroup": False, **more}
        return Order(id=name, root=self.root, bundle=str(bundle), **given)

    async def create(self, name: str, *, follow: Callable[[str, bool], None] | None = None, **more: Any) -> Container:
        """Make a container as ``create`` does.

        :param follow: told of each step's beginning and end.
        """
        bundle = self.bundle(name, **more)
        forks = Forks(self, name)
        try:
            asked = read_bundle(str(bundle), ())
            creation = Creation(self.supervisor, forks, self.order(name, bundle), asked, follow=follow or _unseen)
            guest = await creation.run()
        finally:
            forks.close()
        if guest.running is not None:
            self.drivers[name] = cast("FakeDriver", guest.running.driver)
        await until(
            lambda: stub.read_pid(guest.directory) or guest.settled.is_set(), "the init process's word about its child"
        )
        return guest

    # Section: containers that an earlier supervisor left

    def record(self, name: str) -> Record:
        """Claim a record and return it."""
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
            backend=FakeBackend.name,
            status=Status.CREATING,
            created=1.0,
            boot_id=boot_id(),
            logs=(),
        )

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
        await driver.create()
        for fifo in (*FIFOS, "exit", "bell"):
            os.mkfifo(os.path.join(directory, fifo), 0o600)
        lifeline = Lifeline(name, ())
        fifos = [
            os.open(os.path.join(directory, fifo), os.O_RDWR | os.O_CLOEXEC) for fifo in ("exit", "con.out", "bell")
        ]
        stdin, stdout, stderr = lifeline.stdio
        stdio_cursor, log_cursor = lifeline.cursors
        inherited = driver.inheritance()
        held = {
            **dict(zip((stub.Fd.EXIT, stub.Fd.CONSOLE, stub.Fd.BELL), fifos, strict=True)),
            stub.Fd.STDOUT: stdout,
            stub.Fd.STDERR: stderr,
            stub.Fd.STDIN: stdin,
            stub.Fd.STDIO_CURSOR: stdio_cursor,
            stub.Fd.LOG_CURSOR: log_cursor,
            **inherited.kept,
        }
        with stub.arranged(held, inherited.extra) as fds:
            pid = self.fork(name, directory, stub.command(driver.command, None), fds)
        await driver.watch(Told(lambda: None, lambda printed: None, lambda text: None))
        await until(lambda: stub.read_pid(directory), "the init process's word about its child")
        if started:
            await driver.start()
        await driver.release()
        lifeline.close()
        for fd in fifos:
            os.close(fd)
        process = Process(pid)
        record.pid, record.pid_start = pid, process.started
        process.close()
        record.status, record.booted, record.started = status, True, 1.0
        self.supervisor.store.save(record)
        self.supervisor.store.save_made(record)

    # Section: init processes

    def fork(self, name: str, cwd: str, argv: Sequence[str], fds: Sequence[int], *, first: str = "") -> int:
        """Start a container's init process, with exactly these descriptors; return its pid.

        :param first: what a shell is to do before.
        """
        shell = ["/bin/sh", "-c", f'{first}cd "$0" && exec "$@"', cwd, *argv]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in fds]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        pid = self._pids[name] = os.posix_spawn("/bin/sh", shell, dict(os.environ), file_actions=actions, setsid=True)
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

    @property
    def forked(self) -> list[str]:
        """The containers whose init processes were not waited for yet."""
        return list(self._pids)

    def clear(self) -> None:
        """End the init processes that are left, with their machines."""
        for pid in self._pids.values():
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _unseen(step: str, done: bool) -> None:
    """Nobody follows."""


@asynccontextmanager
async def house(path: Path, clock: Timekeeper = SYSTEM) -> AsyncIterator[House]:
    """A house of which all that was not ended by the test is killed, and nothing else was."""
    (path / "run").mkdir(exist_ok=True)
    config = Config(log=Log(dir=str(path / "log")), console=Console(drain_seconds=0.2), runc="/nonexistent/runc")
    made: House | None = None
    groups = Groups()
    try:
        with (
            mock.patch.object(recorded, "Cgroup", groups),
            mock.patch.dict(os.environ, {detect.TESTING_VARIABLE: "1"}),
        ):
            async with anyio.create_task_group() as tasks:
                made = House(path, Supervisor(config, str(path / "run"), tasks, clock), groups)
                yield made
                tasks.cancel_scope.cancel()
    finally:
        if made is not None:
            made.clear()


@asynccontextmanager
async def held(path: Path, clock: Timekeeper = SYSTEM) -> AsyncIterator[House]:
    """A house in a task of its own, for fixtures: a task group is left by the task that entered it."""
    made: asyncio.Future[House] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        async with house(path, clock) as found:
            made.set_result(found)
            await over.wait()

    task = asyncio.create_task(hold())
    yield await made
    over.set()
    await task


async def settled(guest: Container) -> None:
    """Wait until the end of a container is known."""
    with anyio.fail_after(PATIENCE):
        await guest.settled.wait()
