# SPDX-License-Identifier: Apache-2.0
"""One container as verbs find it: what is true of it at any time, what runs, if anything does, and whose turn it is.

Verbs on one container take turns (``verb``), verbs on different ones run side by side. The end of a guest is handled
by the guest's own task (``live``), whoever is waiting for what.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import anyio

from runphi_async.container.ending import Settlement
from runphi_async.container.recorded import Recorded
from runphi_async.container.running import END_PATIENCE, Running
from runphi_async.errors import BackendError
from runphi_async.oci import spec as oci
from runphi_async.oci.signals import Meaning, meaning
from runphi_async.record.lifecycle import Action, Event, Status
from runphi_async.terminals import channels
from runphi_async.terminals.consolelogs import plans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import TaskStatus

    from runphi_async.container.assembly import Assembly
    from runphi_async.container.initprocess import InitProcess
    from runphi_async.container.recorded import Shared
    from runphi_async.partition.logplan import LogPlan
    from runphi_async.record.store import Record
    from runphi_async.terminals.console import Console
    from runphi_async.terminals.stream import Stream

log = logging.getLogger(__name__)

#: what signals ask for that the state machine decides about
_REQUESTS: Final = {Meaning.KILL: Event.KILL, Meaning.STOP: Event.STOP, Meaning.PASS: Event.SIGNAL}


class Sickness(NamedTuple):
    """Why a container could not be taken over, and what ends it all the same."""

    problem: str
    last_resort: Callable[[], Awaitable[None]]


class Container(Recorded):
    """A container.

    :ivar running: what runs; None: it is not made yet, could not be taken over, or has ended.
    :ivar init: its init process, until the container is forgotten.
    """

    def __init__(self, record: Record, shared: Shared) -> None:
        super().__init__(record, shared)
        self.running: Running | None = None
        self.init: InitProcess | None = None
        self.sick: Sickness | None = None
        self._turn = anyio.Lock()
        self._hooks: oci.Hooks | None = None

    @contextlib.asynccontextmanager
    async def verb(self) -> AsyncIterator[Self]:
        """Take a turn: while the block runs no other verb acts on the container."""
        async with self._turn:
            yield self

    # Section: its life

    async def live(self, assembly: Assembly, init: InitProcess, *, task_status: TaskStatus[Running]) -> None:
        """Own the guest's tasks until it has ended; run as a task of the supervisor.

        Nothing but cancellation gets out: what a task of the guest raises ends the guest. A step of the end that hangs
        is waited for when nobody else waits any more.
        """
        try:
            async with anyio.create_task_group() as tasks:
                try:
                    self.init = init
                    self.running = Running(self, assembly, init, tasks)
                    task_status.started(self.running)
                    await self.running.ended.wait()
                    await Settlement(self, self.running, tasks).settle()
                    tasks.cancel_scope.cancel()
                finally:
                    self.running = None
                    self.settled.set()
        except Exception:  # no step of the end lets one out, and no task does
            log.exception("%s: cannot end cleanly", self.record.name)

    # Section: what is looked up

    @property
    def console(self) -> Console | None:
        """Its console, while it runs."""
        return None if self.running is None else self.running.streams.console

    def stream(self, name: str | None) -> Stream | None:
        """Return the stream that is meant (``channels.resolve``); None: the guest has ended, or is not made yet.

        :raises NotFoundError: it has none of that name.
        """
        known = channels.resolve(self.record, name)
        return None if self.running is None else self.running.streams.find(known)

    def logs(self, name: str | None) -> tuple[LogPlan, ...]:
        """Return what is logged of the console or of a named stream."""
        known = channels.resolve(self.record, name)
        return plans(self.record) if known is None else channels.logs(self.shared.config, self.record, known)

    def reopen_logs(self) -> None:
        """Another program has renamed the log files."""
        if self.running is not None:
            self.running.streams.reopen_logs()

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

    # Section: what verbs ask; the caller has the turn

    def _driven(self) -> Running:
        """Return what runs.

        :raises BackendError: nothing that could be driven.
        """
        if self.running is None or self.sick is not None:
            why = self.sick.problem if self.sick is not None else "it is not made"
            raise BackendError(f"cannot drive the guest: {why}", "delete --force ends it")
        return self.running

    async def request(self, event: Event, number: int = 0) -> None:
        """Do what ``event`` asks for now.

        :param number: the signal, where it is one.
        :raises StateError: it does not fit.
        :raises BackendError: it cannot be done.
        """
        action = self.lifecycle.ask(event)
        if action is Action.END:
            await self.end()
        elif action is not None:
            await self._driven().carry_out(action, number)

    async def start(self) -> None:
        """Boot the guest. A failure ends the container: an init that stays would leak in every engine.

        :raises StateError: it is not created.
        :raises BackendError: it cannot be started.
        """
        self.lifecycle.check(Event.START)
        running = self._driven()
        console = running.streams.console
        await console.opened()
        if self.record.terminal and console.one_way:
            running.say(f"this console is output only: {console.one_way}")
        await self.request(Event.START)

    async def signal(self, number: int) -> None:
        """Act on a signal as ``runphi_async.oci.signals`` says.

        :raises StateError: there is no guest that could take it.
        """
        what = meaning(number)
        if self.sick is not None and what in (Meaning.KILL, Meaning.STOP):
            self.lifecycle.check(Event.KILL)
            self.record.killed_by = number
            await self.sick.last_resort()
        elif what in _REQUESTS:
            await self.request(_REQUESTS[what], number)
        else:
            self.lifecycle.check(Event.SIGNAL)
            if what is Meaning.RESIZE and self.running is not None:
                self.running.terminal.look(self.running.streams.console)
            elif what is Meaning.PAUSE and self.lifecycle.status is Status.RUNNING:
                await self.request(Event.PAUSE)
            elif what is Meaning.RESUME and self.lifecycle.status is Status.PAUSED:
                await self.request(Event.RESUME)

    async def end(self) -> None:
        """Destroy the guest if it lives and wait, within bounds, until its end is settled.

        One that is only being made is destroyed as soon as it can be.
        """
        if self.sick is not None:
            await self.sick.last_resort()
            return
        running = self.running
        if running is not None and not running.ended.is_set():
            self.record.killed_by = self.record.killed_by or 9
            running.put_down()
        elif self.lifecycle.status is Status.CREATING:
            self.record.killed_by = self.record.killed_by or 9
        await self.ended()
        if not self.settled.is_set():
            log.error("%s: did not end within %.0f s: removing it all the same", self.record.name, END_PATIENCE)
            if running is not None:
                running.ended.set()
            if self.init is not None:
                self.init.kill()

    async def ended(self) -> None:
        """Wait, within bounds, until the end is settled."""
        with self.shared.clock.move_on_after(END_PATIENCE):
            await self.settled.wait()
