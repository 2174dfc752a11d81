# SPDX-License-Identifier: Apache-2.0
"""A guest that has a driver, an init process and tasks: carries out what ``runphi_async.record.lifecycle`` decides.

It is there from the moment the init process is until the end is settled (``runphi_async.container.ending``).
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Final

import anyio

from backends.base import Told
from runphi_async.container import hearsay
from runphi_async.container.bulkhead import Bulkhead
from runphi_async.container.stopping import Stopping
from runphi_async.errors import BackendError, StateError
from runphi_async.events import Pause, Resume, SignalSent, Start
from runphi_async.lifeline import stub
from runphi_async.oci.signals import meaning
from runphi_async.record.lifecycle import Action, Event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runphi_async.aio.tasks import Tasks
    from runphi_async.container.assembly import Assembly
    from runphi_async.container.initprocess import InitProcess
    from runphi_async.container.recorded import Recorded

log = logging.getLogger(__name__)

#: Seconds that a destroyed guest may take to end before whoever waits goes on without it: delete always ends.
END_PATIENCE: Final = 10.0
#: Seconds after which a guest that its driver was told to end is ended without it, and the engine hears so. A tool of a
#: hypervisor that hangs is given 30 s, and asked again (backends/jailhouse, backends/xen).
OVERDUE: Final = 180.0


class Running:
    """One guest, from its init process's first moment until its end is settled.

    :param assembly: its driver, streams and bell; owned from here on.
    :param tasks: its own, which somebody else enters and leaves.
    :ivar fault: the fault of ours that the guest is ended for, "" for none.
    """

    def __init__(self, container: Recorded, assembly: Assembly, init: InitProcess, tasks: Tasks) -> None:
        self.driver, self.terminal, self.streams, self.watching, self.bell, self.ended = assembly
        self.init = init
        self.fault = ""
        self._container = container
        self._clock = container.shared.clock
        self._awaited = False
        self._tasks = Bulkhead(tasks, self.crashed)
        seconds = self.driver.abilities.patience
        self._stopping = Stopping(container.record.name, seconds, self.destroy, self.ended, self._clock)
        self._actions: dict[Action, Callable[[int], Awaitable[None]]] = {
            Action.BOOT: self._boot,
            Action.SUSPEND: self._suspend,
            Action.CONTINUE: self._continue,
            Action.DELIVER: self._deliver,
            Action.DESTROY: self._destroy_for,
        }

    def begin(self) -> None:
        """Listen to the init process, its bell and the streams."""
        self.init.watch(self._guarded(self._abandoned))
        self.streams.start(self._tasks)
        self.bell.listen(self._guarded(self._rang))
        if self._container.record.engine_terminal:
            self._tasks.start_soon(self.terminal.watch, self.streams.console, name="size")

    # Section: what it is told

    def told(self) -> Told:
        """Return what the driver is to call."""
        container = self._container
        return Told(
            self.ended.set,
            self._guarded(self._done),
            self._guarded(self.say),
            container.note,
            self._guarded(functools.partial(hearsay.paused, container)),
            self._guarded(functools.partial(hearsay.resumed, container)),
            self._guarded(functools.partial(hearsay.again, container)),
            functools.partial(hearsay.enrol, container),
            init=container.record.pid,
        )

    def _guarded(self, function: Callable[..., None]) -> Callable[..., None]:
        """Return a callback whose failure ends the guest; the loop would only log it, and the guest live on deaf."""

        def call(*args: object, **named: object) -> None:
            try:
                function(*args, **named)
            except Exception as exc:
                self.crashed(exc)

        return call

    def _rang(self) -> None:
        bell = self.driver.abilities.hears_bell
        if bell is not None:
            bell.rang()

    def _abandoned(self) -> None:
        """The init process has died: the engine gave up."""
        record = self._container.record
        if self.ended.is_set():
            return
        step = self._container.lifecycle.tell(Event.ABANDONED)
        if step is not None and step.action is Action.DESTROY:
            log.warning("%s: the init process was killed: destroying the guest", record.name)
            if record.killed_by is None:
                record.killed_by = 9
            self.put_down()

    def _done(self, printed: int) -> None:
        self._tasks.start_soon(self._finish, printed, name="finish")

    async def _finish(self, printed: int) -> None:
        """The guest's process has ended: destroy the guest as soon as its last byte is here."""
        seconds = self._container.shared.config.console.drain_seconds
        if not await self.streams.console.hub.received(printed, seconds):
            log.warning("%s: the last bytes of the console did not come", self._container.record.name)
        self.put_down()

    def say(self, text: str) -> None:
        """Put a line of ours on the console."""
        self.streams.console.hub.say(f"runphi: {text}\n".encode())

    # Section: when something of ours fails

    def crashed(self, exc: Exception) -> None:
        """End the guest for a fault of ours: nobody else has to suffer for it, and the engine learns why."""
        log.error("%s: internal error", self._container.record.name, exc_info=exc)
        if not self.fault:
            self.fault = f"internal error: {exc or type(exc).__name__}"
            if not self.ended.is_set():
                self._tasks.start_soon(self._wreck, name="wreck")

    async def _wreck(self) -> None:
        """End the guest by its driver if that still can, and by the kernel if not."""
        try:
            self.driver.end()
        except Exception:
            log.exception("%s: its driver cannot destroy it", self._container.record.name)
        else:
            with self._clock.move_on_after(END_PATIENCE):
                await self.ended.wait()
        await self._end_without_driver()

    async def _overdue(self) -> None:
        """Wait for the end of a guest that was destroyed; no driver that never says it keeps the engine waiting."""
        with self._clock.move_on_after(OVERDUE):
            await self.ended.wait()
        if not self.ended.is_set():
            self.fault = self.fault or f"internal error: its driver did not end it within {OVERDUE:.0f} s"
            log.error("%s: %s", self._container.record.name, self.fault)
            await self._end_without_driver()

    async def _end_without_driver(self) -> None:
        if not self.ended.is_set():
            await anyio.to_thread.run_sync(self._container.kill_group, self._container.record.pid)
            self.ended.set()

    # Section: what verbs ask

    async def carry_out(self, action: Action, number: int = 0) -> None:
        """Do what was decided.

        :param number: the signal, where it is one.
        """
        await self._actions[action](number)

    async def _boot(self, _: int) -> None:
        container = self._container
        container.started()
        try:
            container.save()  # before the guest can run: a crash right behind `cont` must find a record that says so
            await self.driver.start()
        except BaseException as exc:
            container.record.killed_by = container.record.killed_by or 9
            reason = self._failure()
            self.put_down()
            with self._clock.move_on_after(END_PATIENCE, shield=True):
                await container.settled.wait()
            if isinstance(exc, BackendError) and reason:
                raise BackendError(f"cannot start the guest: {reason}") from exc
            raise
        self._tell(Event.STARTED)
        self.terminal.look(self.streams.console)
        container.note(Start())

    def _failure(self) -> str:
        lines = stub.vmm_log(self._container.directory).strip().splitlines()
        return lines[-1] if lines else ""

    async def _suspend(self, _: int) -> None:
        await self.driver.suspend()
        self._tell(Event.PAUSED)
        self._container.note(Pause())

    async def _continue(self, _: int) -> None:
        await self.driver.resume()
        self._tell(Event.RESUMED)
        self._container.note(Resume())

    def _tell(self, event: Event) -> None:
        if not self.ended.is_set() and self._container.lifecycle.tell(event) is not None:
            self._container.keep()

    async def _deliver(self, number: int) -> None:
        self._container.note(SignalSent(number=number))
        await self._stopping.deliver(self.driver, self._tasks, number, meaning(number))

    async def _destroy_for(self, number: int) -> None:
        self.destroy(number)

    def destroy(self, number: int) -> None:
        """End the guest at once, on a signal.

        :raises StateError: it has ended.
        """
        if self.ended.is_set():
            raise StateError("container not running")
        self._container.record.killed_by = number
        self._container.keep()
        self.put_down()

    def heed(self) -> None:
        """Destroy the guest if somebody has asked for that before it could be done."""
        if self._container.record.killed_by is not None:
            self.put_down()

    def put_down(self) -> None:
        """Have the driver destroy the guest, unless it has ended; if it cannot, that is done without it."""
        if self.ended.is_set():
            return
        try:
            self.driver.end()
        except Exception as exc:
            self.crashed(exc)
            return
        if not self._awaited:
            self._awaited = True
            self._tasks.start_soon(self._overdue, name="overdue")

    async def send_break(self) -> bool:
        """Send a serial break to the guest, or raise the ``RunphiError`` why not; False: its console has none."""
        if self.streams.console.is_source:
            await self.streams.console.send_break()
            return True
        guest = self.driver.abilities.breaks
        if guest is not None:
            await guest.send_break()
        return guest is not None
