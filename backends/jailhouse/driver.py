# SPDX-License-Identifier: Apache-2.0
"""One cell: made and loaded by ``create``, run by ``start``, watched through sysfs, destroyed behind its end.

There is no process for a cell, so the init stub only waits. What must survive a supervisor is in the hypervisor; how
far we had come with it is the file ``cell.phase`` in the record, written before each step.

A container that ends keeps its cell until its console is read to the end; then ``release`` destroys it and gives CPUs
and memory back. If that fails, the ledger keeps them: nobody else may get memory that a cell may still use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from backends.base import Abilities, Evidence, Inheritance, Told, Verdict
from backends.ending import Ending
from backends.files import write_files
from backends.guest.initchannel import InitChannel
from backends.jailhouse import ending, firmware, linuxfiles, marks, shared, tty
from backends.jailhouse.ending import Cause, Phase
from backends.jailhouse.errortext import Gone, Hung
from backends.jailhouse.images import images
from backends.jailhouse.machine import owner_of
from backends.jailhouse.plan import CellPlan, Source
from backends.jailhouse.progress import Progress
from backends.jailhouse.shared import Presence
from backends.jailhouse.voice import Voice
from backends.jailhouse.watcher import Look
from consoles.sources.link import Backoff
from runphi_async.aio.owned import OwnedTasks
from runphi_async.board import ranges
from runphi_async.errors import BackendError, UnsupportedError
from runphi_async.partition import channels
from runphi_async.partition.channels import Channel

if TYPE_CHECKING:
    from backends.jailhouse import check, model
    from backends.jailhouse.machine import Machine
    from backends.jailhouse.marks import Marked, Said
    from backends.jailhouse.plan import JailhousePlan
    from backends.jailhouse.sysfs import View
    from consoles.sources import base

log = logging.getLogger(__name__)

#: Seconds before the first and between later tries to stop a cell whose guest refuses.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
#: Seconds that a Linux cell which has ended is given for the last bytes on its console: they say with which code.
MARK_PATIENCE: Final = 2.0
#: Phases of a guest that has been started.
_BEGUN: Final = (Phase.STARTED, Phase.PAUSED, Phase.AWAY)


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a new supervisor must know of a cell to adopt it.

    :ivar console: the channel that is the console, in place of the cell's own.
    """

    cell: CellPlan
    console: Channel | None = None


def memory_of(plan: JailhousePlan) -> Memory:
    """Return what there is to know of a plan's cell."""
    return Memory(cell=plan.cell, console=next((part for part in plan.channels if part.name == plan.console), None))


