# SPDX-License-Identifier: Apache-2.0
"""One container as the supervisor holds it: carries out what ``runphi_async.record.lifecycle`` decides.

Verbs on one container take turns (``lock``), verbs on different ones run side by side. The end of a guest is
handled by the guest's own task (``live``), whoever is waiting for what.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

import anyio

from backends.base import Evidence, Told, Verdict
from consoles.sharedmem import shmfiles
from consoles.streams import terminal
from consoles.streams.fifo import open_fifo
from runphi_async import events
from runphi_async.aio.waiting import together
from runphi_async.container import hearsay
from runphi_async.container.bulkhead import Bulkhead, Steps
from runphi_async.container.stopping import Stopping
from runphi_async.errors import BackendError, CgroupError, StateError
from runphi_async.host.cgroup import Cgroup, hierarchies
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.oci import spec as oci
from runphi_async.oci.signals import Meaning, meaning
from runphi_async.record.lifecycle import Action, Event, Lifecycle, Status
from runphi_async.terminals import channels
from runphi_async.terminals.console import Console
from runphi_async.terminals.consolelogs import plans
from runphi_async.terminals.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from backends.base import Driver
    from runphi_async.config.schema import Config
    from runphi_async.events import AnyEvent
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.record.eventlog import EventLog
    from runphi_async.record.store import Record, Store
    from runphi_async.terminals.channels import ChannelStream
    from runphi_async.terminals.console import Held
    from runphi_async.terminals.stream import Stream

log = logging.getLogger(__name__)

#: what signals ask for that the state machine decides about
_REQUESTS: Final = {Meaning.KILL: Event.KILL, Meaning.STOP: Event.STOP, Meaning.PASS: Event.SIGNAL}

#: Seconds that delete waits for a destroyed guest's end before it goes on without it: delete always ends.
END_PATIENCE: Final = 10.0
#: Exit code of a guest that we ended for a fault of ours. Source: docs/reference/exit-codes.md.
INTERNAL: Final = 125
#: Seconds between two looks at the size of a guest's terminal. Nobody tells us: the pty is no one's controlling
#: terminal here, so no SIGWINCH comes (docs/reference/engines.md).
SIZE_PERIOD: Final = 0.5


class Guest:
    """A container with its guest, console and record.

    :ivar lock: held by the verb that acts on the container.
    :ivar settled: set once the guest has ended and its exit code is known.
    """

    def __init__(self, record: Record, store: Store, config: Config, events: EventLog) -> None:
        self.record = record
        self.lock = anyio.Lock()
        self.settled = anyio.Event()
        self.events = events
        self.console: Console | None = None
        self.watching: Watching | None = None
        #: monotonic time of the start, None when an earlier supervisor did it
        self.started_at: float | None = None
        #: named streams beside the console
        self.streams: dict[str, ChannelStream] = {}
        self.driver: Driver | None = None
        #: why a supervisor could not take it over, "" if it could; and what ends it all the same
        self.sick = ""
        self.last_resort: Callable[[], Awaitable[None]] | None = None
        self.stub: Process | None = None
        #: the only writer of the record's status
        self.lifecycle = Lifecycle(record)
        self._actions: dict[Action, Callable[[int], Awaitable[None]]] = {
            Action.BOOT: self._boot,
            Action.SUSPEND: self._suspend,
            Action.CONTINUE: self._continue,
            Action.DELIVER: self._deliver,
            Action.DESTROY: self._destroy_for,
            Action.END: self._end_for,
        }
        self._store = store
        self._config = config
        self._ended = anyio.Event()
        self._tasks: Bulkhead | None = None
        #: the fault of ours that the guest is ended for
        self._fault: str | None = None
        self._stopping = Stopping(record.name, config.qemu.stop_seconds, self._destroy, self._ended)
        self._bell = -1
        self._size = terminal.Size(0, 0)
        self._hooks: oci.Hooks | None = None
        if record.status is Status.STOPPED:
            self.settled.set()

    # Section: plumbing

    @property
    def directory(self) -> str:
        """The record directory."""
        return self._store.directory(self.record.name)

    @property
    def cgroup(self) -> Cgroup:
        """The container's cgroup."""
        return Cgroup(self.record.cgroup, hierarchies())

    def save(self) -> None:
        """Write the record."""
        self._store.save(self.record)

    def keep(self) -> None:
        """Write the record where nobody can be told that it failed: what is on disk lags behind then.

        A next supervisor asks the guest itself; no full disk may keep a guest from being ended.
        """
        try:
            self.save()
        except OSError as exc:
            log.error("%s: cannot write its record: %s", self.record.name, exc.strerror)

    def note(self, event: AnyEvent) -> None:
        """Write an event into the container's event log."""
        self.events.write(self.directory, event)

    def open_bell(self) -> int:
        """Open the FIFO by which the stub says that something happened."""
        dir_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._bell = open_fifo("bell", dir_fd)
        finally:
            os.close(dir_fd)
        return self._bell

    async def live(self, *, task_status: TaskStatus[None]) -> None:
        """Own the guest's tasks until it has ended; run as a task of the supervisor.

        Nothing but cancellation gets out: what a task of the guest raises ends the guest.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = Bulkhead(tasks, self.crashed)
                task_status.started()
                await self._ended.wait()
                await self._settle()
                tasks.cancel_scope.cancel()
        except Exception:  # no step of the end lets one out, and no task does
            log.exception("%s: cannot end cleanly", self.record.name)
        finally:
            self.settled.set()

    def crashed(self, exc: Exception) -> None:
        """End the guest for a fault of ours: nobody else has to suffer for it, and the engine learns why."""
        log.error("%s: internal error", self.record.name, exc_info=exc)
        if self._fault is None:
            self._fault = f"internal error: {exc or type(exc).__name__}"
            if not self._ended.is_set() and self._tasks is not None:
                self._tasks.start_soon(self._wreck, name="wreck")

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        """Return a callback whose failure ends the guest; the loop would only log it, and the guest live on deaf."""

        @functools.wraps(function)
        def call(*args: object, **named: object) -> None:
            try:
                function(*args, **named)
            except Exception as exc:
                self.crashed(exc)

        return call

    async def _wreck(self) -> None:
        """End the guest by its driver if that still can, and by the kernel if not."""
        try:
            if self.driver is not None:
                self.driver.destroy()
        except Exception:
            log.exception("%s: its driver cannot destroy it", self.record.name)
        else:
            with anyio.move_on_after(END_PATIENCE):
                await self._ended.wait()
        if not self._ended.is_set():
            await anyio.to_thread.run_sync(self.kill_group)
            self._ended.set()

    def kill_group(self) -> None:
        """Kill what is in the container's cgroup; without one, the machine's process (blocks)."""
        try:
            if self.record.cgroup:
                self.cgroup.kill_all()
                return
            with contextlib.closing(Process(stub.read_pid(self.directory) or -1)) as vmm:
                vmm.send(9)
        except (CgroupError, OSError) as exc:
            log.warning("%s: %s", self.record.name, exc)

    def listen(self) -> None:
        """Start console, bell and stub watch (the stub exists or is about to)."""
        assert self.console is not None
        assert self._tasks is not None
        self.watching = Watching(self, self.console.hub, self._config)
        self.console.start(self._tasks)
        for stream in self.streams.values():
            stream.start(self._tasks)
        asyncio.get_running_loop().add_reader(self._bell, self._guarded(self._rang))
        if self.record.engine_terminal:
            self._tasks.start_soon(self._watch_size, name="size")

    def equip(self, driver: Driver, held: Held) -> Console:
        """Give it its machine's driver and its streams; the same for one that is made and one that is taken over.

        :param held: what the init process keeps of the console, or will.
        """
        self.driver = driver
        self.console = Console(self, self._config.console, plans(self.record), held, driver.console())
        channels.open_all(self.streams, self._config, self)
        return self.console

    async def close_streams(self) -> None:
        """Let go of console and named streams; their logs are completed first."""
        for stream in self.streams.values():
            await stream.close()
        if self.console is not None:
            await self.console.close()

    def stream(self, name: str | None) -> Stream | None:
        """Return the stream that is meant (``channels.resolve``); None: the guest has ended, or is not made yet.

        :raises NotFoundError: it has none of that name.
        """
        known = channels.resolve(self.record, name)
        return self.console if known is None else self.streams.get(known)

    def logs(self, name: str | None) -> tuple[LogPlan, ...]:
        """Return what is logged of the console or of a named stream."""
        known = channels.resolve(self.record, name)
        return plans(self.record) if known is None else channels.logs(self._config, self.record, known)

    def console_changed(self, reason: str | None) -> None:
        """The far end of a console that is no FIFO is gone, or back."""
        if reason is None:
            self.note(events.ConsoleBack())
        else:
            self.note(events.ConsoleGone(reason=reason))

    def hold_stub(self, process: Process) -> None:
        """Watch the stub: its death means that the engine gave up."""
        self.stub = process
        process.watch(self._guarded(self._abandoned))

    def _rang(self) -> None:
        try:
            os.read(self._bell, 4096)
        except BlockingIOError:
            return
        bell = self.driver.abilities.hears_bell if self.driver is not None else None
        if bell is not None:
            bell.rang()

    def _abandoned(self) -> None:
        if self._ended.is_set():
            return
        step = self.lifecycle.tell(Event.ABANDONED)
        if step is not None and step.action is Action.DESTROY and self.driver is not None:
            log.warning("%s: the init process was killed: destroying the guest", self.record.name)
            if self.record.killed_by is None:
                self.record.killed_by = 9
            self.driver.destroy()

    def told(self) -> Told:
        """Return what the driver is to call."""
        return Told(
            self._ended.set,
            self._guarded(self._done),
            self._guarded(self._say),
            self.note,
            self._guarded(functools.partial(hearsay.paused, self)),
            self._guarded(functools.partial(hearsay.resumed, self)),
            self._guarded(functools.partial(hearsay.again, self)),
            functools.partial(hearsay.enrol, self),
            init=self.record.pid,
        )

    def _done(self, printed: int) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(self._finish, printed, name="finish")

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.hub.say(f"runphi: {text}\n".encode())

    async def _finish(self, printed: int) -> None:
        """The guest's process has ended: destroy the guest as soon as its last byte is here."""
        if self.console is not None and not await self.console.hub.received(
            printed, self._config.console.drain_seconds
        ):
            log.warning("%s: the last bytes of the console did not come", self.record.name)
        if self.driver is not None and not self._ended.is_set():
            self.driver.destroy()

    async def _watch_size(self) -> None:
        """Pass the terminal's size on whenever it has changed."""
        while True:
            await anyio.sleep(SIZE_PERIOD)
            self.look_at_size()

    def look_at_size(self) -> None:
        """Tell the guest the size of its terminal if it is news."""
        if self.console is None or self.driver is None or self.settled.is_set():
            return
        guest = self.driver.abilities.resizes
        try:
            size = terminal.get_size(self.console.tty)
        except (OSError, ValueError):
            return  # hung up, or let go of already: there is no terminal to have a size
        if size != self._size and size.rows and size.cols and guest is not None:
            self._size = size
            try:
                guest.resize(size.rows, size.cols)
            except BackendError as exc:
                log.warning("%s: %s", self.record.name, exc)

    def resize(self, rows: int, cols: int) -> None:
        """The terminal of `run`'s client or of whoever types has this size.

        With an engine's terminal that one counts: the engine's user sees the same screen, and cannot be told.
        """
        if self.driver is None or self.settled.is_set() or self.record.engine_terminal:
            return
        guest = self.driver.abilities.resizes
        if guest is None:
            return
        try:
            guest.resize(rows, cols)
        except BackendError as exc:  # the guest's init does not listen: its terminal keeps its size
            log.info("%s: %s", self.record.name, exc)

    async def send_break(self) -> bool:
        """Send a serial break to the guest, or raise the ``RunphiError`` why not; False: its console has none."""
        if self.driver is None or self.settled.is_set():
            return False
        if self.console is not None and self.console.is_source:
            await self.console.send_break()
            return True
        guest = self.driver.abilities.breaks
        if guest is not None:
            await guest.send_break()
        return guest is not None

    def end_of_input(self) -> None:
        """The engine's stdin has ended."""
        guest = self.driver.abilities.takes_eof if self.driver is not None else None
        if guest is not None and not self.record.terminal and not self._ended.is_set():
            try:
                assert self.console is not None
                guest.end_of_input(self.console.input.fed)
            except BackendError as exc:
                log.warning("%s: %s", self.record.name, exc)

    def reopen_logs(self) -> None:
        """Another program has renamed the log files."""
        if self.console is not None and not self.settled.is_set():
            for logs in (self.console.logs, *(stream.logs for stream in self.streams.values())):
                logs.reopen()

    # Section: the end

    async def _settle(self) -> None:
        """Take every step of the end. Cancelled it leaves the rest to the next supervisor."""
        steps = Steps(self.record.name)
        delivered = False
        with steps.attempt("bring the last bytes of the console to its readers"):
            delivered = self.console is None or await self.console.drain()
        with steps.attempt("look at the end of the console"):
            if self.watching is not None:
                await self.watching.finish()
        with steps.attempt("bring the last bytes of the channels to their readers"):
            await together(*(stream.drain for stream in self.streams.values()))
        verdict = Verdict(INTERNAL, self._fault or "internal error: nobody can say how it ended")
        with steps.attempt("find out how it ended"):
            said = self._verdict()
            verdict = said if self._fault is None else Verdict(said.code or INTERNAL, self._fault)
        # First the record, then the engine: whoever sees the exit finds the state that belongs to it.
        with steps.attempt("write its end down"):
            self.stopped(verdict, delivered=delivered)
        if not delivered:
            log.warning("%s: the engine did not take the last bytes of the console", self.record.name)
        await self._let_go(steps)
        self._tell_stub(verdict.code)

    def stopped(self, verdict: Verdict, *, delivered: bool) -> None:
        """Take the end into the record and the event log.

        :param delivered: whether the engine got all that the guest printed.
        """
        record = self.record
        self.lifecycle.tell(Event.ENDED)
        record.exit_code, record.reason = verdict
        record.finished = time.time()
        self.keep()
        self.note(events.Exit(code=verdict.code, reason=verdict.reason, delivered=delivered))
        log.info("%s: ended with %d: %s", record.name, verdict.code, verdict.reason)

    def _verdict(self) -> Verdict:
        if self.driver is None:
            return Verdict(128 + 9, "the guest was never made")
        record = self.record
        try:
            oom_kills = self.cgroup.oom_kills() if record.cgroup else 0
        except (CgroupError, OSError):
            oom_kills = 0
        return self.driver.settle(Evidence(record.killed_by, oom_kills, record.booted))

    async def _let_go(self, steps: Steps) -> None:
        if self._bell >= 0:
            asyncio.get_running_loop().remove_reader(self._bell)
            os.close(self._bell)
            self._bell = -1
        with steps.attempt("let go of its machine"):
            if self.driver is not None:
                await self.driver.release()
        for stream in self.streams.values():
            with steps.attempt("close a channel"):
                await stream.close()
        with steps.attempt("close its console"):
            if self.console is not None:
                await self.console.close()

    def tell_again(self) -> None:
        """An earlier supervisor saved the end and may have died before it told the init process (which is held)."""
        self._tell_stub(self.record.exit_code or 0)

    def _tell_stub(self, code: int) -> None:
        if self.stub is None:
            return
        self.stub.unwatch()
        try:
            fd = self._exit_fifo(self.stub)
            try:
                os.write(fd, b"%d\n" % code)  # stays in the FIFO: the stub itself holds it open
            finally:
                os.close(fd)
        except OSError as exc:
            log.warning("%s: cannot tell the init process its exit code: %s", self.record.name, exc)
            self.stub.send(9)

    def _exit_fifo(self, process: Process) -> int:
        try:
            return os.open(os.path.join(self.directory, stub.EXIT_FIFO), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # the record was removed: the init process still has it
            return stub.take(process.fd, stub.Fd.EXIT)

    # Section: what verbs do; the caller holds the lock

    def _drive(self) -> Driver:
        """Return the driver.

        :raises BackendError: there is none, as the guest could not be taken over.
        """
        if self.driver is None or self.sick:
            raise BackendError(f"cannot drive the guest: {self.sick or 'it is not made'}", "delete --force ends it")
        return self.driver

    @property
    def alive(self) -> bool:
        """Whether its own task waits for its end."""
        return self._tasks is not None and not self.settled.is_set()

    async def give_up(self) -> None:
        """It was ended without its driver: settle that."""
        self._ended.set()
        with anyio.move_on_after(END_PATIENCE):
            await self.settled.wait()

    async def request(self, event: Event, number: int = 0) -> None:
        """Do what ``event`` asks for now.

        :param number: the signal, where it is one.
        :raises StateError: it does not fit.
        """
        action = self.lifecycle.ask(event)
        if action is not None:
            await self._actions[action](number)

    async def start(self) -> None:
        """Boot the guest. A failure ends the container: an init that stays would leak in every engine.

        :raises StateError: it is not created.
        :raises BackendError: it cannot be started.
        """
        self.lifecycle.check(Event.START)
        self._drive()
        if self.console is not None:
            await self.console.opened()
            if self.record.terminal and self.console.one_way:
                self._say(f"this console is output only: {self.console.one_way}")
        await self.request(Event.START)

    async def _boot(self, _: int) -> None:
        driver = self._drive()
        self.record.booted = True
        self.record.started, self.started_at = time.time(), time.monotonic()
        try:
            self.save()  # before the guest can run: a crash right behind `cont` must find a record that says so
            await driver.start()
        except BaseException as exc:
            self.record.killed_by = self.record.killed_by or 9
            reason = self._failure()
            self._put_down(driver)
            with anyio.move_on_after(END_PATIENCE, shield=True):
                await self.settled.wait()
            if isinstance(exc, BackendError) and reason:
                raise BackendError(f"cannot start the guest: {reason}") from exc
            raise
        self._tell(Event.STARTED)
        self.look_at_size()
        self.note(events.Start())

    def _failure(self) -> str:
        lines = stub.vmm_log(self.directory).strip().splitlines()
        return lines[-1] if lines else ""

    async def _suspend(self, _: int) -> None:
        await self._drive().suspend()
        self._tell(Event.PAUSED)
        self.note(events.Pause())

    async def _continue(self, _: int) -> None:
        await self._drive().resume()
        self._tell(Event.RESUMED)
        self.note(events.Resume())

    def _tell(self, event: Event) -> None:
        if not self._ended.is_set() and self.lifecycle.tell(event) is not None:
            self.keep()

    async def signal(self, number: int) -> None:
        """Act on a signal as ``runphi_async.oci.signals`` says.

        :raises StateError: there is no guest that could take it.
        """
        what = meaning(number)
        if self.last_resort is not None and what in (Meaning.KILL, Meaning.STOP):
            self.lifecycle.check(Event.KILL)
            self.record.killed_by = number
            await self.last_resort()
        elif what in _REQUESTS:
            await self.request(_REQUESTS[what], number)
        else:
            self.lifecycle.check(Event.SIGNAL)
            if what is Meaning.RESIZE:
                self.look_at_size()
            elif what is Meaning.PAUSE and self.lifecycle.status is Status.RUNNING:
                await self.request(Event.PAUSE)
            elif what is Meaning.RESUME and self.lifecycle.status is Status.PAUSED:
                await self.request(Event.RESUME)

    async def _deliver(self, number: int) -> None:
        driver = self._drive()
        assert self._tasks is not None
        self.note(events.SignalSent(number=number))
        await self._stopping.deliver(driver, self._tasks, number, meaning(number))

    async def _destroy_for(self, number: int) -> None:
        self._destroy(number)

    async def _end_for(self, _: int) -> None:
        await self.end()

    def _destroy(self, number: int) -> None:
        if self._ended.is_set():
            raise StateError("container not running")
        driver = self._drive()
        self.record.killed_by = number
        self.keep()
        self._put_down(driver)

    def _put_down(self, driver: Driver) -> None:
        """Have the driver destroy the guest; if it cannot, that is done without it."""
        try:
            driver.destroy()
        except Exception as exc:
            self.crashed(exc)

    async def end(self) -> None:
        """Destroy the guest if it lives and wait, within bounds, until its end is settled."""
        if self.last_resort is not None:
            await self.last_resort()
            return
        if self.driver is not None and not self._ended.is_set() and not self.settled.is_set():
            self.record.killed_by = self.record.killed_by or 9
            self._put_down(self.driver)
        with anyio.move_on_after(END_PATIENCE):
            await self.settled.wait()
            return
        log.error("%s: did not end within %.0f s: removing it all the same", self.record.name, END_PATIENCE)
        self._ended.set()
        if self.stub is not None:
            self.stub.send(9)

    async def forget(self) -> None:
        """Free everything the container had and remove its record; never fails."""
        if self.stub is not None:
            await self._await_stub()
        await anyio.to_thread.run_sync(self._remove)

    def _remove(self) -> None:
        record = self.record
        if record.cgroup:
            try:
                cgroup = self.cgroup
                cgroup.kill_all()
                cgroup.remove()
            except (CgroupError, OSError) as exc:
                log.warning("%s: %s", record.name, exc)
        shmfiles.unlink(self.directory)
        self._store.remove(record.name, record.root, record.id)
        if record.log_dir:
            shutil.rmtree(record.log_dir, ignore_errors=True)  # logs that lie elsewhere were asked for there, and stay

    async def _await_stub(self) -> None:
        assert self.stub is not None
        gone = anyio.Event()
        self.stub.unwatch()
        self.stub.watch(gone.set)
        with anyio.move_on_after(2):
            await gone.wait()
        if not gone.is_set():
            self.stub.send(9)
        self.stub.close()
        self.stub = None

    async def hooks(self) -> oci.Hooks:
        """Return the hooks the container was created with.

        :raises SpecError: the record's config.json cannot be read any more.
        """
        if self._hooks is None:
            self._hooks = (await anyio.to_thread.run_sync(oci.load, self.directory)).hooks
        return self._hooks

    def know_hooks(self, hooks: oci.Hooks) -> None:
        """Keep the hooks at hand: `start` and `delete` need not read them."""
        self._hooks = hooks

    async def memory_limit(self) -> int | None:
        """Return the memory limit the container was created with, in bytes."""
        spec = await anyio.to_thread.run_sync(oci.load, self.directory)
        resources = spec.linux.resources if spec.linux is not None else None
        return resources.memory.limit if resources is not None and resources.memory is not None else None
