# SPDX-License-Identifier: Apache-2.0
"""What is done to one cell at the hypervisor: made, loaded, run, stopped, destroyed; each step is written down before.

A container that ends keeps its cell until its console is read to the end. If the cell cannot be destroyed then, the
ledger keeps its CPUs and memory: nobody else may get memory that a cell may still use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

import anyio

from backends.files import write_files
from backends.jailhouse import firmware, linuxfiles, neighbours, tty
from backends.jailhouse.ending import Cause, Phase
from backends.jailhouse.errortext import Gone, Hung
from backends.jailhouse.images import images
from consoles.sources.link import Backoff
from runphi_async.board import ranges
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.jailhouse.machine import Machine
    from backends.jailhouse.neighbours import Neighbours
    from backends.jailhouse.plan import JailhousePlan
    from backends.jailhouse.progress import Progress
    from backends.jailhouse.voice import Voice

log = logging.getLogger(__name__)

#: Seconds before the first and between later tries to stop a cell whose guest refuses.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0


class CellHold:
    """Our hold on one cell.

    :ivar owner: under which name its record claims.
    """

    def __init__(self, machine: Machine, plan: JailhousePlan, directory: str, progress: Progress, voice: Voice) -> None:
        self.cell = plan.cell
        self.owner = os.path.basename(os.path.normpath(directory))
        self._machine = machine
        self._tool = machine.tool
        self._plan = plan
        self._directory = directory
        self._progress = progress
        self._voice = voice
        self._cleaned = False
        machine.cells[self.owner] = plan.cell

    # Section: making it

    async def make(self) -> None:
        """Write the configuration, look at it once more, then make the cell and load its images.

        :raises BackendError: it cannot be made.
        """
        tty.refuse_unsupported(self.cell.console)
        view = await self._tool.enabled()
        beside = await self._beside()
        if view.find(self.cell.name) is not None:
            raise BackendError(
                f"cannot make cell '{self.cell.name}': a cell of that name exists, made by somebody else",
                f"jailhouse cell destroy --name {self.cell.name}, if nobody needs it",
            )
        config = await anyio.to_thread.run_sync(self._write_files)
        self._progress.go(Phase.MAKING)
        await self._create(config, beside)
        await self.load()
        self._progress.go(Phase.LOADED)

    async def _beside(self) -> Neighbours:
        view, system = await self._tool.enabled(), self._machine.settings.system_config
        return await anyio.to_thread.run_sync(neighbours.beside, self.owner, self._machine.cells, system, view)

    def _write_files(self) -> str:
        write_files(self._directory, self._plan.files)
        linuxfiles.write(self._plan, self._directory)
        return self._config()

    def _config(self) -> str:
        name = next((name for name in sorted(os.listdir(self._directory)) if name.endswith(".cell")), "")
        return os.path.join(self._directory, name)

    async def _create(self, config: str, beside: Neighbours) -> None:
        try:
            seen = await self._tool.create(config, beside.system, beside.cells)
        except Hung:
            raise
        except BackendError:
            self._progress.go(Phase.NONE)  # nothing was made: a cell of that name is somebody else's, and stays
            raise
        if seen.rcpus != self.cell.rpus:
            raise BackendError(
                f"cannot make cell '{seen.name}': it got remote processors {ranges.listed(seen.rcpus) or 'none'} and "
                f"not {ranges.listed(self.cell.rpus) or 'none'}",
                "does the board's Jailhouse know remote processors? The kernel's log tells",
            )
        cpus = ranges.listed(seen.cpus)
        log.info("%s: made cell '%s'; CPUs that have left the root system: %s", self.owner, seen.name, cpus or "none")
        if seen.cpus:
            root = (await self._tool.look()).root
            self._voice.cpus_left(seen.cpus, root.cpus if root is not None else ())

    async def load(self) -> None:
        """Load its images.

        :raises BackendError: one cannot be.
        """
        ready = await anyio.to_thread.run_sync(images, self.cell.loads, self._directory)
        if self.cell.rpus:
            ready += await anyio.to_thread.run_sync(
                firmware.link, self.cell, self._directory, self._machine.settings.firmware
            )
        await self._tool.load(self.cell.name, ready)

    async def make_again(self) -> None:
        """Make a cell that was destroyed to stand still, of the same configuration; its claims were kept."""
        with contextlib.suppress(Gone):
            await self._tool.destroy(self.cell.name)  # an earlier try got no further
        beside = await self._beside()
        config = await anyio.to_thread.run_sync(self._config)
        await self._tool.create(config, beside.system, beside.cells)

    # Section: driving it

    async def start(self) -> None:
        """Let its CPUs run."""
        self._progress.go(Phase.STARTING)
        await self._tool.start(self.cell.name)
        self._progress.go(Phase.STARTED)
        self._machine.watcher.hurry()

    async def halt(self) -> None:
        """Stop what runs. A remote processor does not hear of a cell's shutdown: only destruction switches it off."""
        if self.cell.rpus:
            await self._tool.destroy(self.cell.name)
        else:
            await self._tool.shutdown(self.cell.name)

    async def halt_at_last(self, is_over: Callable[[], bool]) -> Cause | None:
        """Stop it, again and again if its guest refuses; return how that ended, None if something else ended it."""
        backoff, said = Backoff(FIRST_PAUSE, LONGEST_PAUSE), False
        while not is_over():
            try:
                await self.halt()
            except Gone:
                return Cause.KILLED
            except Hung as exc:
                log.error("%s: %s", self.owner, exc)
                return Cause.SILENT
            except BackendError as exc:
                log.warning("%s: %s", self.owner, exc)
                if not said:
                    said = True
                    self._voice.say(f"{exc.msg}; trying again")
                await asyncio.sleep(backoff.pause())
            else:
                return Cause.KILLED
        return None

    # Section: its end

    async def clean(self) -> None:
        """Destroy it, however far it had come, and give back what it had; once."""
        if self._cleaned:
            return
        if self.cell.rpus:
            await anyio.to_thread.run_sync(firmware.unlink, self._directory, self._machine.settings.firmware)
        if self._progress.phase is not Phase.NONE:
            try:
                with contextlib.suppress(Gone):
                    await self._tool.destroy(self.cell.name)
            except BackendError as exc:
                if not await self._is_gone():
                    log.error("%s: %s; its CPUs and memory stay taken", self.owner, exc)
                    self._machine.cells.pop(self.owner, None)
                    return
            await self._look_for_cpus()
        self._cleaned = True
        with contextlib.suppress(OSError):  # the record is gone already
            self._progress.go(Phase.NONE)  # the next cell of this name is somebody else's
        try:
            await self._machine.free(self.owner)
        except BackendError as exc:
            log.error("%s: %s", self.owner, exc)

    async def _is_gone(self) -> bool:
        """Whether the cell is gone all the same: disabling the hypervisor destroys all of them."""
        try:
            return (await self._tool.look()).find(self.cell.name) is None
        except BackendError:
            return False

    async def _look_for_cpus(self) -> None:
        """Note that the cell's CPUs are the root system's again: one that was offline before stays offline."""
        if self.cell.cpus:
            offline = await self._machine.report_cpus(self.owner, self.cell.cpus)
            self._voice.cpus_back(self.cell.cpus, offline)
