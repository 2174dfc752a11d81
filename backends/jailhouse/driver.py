# SPDX-License-Identifier: Apache-2.0
"""The life of one cell: made and loaded by ``create``, run by ``start``, watched in sysfs, destroyed behind its end.

There is no process for a cell, so the init stub only waits. What must survive a supervisor is in the hypervisor; how
far we had come with it is the file ``cell.phase`` in the record, written before each step. ``hold`` does these steps,
``console`` is what the guest prints on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import anyio

from backends.base import Abilities, Evidence, Inheritance, Told, Verdict
from backends.ending import Ending
from backends.guest.initchannel import InitChannel
from backends.jailhouse import ending
from backends.jailhouse.console import CellConsole
from backends.jailhouse.ending import Cause, Phase
from backends.jailhouse.hold import CellHold
from backends.jailhouse.progress import Progress
from backends.jailhouse.voice import Voice
from backends.jailhouse.watcher import Look
from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError, UnsupportedError

if TYPE_CHECKING:
    from backends.jailhouse.machine import Machine
    from backends.jailhouse.plan import JailhousePlan
    from backends.jailhouse.sysfs import View
    from consoles.sources.base import Source

log = logging.getLogger(__name__)

#: Seconds that a Linux cell which has ended is given for the last bytes on its console: they say with which code.
MARK_PATIENCE: Final = 2.0
#: Phases of a guest that has been started.
_BEGUN: Final = (Phase.STARTED, Phase.PAUSED, Phase.AWAY)


class CellDriver:
    """Drives one cell; see ``backends.base.Driver``.

    :param fresh: the cell is new; else its record says how far it had come.
    """

    def __init__(self, machine: Machine, plan: JailhousePlan, directory: str, *, fresh: bool) -> None:
        self.command: tuple[str, ...] = ()
        self.again: tuple[str, ...] = ()
        self.overhead_bytes = 0
        self._machine = machine
        self._cell = plan.cell
        self._ending = Ending()
        self._tasks = OwnedTasks(self._broke)
        self._voice = Voice(self._ending)
        self._progress = Progress(directory, fresh=fresh)
        self._hold = CellHold(machine, plan, directory, self._progress, self._voice)
        self._console = CellConsole(machine, plan, directory, self._progress, self._voice)
        self._init = InitChannel(self._ending, self._console.tell)
        self._over = False
        self._cause: Cause | None = None
        self._failed: tuple[int, ...] = ()
        self._stopping: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    @property
    def abilities(self) -> Abilities:
        """A Linux guest has our init, which hears us on its console if that has an input.

        The hypervisor's polite request comes with every stop, and a source sends breaks itself.
        """
        if not self._console.hears:
            return Abilities()
        return Abilities(signals=self._init, resizes=self._init, takes_eof=self._init)

    # Section: making it

    async def create(self) -> None:
        """Make the cell and load its images."""
        await self._hold.make()

    def inheritance(self) -> Inheritance:
        """Return nothing: a cell has neither event nor control channel."""
        return Inheritance()

    @property
    def network(self) -> str:
        """Return nothing: a cell's network is not the container's."""
        return ""

    def console(self) -> Source | None:
        """Return what the board connects with the cell's console; None: there is none."""
        return self._console.open(self._on_exit)

    def helpers(self) -> list[int]:
        """Return nothing: there are none."""
        return []

    # Section: watching it

    async def watch(self, told: Told) -> None:
        """Look at the cell from now on."""
        self._attend(told)
        self._look_on()

    def _attend(self, told: Told) -> None:
        self._ending.attend(told)
        self._machine.hearers[self._cell.name] = self._voice.heard
        self._voice.attend(told)

    def _on_view(self, view: View | None) -> None:
        self._console.look()
        cell = view.find(self._cell.name) if view is not None else None
        if cell is not None and cell.failed != self._failed:
            self._failed = cell.failed
            if cell.failed:
                self._voice.cpus_failed(cell.failed, cell.state)
            if cell.failed and cell.runs:
                self._voice.say(
                    f"the hypervisor stopped CPU {', '.join(map(str, cell.failed))} of the cell; others go on"
                )
        cause = ending.judge(self._progress.phase, self._cell.name, view, asked=self._stopping is not None)
        if cause is not None and self._hopes(cause):
            if self._patience is None:
                self._patience = asyncio.get_running_loop().call_later(MARK_PATIENCE, self._end, cause)
        elif cause is not None:
            self._end(cause)

    def _hopes(self, cause: Cause) -> bool:
        """Whether init has said more than this, and it is on its way through the console."""
        return cause in (Cause.DONE, Cause.FAILED) and self._console.has_init and self._progress.said is None

    def _on_exit(self, code: int) -> None:
        """The guest's process has ended: have its cell stopped; init waits for that."""
        self._init.hear(b"exit %d" % code)

    def _end(self, cause: Cause) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._ending.told is None:
            return
        self._cause = cause
        self._over = True
        self._machine.watcher.unwatch(self._hold.owner)
        self._ending.once()

    def _look_on(self) -> None:
        self._machine.watcher.watch(self._hold.owner, Look(self._on_view, self._unwatched))

    def _unwatched(self, exc: BaseException) -> None:
        self._broke("watch over the cell", exc)

    def _broke(self, task: str, exc: BaseException) -> None:
        """Something of ours has failed: nobody looks after the cell any more, so it ends; `release` destroys it."""
        self._ending.broke(task, exc)
        self._end(Cause.BROKEN)

    async def adopt(self, told: Told) -> bool | None:
        """Go on where an earlier supervisor stood; sysfs decides what it did not live to write down."""
        self._attend(told)
        try:
            view = await self._machine.tool.look()
        except BackendError as exc:
            log.error("%s: %s", self._hold.owner, exc)
            self._look_on()  # which will end it if it stays so
            return self._progress.phase in _BEGUN
        cell = view.find(self._cell.name)
        if self._progress.phase is Phase.STARTING:
            self._progress.go(Phase.STARTED if cell is not None and cell.runs else Phase.LOADED)
        cause = ending.judge(self._progress.phase, self._cell.name, view, asked=False)
        if cause is not None:
            self._failed = cell.failed if cell is not None else ()
            wait = MARK_PATIENCE if self._hopes(cause) else 0.0
            self._patience = asyncio.get_running_loop().call_later(wait, self._end, cause)
            return None
        self._look_on()
        if self._progress.said is not None:
            asyncio.get_running_loop().call_soon(told.done, 0)  # an earlier supervisor heard it
        return self._progress.phase in _BEGUN

    # Section: driving it

    async def start(self) -> None:
        """Let the cell's CPUs run."""
        await self._hold.start()

    async def suspend(self) -> None:
        """Stop the cell, where the configuration wants that: Jailhouse cannot make one stand still."""
        if self._machine.settings.pause != "shutdown":
            raise UnsupportedError(
                "cannot pause a cell: Jailhouse can stop a cell only with the loss of its state",
                'to have it stopped and started afresh, set pause = "shutdown" in [jailhouse]',
            )
        before = self._progress.phase
        self._progress.go(Phase.AWAY if self._cell.rpus else Phase.PAUSED)
        try:
            await self._hold.halt()
        except BackendError:
            self._progress.go(before)
            raise

    async def resume(self) -> None:
        """Load the images again and start the cell from its beginning; one that runs already is left alone."""
        if self._progress.phase is Phase.STARTED:
            return
        self._console.again()
        if self._progress.phase is Phase.AWAY:
            await self._hold.make_again()
        await self._hold.load()
        await self._hold.start()

    def end(self) -> None:
        """Stop the cell's CPUs, again and again if its guest refuses; ``release`` destroys it then."""
        if self._stopping is None and not self._over:
            self._stopping = self._tasks.start(self._stop(), "stop of the cell")

    async def _stop(self) -> None:
        cause = await self._hold.halt_at_last(lambda: self._over or self._ending.told is None)
        if cause is not None:
            self._end(cause)

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Say how the cell ended."""
        if self._progress.said is not None:
            return ending.said(self._progress.said)
        return self._ending.verdict() or ending.verdict(self._cause, self._failed, evidence)

    async def release(self) -> None:
        """Stop watching; destroy a cell that has ended, and give back what it had."""
        self._ending.forget()
        self._machine.watcher.unwatch(self._hold.owner)
        if self._patience is not None:
            self._patience.cancel()
        self._machine.hearers.pop(self._cell.name, None)
        self._console.close()
        await self._tasks.close()
        self._stopping = None
        if self._over:
            with anyio.CancelScope(shield=True):
                await self._hold.clean()

    async def bury(self) -> None:
        """Destroy the cell, however far it had come, and give back what it had."""
        self._over = True
        await self.release()
