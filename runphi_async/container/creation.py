# SPDX-License-Identifier: Apache-2.0
"""Making a container: the steps of ``create`` and ``run``, each with its undoing.

Steps push what undoes them; a failed step runs the undoings in reverse, so that neither a half-made guest nor a
claim stays. Nothing is printed on success: in an engine's create, stdout is already the container's.
"""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

import anyio

from backends import detect
from backends.base import Accounting
from consoles.streams import terminal
from runphi_async.aio.waiting import together
from runphi_async.container import cgrouppath
from runphi_async.container.assembly import assemble
from runphi_async.container.document import document
from runphi_async.container.forgetting import forget
from runphi_async.container.hooks import run_hooks
from runphi_async.container.limits import limits
from runphi_async.container.memoryrank import rank_for_memory
from runphi_async.errors import BackendError, CgroupError, RunphiError, SpecError, StateError
from runphi_async.events import Create
from runphi_async.host.files import boot_id, write_atomically
from runphi_async.host.processes import Process, children
from runphi_async.lifeline import stub
from runphi_async.partition import channels, conf, logplan
from runphi_async.partition.guest import guest_spec, network
from runphi_async.partition.spec import GuestKind
from runphi_async.record.lifecycle import Event, Status
from runphi_async.record.store import VERSION, Record, check_id
from runphi_async.terminals.console import FIFOS, Lifeline, send_master
from runphi_async.terminals.consolelogs import plans

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.base import Backend, Driver
    from runphi_async.container.assembly import Assembly
    from runphi_async.container.bundle import Asked
    from runphi_async.container.container import Container
    from runphi_async.container.registry import Supervisor
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.partition.spec import GuestSpec, PartitionPlan
    from runphi_async.wire.call import Call

log = logging.getLogger(__name__)

#: A terminal whose size nobody has told yet.
_UNKNOWN = terminal.Size(0, 0)
#: Shown by `state` of a container whose console takes no input.
ONE_WAY_ANNOTATION = "org.runphi.console-input"


class Order(NamedTuple):
    """What the command line asked for; paths absolute.

    :ivar attached: no engine: the terminal, if any, is shown by the client itself (``run``).
    """

    id: str
    root: str
    bundle: str
    pid_file: str | None
    console_socket: str | None
    systemd_cgroup: bool
    attached: bool = False