class CellDriver:
    """Drives one cell; see ``backends.base.Driver``."""

    def __init__(self, machine: Machine, memory: Memory, directory: str, plan: JailhousePlan | None = None) -> None:
        self.command: tuple[str, ...] = ()
        self.again: tuple[str, ...] = ()
        self.overhead_bytes = 0
        self._machine = machine
        self._tool = machine.tool
        self._cell = memory.cell
        self._channel = memory.console
        self._plan = plan
        self._directory = directory
        self._owner = owner_of(directory)
        self._ending = Ending()
        self._tasks = OwnedTasks(self._broke)
        self._init = InitChannel(self._ending, self._tell)
        self._voice = Voice(self._ending)
        self._presence = Presence(memory.cell.console, self._voice.note)
        self._over = False
        self._cleaned = False
        self._cause: Cause | None = None
        self._failed: tuple[int, ...] = ()
        self._progress = Progress(directory, fresh=plan is not None)
        self._stopping: asyncio.Task[None] | None = None
        self._mark = linuxfiles.read_mark(directory) if plan is None else ""
        self._words: Marked | None = None
        self._patience: asyncio.TimerHandle | None = None
        machine.cells[self._owner] = memory.cell

    @property
    def abilities(self) -> Abilities:
        """A Linux guest has our init, which hears us on its console if that has an input.

        The hypervisor's polite request comes with every stop, and a source sends breaks itself.
        """
        if self._words is None or not self._cell.console.input:
            return Abilities()
        return Abilities(signals=self._init, resizes=self._init, takes_eof=self._init)

    # Section: making it

    async def prepare(self) -> None:
        """Write the configuration, look at it once more, then make the cell and load its images."""
        assert self._plan is not None
        tty.refuse_unsupported(self._cell.console)
        view = await self._tool.enabled()
        system, others = await anyio.to_thread.run_sync(self._machine.beside, self._owner, self._cell, view)
        if view.find(self._cell.name) is not None:
            raise BackendError(
                f"cannot make cell '{self._cell.name}': a cell of that name exists, made by somebody else",
                f"jailhouse cell destroy --name {self._cell.name}, if nobody needs it",
            )
        config = await anyio.to_thread.run_sync(self._write_files)
        self._progress.go(Phase.MAKING)
        await self._create(config, system, others)
        await self._load()
        self._progress.go(Phase.LOADED)

    async def _create(self, config: str, system: model.System | None, others: list[check.Named]) -> None:
        try:
            seen = await self._tool.create(config, system, others)
        except Hung:
            raise
        except BackendError:
            self._progress.go(Phase.NONE)  # nothing was made: a cell of that name is somebody else's, and stays
            raise
        if seen.rcpus != self._cell.rpus:
            raise BackendError(
                f"cannot make cell '{seen.name}': it got remote processors {ranges.listed(seen.rcpus) or 'none'} and "
                f"not {ranges.listed(self._cell.rpus) or 'none'}",
                "does the board's Jailhouse know remote processors? The kernel's log tells",
            )
        cpus = ranges.listed(seen.cpus)
        log.info("%s: made cell '%s'; CPUs that have left the root system: %s", self._owner, seen.name, cpus or "none")
        if seen.cpus:
            root = (await self._tool.look()).root
            self._voice.cpus_left(seen.cpus, root.cpus if root is not None else ())

    def _write_files(self) -> str:
        assert self._plan is not None
        write_files(self._directory, self._plan.files)
        self._mark = linuxfiles.write(self._plan, self._directory)
        return next((os.path.join(self._directory, name) for name in self._plan.files if name.endswith(".cell")), "")

    async def _load(self) -> None:
        ready = await anyio.to_thread.run_sync(images, self._cell.loads, self._directory)
        if self._cell.rpus:
            ready += await anyio.to_thread.run_sync(
                firmware.link, self._cell, self._directory, self._machine.settings.firmware
            )
        await self._tool.load(self._cell.name, ready)

    def inheritance(self) -> Inheritance:
        """Return nothing: a cell has neither event nor control channel."""
        return Inheritance()

    @property
    def network(self) -> str:
        """Return nothing: a cell's network is not the container's."""
        return ""

    def console(self) -> base.Source | None:
        """Return what the board connects with the cell's console; None: there is none."""
        source = self._console()
        if source is None or not self._mark:
            return source
        begun = self._progress.phase in (Phase.STARTING, Phase.STARTED)
        self._words = marks.marked(source, self._mark, self._on_said, begun=begun)
        return self._words

    def _console(self) -> base.Source | None:
        choice = self._cell.console
        fresh = self._progress.phase in (Phase.NONE, Phase.MAKING, Phase.LOADED)
        if self._channel is not None:
            return channels.source(self._channel, self._directory)
        match choice.source:
            case Source.VIRTUAL:
                return self._machine.virtual.source(self._cell.name, self._voice.say, self._voice.note, fresh=fresh)
            case Source.UART:
                return tty.source(choice, self._voice.say)
            case Source.IVSHMEM | Source.VIRTIO:
                return shared.source(choice, self._directory, self._voice.note, fresh=fresh)
        return None

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
        self._presence.look()
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
        return cause in (Cause.DONE, Cause.FAILED) and self._words is not None and self._progress.said is None

    def _on_said(self, said: Said) -> None:
        """Note how the guest's process ended, and have its cell stopped; init waits for that."""
        if said.error:
            self._voice.say(said.error)
        self._progress.keep(said)
        self._init.hear(b"exit %d" % said.code)

    def _end(self, cause: Cause) -> None:
        if self._patience is not None:
            self._patience.cancel()
        if self._ending.told is None:
            return
        self._cause = cause
        self._over = True
        self._machine.watcher.unwatch(self._owner)
        self._ending.once()

    def _look_on(self) -> None:
        self._machine.watcher.watch(self._owner, Look(self._on_view, self._unwatched))

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
            view = await self._tool.look()
        except BackendError as exc:
            log.error("%s: %s", self._owner, exc)
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
        self._progress.go(Phase.STARTING)
        await self._tool.start(self._cell.name)
        self._progress.go(Phase.STARTED)
        self._machine.watcher.hurry()

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
            await self._halt()
        except BackendError:
            self._progress.go(before)
            raise

    async def resume(self) -> None:
        """Load the images again and start the cell from its beginning; one that runs already is left alone."""
        if self._progress.phase is Phase.STARTED:
            return
        if self._words is not None:
            self._words.again()
        if self._progress.phase is Phase.AWAY:
            await self._make_again()
        await self._load()
        await self.start()

    async def _make_again(self) -> None:
        """Make a cell that ``suspend`` has destroyed, of the same configuration; its claims were kept."""
        with contextlib.suppress(Gone):
            await self._tool.destroy(self._cell.name)  # an earlier ``resume`` got no further
        view = await self._tool.enabled()
        system, others = await anyio.to_thread.run_sync(self._machine.beside, self._owner, self._cell, view)
        names = await anyio.to_thread.run_sync(os.listdir, self._directory)
        config = next(name for name in sorted(names) if name.endswith(".cell"))
        await self._tool.create(os.path.join(self._directory, config), system, others)

    async def _halt(self) -> None:
        """Stop what runs. A remote processor does not hear of a cell's shutdown: only destruction switches it off."""
        if self._cell.rpus:
            await self._tool.destroy(self._cell.name)
        else:
            await self._tool.shutdown(self._cell.name)

    def _tell(self, line: str) -> None:
        assert self._words is not None
        self._words.tell(line)

    def destroy(self) -> None:
        """Stop the cell's CPUs, again and again if its guest refuses; ``release`` destroys it then."""
        if self._stopping is None and not self._over:
            self._stopping = self._tasks.start(self._stop(), "stop of the cell")

    async def _stop(self) -> None:
        backoff, said = Backoff(FIRST_PAUSE, LONGEST_PAUSE), False
        while not self._over and self._ending.told is not None:
            try:
                await self._halt()
            except Gone:
                self._end(Cause.KILLED)
            except Hung as exc:
                log.error("%s: %s", self._owner, exc)
                self._end(Cause.SILENT)
            except BackendError as exc:
                log.warning("%s: %s", self._owner, exc)
                if not said:
                    said = True
                    self._voice.say(f"{exc.msg}; trying again")
                await asyncio.sleep(backoff.pause())
            else:
                self._end(Cause.KILLED)

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Say how the cell ended."""
        if self._progress.said is not None:
            return ending.said(self._progress.said)
        return self._ending.verdict() or ending.verdict(self._cause, self._failed, evidence)

    async def release(self) -> None:
        """Stop watching; destroy a cell that has ended, and give back what it had."""
        self._ending.forget()
        self._machine.watcher.unwatch(self._owner)
        if self._patience is not None:
            self._patience.cancel()
        self._machine.hearers.pop(self._cell.name, None)
        self._presence.close()
        await self._tasks.close()
        self._stopping = None
        if self._over:
            with anyio.CancelScope(shield=True):
                await self._clean()

    async def bury(self) -> None:
        """Destroy the cell, however far it had come, and give back what it had."""
        self._over = True
        await self.release()

    async def _is_gone(self) -> bool:
        """Whether the cell is gone all the same: disabling the hypervisor destroys all of them."""
        try:
            return (await self._tool.look()).find(self._cell.name) is None
        except BackendError:
            return False

    async def _look_for_cpus(self) -> None:
        """Note that the cell's CPUs are the root system's again: one that was offline before stays offline."""
        if self._cell.cpus:
            offline = await self._machine.report_cpus(self._owner, self._cell.cpus)
            self._voice.cpus_back(self._cell.cpus, offline)

    async def _clean(self) -> None:
        if self._cleaned:
            return
        if self._cell.rpus:
            await anyio.to_thread.run_sync(firmware.unlink, self._directory, self._machine.settings.firmware)
        if self._progress.phase is not Phase.NONE:
            try:
                with contextlib.suppress(Gone):
                    await self._tool.destroy(self._cell.name)
            except BackendError as exc:
                if not await self._is_gone():
                    log.error("%s: %s; its CPUs and memory stay taken", self._owner, exc)
                    self._machine.cells.pop(self._owner, None)
                    return
            await self._look_for_cpus()
        self._cleaned = True
        with contextlib.suppress(OSError):  # the record is gone already
            self._progress.go(Phase.NONE)  # the next cell of this name is somebody else's
        try:
            await self._machine.free(self._owner)
        except BackendError as exc:
            log.error("%s: %s", self._owner, exc)
