# SPDX-License-Identifier: Apache-2.0
"""The one hypervisor of this machine, as all drivers share it."""

from __future__ import annotations

import logging
import os
import shutil
from typing import TYPE_CHECKING

import anyio

from backends.jailhouse import firmware, machinefacts
from backends.jailhouse.plan import Virtual
from backends.jailhouse.tool import PATH, Places, Tool
from backends.jailhouse.virtual import VirtualConsole
from backends.jailhouse.watcher import Watcher
from backends.lines import Kind
from runphi_async.board import claims, ranges
from runphi_async.board.claims import Discrepancy
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from backends.base import HypervisorLog
    from backends.jailhouse.plan import CellPlan
    from backends.jailhouse.settings import Jailhouse
    from backends.jailhouse.sysfs import View
    from backends.lines import Line
    from runphi_async.board.claims import Held
    from runphi_async.board.ledger import Ledger

log = logging.getLogger(__name__)


class Machine:
    """Tool, sysfs, ledger and the cells that are ours.

    :ivar cells: the plans of cells that a driver of ours answers for, by the name of their record.
    :ivar claiming: records that are about to claim what a cell needs.
    """

    def __init__(self, settings: Jailhouse, ledger: Ledger, run_dir: str) -> None:
        self.settings = settings
        self.ledger = ledger
        self.program = program(settings) or settings.tool
        self.tool = Tool(Places(self.program, settings.sysfs), settings.deadline_seconds)
        self.watcher = Watcher(self.tool.look)
        self.cells: dict[str, CellPlan] = {}
        self.claiming: set[str] = set()
        self.virtual = VirtualConsole(self.tool, self.program, self.watcher, self._mute, self._heard_there)
        #: who wants the hypervisor's words about a cell, by the cell's name
        self.hearers: dict[str, Callable[[str], None]] = {}
        self._run_dir = run_dir
        self._log: HypervisorLog | None = None

    def hear(self, log: HypervisorLog) -> None:
        """Take part in the hypervisor's console, which the supervisor follows."""
        self._log = log
        log.attend(self._heard, self._mute)
        self.watcher.follow(self._on_view)

    def _on_view(self, view: View | None) -> None:
        if view is not None and self._log is not None:
            self._log.running(self.virtual.writers(view))

    def _heard_there(self, line: Line) -> None:
        if self._log is None:  # else it comes from there, with the lines of times when no cell's console is followed
            self._heard(line)

    def _heard(self, line: Line) -> None:
        hearer = self.hearers.get(line.cell)
        if hearer is not None and line.kind is Kind.HYPERVISOR:
            hearer(line.text.decode("utf-8", "backslashreplace"))

    def _mute(self) -> set[str]:
        return {plan.name for plan in self.cells.values() if plan.virtual_console is Virtual.NO}

    async def enabled(self, root_cell: str) -> View:
        """Return what sysfs shows of an enabled hypervisor whose root cell is this one.

        :raises BackendError: it is not enabled, or for another board.
        """
        view = await self.tool.enabled()
        if view.root is not None and view.root.name != root_cell:
            raise BackendError(
                f"cannot use Jailhouse: the root cell here is '{view.root.name}', and the board file is for "
                f"'{root_cell}'",
                "set jailhouse.board to the file of this board, or make one: runphi board from-sysconfig FILE",
            )
        return view

    def odd(self, held: Sequence[Held], view: View) -> list[Discrepancy]:
        """Return where the ledger and the hypervisor disagree, and whose cells nobody answers for any more."""
        known = self.cells.keys() | self.claiming
        found = [odd for odd in claims.check(held, view.guests()) if not (odd.stale and odd.owner in known)]
        for owner in dict.fromkeys(part.owner for part in held):
            if owner.name not in known and view.find(owner.cell) is not None:
                text = f"its cell '{owner.cell}' is there, and its container's record is gone"
                found.append(Discrepancy(owner.name, text))
        return found

    def stale(self, held: Sequence[Held], view: View) -> set[str]:
        """Return who holds something that nobody answers for, and whose cell is gone: a supervisor died in between."""
        return {odd.owner for odd in self.odd(held, view) if odd.stale}

    async def reconcile(self, view: View) -> None:
        """Free what is stale."""
        for name in self.stale(await anyio.to_thread.run_sync(self.ledger.held), view):
            log.warning("ledger: freeing what '%s' had: its cell is gone, and nobody answers for it", name)
            await self.free(name)
        owners = self.cells.keys() | self.claiming
        for name in await anyio.to_thread.run_sync(firmware.sweep, self._run_dir, owners, self.settings.firmware):
            log.warning("removed %s, which was left over", os.path.join(self.settings.firmware, name))

    async def report_cpus(self, name: str, cpus: Iterable[int]) -> set[int]:
        """Say which CPUs of a cell that was destroyed Linux has not got back: those that were offline before it."""
        online = await anyio.to_thread.run_sync(machinefacts.online, self.settings.sysfs)
        missing = set(cpus) - set(online if online is not None else cpus)
        if missing:
            words = "%s: CPU %s is the root system's again and stays offline, as it was before the cell was made"
            log.warning(words, name, ranges.listed(missing))
        return missing

    async def free(self, name: str) -> None:
        """Give back what a container has of the board."""
        await anyio.to_thread.run_sync(self.ledger.free, name)
        self.cells.pop(name, None)


def program(settings: Jailhouse) -> str:
    """Return the path of the tool, "" when there is none."""
    return shutil.which(settings.tool, path=f"{os.environ.get('PATH', '')}:{PATH}") or ""