class Creation:
    """One container in the making."""

    def __init__(self, supervisor: Supervisor, call: Call, order: Order, asked: Asked) -> None:
        self._supervisor = supervisor
        self._config = supervisor.config
        self._store = supervisor.store
        self._call = call
        self._order = order
        self._spec = asked.spec
        self._raw = asked.raw
        assert asked.request is not None
        self._request = asked.request
        self._undo = AsyncExitStack()

    async def run(self) -> Container:
        """Take every step; return the guest in state created."""
        try:
            guest = await self._steps()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo.aclose()
            raise
        self._undo.pop_all()
        return guest

    async def _steps(self) -> Container:
        check_id(self._order.id)
        self._check_paths()
        self._check_terminal()
        spec = await anyio.to_thread.run_sync(self._guest_spec)
        backend = await detect.backend(self._request.backend or self._config.backend, self._supervisor.detection)
        if isinstance(backend, Accounting):  # what it frees as nobody's must not be what is claimed here
            await self._supervisor.recovered.wait()
        plan = await backend.plan(spec)
        guest = self._claim(backend, plan, spec)
        plan = await backend.claim(spec, plan, guest.record.name)
        guest.record.plan = backend.remember(plan)
        driver = backend.driver(plan, guest.directory)
        self._undo.push_async_callback(driver.bury)
        await self._write_record(guest, plan, spec)
        await driver.prepare()
        lifeline = self._open_console(guest)
        try:
            assembly = await assemble(guest, driver, lifeline.held())
            self._undo.push_async_callback(assembly.close)
            if assembly.streams.console.one_way:
                guest.record.annotations[ONE_WAY_ANNOTATION] = "no"
            self._undo.push_async_callback(self._remove_cgroup, guest)
            # The VMM starts up while the kernel makes the cgroup and moves it there (up to 15 ms); it holds no guest
            # memory yet, and it cannot run its guest before both are done.
            await together(lambda: self._spawn(guest, assembly, lifeline), lambda: self._make_cgroup(guest, driver))
            await anyio.to_thread.run_sync(self._fill_cgroup, guest, driver)
            await self._run_hooks(guest)
            if lifeline.master >= 0 and self._order.console_socket is not None:
                await self._hand_over(lifeline.master)
        finally:
            lifeline.close()
        await self._publish(guest)
        return guest

    # Section: the steps

    def _guest_spec(self) -> GuestSpec:
        order, config = self._order, self._config.inmate
        channels.check_allowed(self._request.channels, self._config.channels, self._config.source.host_paths)
        return guest_spec(self._request, self._spec, order.id, order.bundle, config)

    def _check_paths(self) -> None:
        """Refuse what the record, which is JSON, cannot hold: file names may be any bytes."""
        for path in (self._order.root, self._order.bundle):
            try:
                path.encode()
            except UnicodeEncodeError:
                shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                raise SpecError(f"cannot use {shown}: the path is not UTF-8", "rename the directory") from None

    def _check_terminal(self) -> None:
        terminal_wanted = self._spec.process is not None and self._spec.process.terminal
        if terminal_wanted and not self._order.console_socket and not self._order.attached:
            raise SpecError(
                "cannot allocate tty if runphi will detach without setting console socket",
                "give --console-socket, or set process.terminal to false",
            )
        if not terminal_wanted and self._order.console_socket:
            raise SpecError(
                "cannot use console socket if runphi will not detach or allocate tty",
                "drop --console-socket, or set process.terminal to true",
            )

    def _claim(self, backend: Backend, plan: PartitionPlan, spec: GuestSpec) -> Container:
        order = self._order
        name = self._store.claim(order.id, order.root)
        self._undo.callback(self._store.remove, name, order.root, order.id)
        logs = self._logs(name)
        record = Record(
            version=VERSION,
            id=order.id,
            name=name,
            root=order.root,
            bundle=order.bundle,
            rootfs=spec.rootfs,
            backend=backend.name,
            status=Status.CREATING,
            created=self._supervisor.shared.clock.wall(),
            boot_id=boot_id(),
            terminal=bool(self._spec.process and self._spec.process.terminal),
            attached=order.attached,
            annotations=dict(self._spec.annotations),
            cgroup=self._cgroup_path(name),
            log_dir=os.path.join(self._config.log.dir, name) if logs else "",
            logs=logs,
            channels=plan.channels,
            console_channel=plan.console,
            plan=backend.remember(plan),
        )
        guest = self._supervisor.adopt(record)
        self._undo.callback(self._supervisor.drop, guest)
        guest.know_hooks(self._spec.hooks)
        return guest

    def _logs(self, name: str) -> tuple[LogPlan, ...]:
        """Return the plan of the container's logs; a file belongs to one container."""
        asked = self._request.log
        logs = logplan.plan(self._config.log, name, None if asked is None else logplan.parse(asked))
        others = [log for other in self._supervisor.guests.values() for log in plans(other.record)]
        path = logplan.clash(logs, others)
        if path is not None:
            raise SpecError(f"cannot log to {path}: another container does", "give each its own path")
        return logs

    def _cgroup_path(self, name: str) -> str:
        path = self._spec.linux.cgroups_path if self._spec.linux is not None else None
        # The name, not the id: the same id in two roots must not mean the same cgroup.
        return cgrouppath.path_for(path, name, systemd=self._order.systemd_cgroup)

    async def _write_record(self, guest: Container, plan: PartitionPlan, spec: GuestSpec) -> None:
        guest.save()
        self._store.save_made(guest.record)
        await anyio.to_thread.run_sync(self._write_files, guest, plan, spec)
        guest.note(Create(backend=plan.backend, guest=plan.kind, memory=plan.memory_bytes, vcpus=plan.vcpus))

    def _write_files(self, guest: Container, plan: PartitionPlan, spec: GuestSpec) -> None:
        directory, name = guest.directory, guest.record.name

        def text(file: str, content: str) -> None:
            write_atomically(os.path.join(directory, file), content.encode())

        def link(file: str, target: str | None) -> None:
            if target:
                os.symlink(target, os.path.join(directory, file))

        write_atomically(os.path.join(directory, "config.json"), self._raw)
        text(f"config{name}.conf", conf.render(plan))
        text("assignedCPUs", ",".join(str(cpu) for cpu in plan.pins) + "\n")
        link("bundle", self._order.bundle)
        link("rootfs", spec.rootfs)
        link("inmate", spec.inmate)
        link("linux", spec.kernel if spec.kind is not GuestKind.INMATE else None)
        logs = guest.record.logs or ()
        link("console", next((log.path for log in logs if log.kind == "raw"), logs[0].path if logs else None))
        for fifo in (*FIFOS, "exit", "bell"):
            os.mkfifo(os.path.join(directory, fifo), 0o600)

    async def _make_cgroup(self, guest: Container, driver: Driver) -> None:
        group = guest.cgroup
        await anyio.to_thread.run_sync(group.create)
        if not driver.command:
            return  # nothing of the guest runs in it, and its CPUs may have left this system: no cpuset has them
        await anyio.to_thread.run_sync(group.apply, limits(self._spec, self._config.qemu.overhead_bytes))

    async def _remove_cgroup(self, guest: Container) -> None:
        """Undo `_make_cgroup` as long as there is no init process, with whose end the cgroup goes."""
        try:
            await anyio.to_thread.run_sync(guest.cgroup.remove)
        except (CgroupError, OSError) as exc:
            log.warning("%s: %s", guest.record.name, exc)

    def _fill_cgroup(self, guest: Container, driver: Driver) -> None:
        """Move the stub and the guest's helpers, with what they have forked by now."""
        for pid in (guest.record.pid, *driver.helpers()):
            guest.cgroup.join_family(pid)
        for pid in driver.helpers():
            self._rank((pid, *children(pid)))

    def _rank(self, pids: Iterable[int]) -> None:
        """Give processes the container's rank for the out-of-memory killer; without one they keep the engine's."""
        rank = self._spec.process.oom_score_adj if self._spec.process is not None else None
        if rank is not None:
            for pid in pids:
                rank_for_memory(pid, rank)

    def _open_console(self, guest: Container) -> Lifeline:
        process = self._spec.process
        record = guest.record
        if not record.terminal:
            return Lifeline(record.id, self._call.fds)
        if record.attached:  # `run`: the client itself shows the console
            return Lifeline(record.id, ())
        shown = process.console_size if process is not None else None
        return Lifeline(record.id, (), terminal.Size(shown.height, shown.width) if shown else _UNKNOWN)

    async def _spawn(self, guest: Container, assembly: Assembly, lifeline: Lifeline) -> None:
        driver = assembly.driver
        inherited = driver.inheritance()
        # The stub's own description: the supervisor's is non-blocking, and a shell's read must block.
        exit_fd = os.open(os.path.join(guest.directory, stub.EXIT_FIFO), os.O_RDWR | os.O_CLOEXEC)
        stdin, stdout, stderr = lifeline.stdio
        stdio_cursor, log_cursor = lifeline.cursors
        held = {
            stub.Fd.EXIT: exit_fd,
            stub.Fd.STDOUT: stdout,
            stub.Fd.STDERR: stderr,
            stub.Fd.STDIN: stdin,
            stub.Fd.STDIO_CURSOR: stdio_cursor,
            stub.Fd.LOG_CURSOR: log_cursor,
            stub.Fd.CONSOLE: assembly.streams.console.output,
            stub.Fd.BELL: assembly.bell.fd,
            **inherited.kept,
        }
        argv = stub.command(driver.command, driver.network or network(self._spec), driver.again)
        try:
            with stub.arranged(held, inherited.extra) as fds:
                pid = await self._call.spawn(guest.directory, argv, fds)
        finally:
            os.close(exit_fd)
        try:
            process = Process(pid)
        except ProcessLookupError:  # with its client, most likely
            raise StateError("cannot create the container: its init process was killed before it began") from None
        guest.record.pid, guest.record.pid_start = pid, process.started
        self._undo.callback(process.send, 9)
        # From here on the guest's own task answers for its end, also when a later step fails.
        running = await self._supervisor.enliven(guest, assembly, process)
        self._undo.pop_all()
        self._undo.push_async_callback(self._abort, guest)
        running.begin()
        await driver.watch(running.told())
        running.heed()
        guest.save()
        self._rank((pid,))  # before the stub forks the VMM, which gets the same
        await self._call.go()

    async def _abort(self, guest: Container) -> None:
        await guest.end()
        if guest.init is not None:
            guest.init.kill()
        await forget(guest)
        self._supervisor.drop(guest)

    async def _run_hooks(self, guest: Container) -> None:
        hooks = self._spec.hooks
        state = document(guest.record).hook_bytes()
        await run_hooks(hooks.prestart, state, kind="prestart", cwd=self._order.bundle)
        await run_hooks(hooks.create_runtime, state, kind="createRuntime", cwd=self._order.bundle)

    async def _hand_over(self, master: int) -> None:
        path = self._order.console_socket
        assert path is not None
        try:
            await anyio.to_thread.run_sync(send_master, path, self._call.cwd, master)
        except OSError as exc:
            raise RunphiError(f"cannot send the terminal to {path}: {exc.strerror or exc}") from exc

    async def _publish(self, guest: Container) -> None:
        if guest.settled.is_set():
            raise BackendError(f"cannot create the guest: {guest.record.reason}")
        guest.lifecycle.tell(Event.MADE)
        guest.save()
        pid = b"%d" % guest.record.pid
        write_atomically(os.path.join(guest.directory, "pidfile"), pid)
        if self._order.pid_file is not None:
            try:
                write_atomically(self._order.pid_file, pid, 0o644)
            except OSError as exc:
                raise RunphiError(f"cannot write the pid file {self._order.pid_file}: {exc.strerror}") from exc
