# SPDX-License-Identifier: Apache-2.0
"""Jailhouse as a backend: plans cells, claims what they need, makes drivers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import anyio
import msgspec

from backends.base import Capabilities, Discrepancy, Finding, Level
from backends.jailhouse import boot, picture
from backends.jailhouse import examine as examining
from backends.jailhouse.driver import CellDriver
from backends.jailhouse.machine import Machine
from backends.jailhouse.plan import JailhousePlan, recall
from backends.jailhouse.planner import JailhousePlanner
from backends.jailhouse.settings import Jailhouse
from runphi_async.board import ranges
from runphi_async.errors import RunphiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.base import HypervisorLog
    from backends.jailhouse.sysfs import View
    from runphi_async.board.claims import Seen
    from runphi_async.config.schema import Config
    from runphi_async.partition.spec import GuestSpec, PartitionPlan


class JailhouseBackend(JailhousePlanner):
    """Jailhouse on this machine; see ``backends.base.Backend``."""

    def __init__(self, config: Config, run_dir: str) -> None:
        settings = config.of(Jailhouse)
        super().__init__(config, run_dir, settings.sysfs)
        self._machine = Machine(settings, self.ledger, run_dir)

    async def probe(self) -> Capabilities:
        """Return the board and its architecture."""
        known = await anyio.to_thread.run_sync(self.board)
        view = await self._machine.enabled(known.root_cell)
        free = ranges.listed(view.root.cpus) if view.root is not None else ""
        summary = f"Jailhouse on {known.title or known.name}, CPUs {free} with the root cell"
        return Capabilities(summary, (boot.ARCHES[known.arch],))

    async def examine(self) -> list[Finding]:
        """Look at board file, tool, module and hypervisor, and whether the ledger agrees with the cells."""
        if not self._config.board:
            return [examining.no_board()]
        found: list[Finding] = []
        try:
            view = await self._machine.tool.look()
            found += await anyio.to_thread.run_sync(examining.machine, self._config, view)
            if view.enabled:
                found.append(Finding(Level.OK, self.name, (await self.probe()).summary))
                found += examining.linux_cells(self._config)
                held = await anyio.to_thread.run_sync(self.ledger.held)
                found += examining.accounts(self._machine.odd(held, view))
        except RunphiError as exc:
            found.append(Finding(Level.WARNING, self.name, exc.msg, exc.hint or ""))
        return found + examining.lost_reads(self._machine.tool.reading.lost)

    async def look_over(self) -> list[Discrepancy]:
        """Compare the ledger with the cells; see ``backends.base.Accounting``."""
        held = await anyio.to_thread.run_sync(self.ledger.held)
        if not held:
            return []
        view = await self._machine.tool.look()
        odd = self._machine.odd(held, view)
        await self._machine.reconcile(view)
        return [Discrepancy(one.owner, one.problem + (": freed" if one.stale else "")) for one in odd]

    async def plan(self, spec: GuestSpec) -> JailhousePlan:
        """Plan a cell; changes nothing."""
        view = await self._machine.tool.look()
        return await anyio.to_thread.run_sync(self._plan, spec, view)

    def _plan(self, spec: GuestSpec, view: View) -> JailhousePlan:
        held = self.ledger.held()
        stale = self._machine.stale(held, view) if view.enabled else set()
        return self.decide(spec, [part for part in held if part.owner.name not in stale], view.guests())

    async def seen(self) -> Sequence[Seen]:
        """Return the cells that the hypervisor shows."""
        return (await self._machine.tool.look()).guests()

    async def draw(self, board: str, *, svg: bool) -> str:
        """Draw a board; see ``backends.base.Draws``."""
        name = picture.which(board, self._config.board)
        if board not in ("", self._config.board):
            return await anyio.to_thread.run_sync(functools.partial(picture.draw, name, svg=svg))
        view = await self._machine.tool.look()
        held = await anyio.to_thread.run_sync(self.ledger.held)
        return await anyio.to_thread.run_sync(functools.partial(picture.draw, name, held, view, svg=svg))

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> JailhousePlan:
        """Claim what the cell needs; somebody may have taken it since it was planned, so it is planned once more."""
        assert isinstance(plan, JailhousePlan)
        view = await self._machine.enabled((await anyio.to_thread.run_sync(self.board)).root_cell)
        await self._machine.reconcile(view)
        self._machine.claiming.add(owner)  # from here on it is not stale, although there is no cell yet
        try:
            made = await self.reserve(spec, owner)
            self._machine.cells[owner] = made.cell
        finally:
            self._machine.claiming.discard(owner)
        return made

    def hear(self, log: HypervisorLog) -> None:
        """Take part in the hypervisor's console: say who may print there, and make events of its words."""
        self._machine.hear(log)

    def driver(self, plan: PartitionPlan, directory: str) -> CellDriver:
        """Return the driver of a new cell."""
        assert isinstance(plan, JailhousePlan)
        return CellDriver(self._machine, plan, directory, fresh=True)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        assert isinstance(plan, JailhousePlan)
        return msgspec.Raw(msgspec.json.encode(plan.kept()))

    def recall(self, plan: msgspec.Raw, directory: str) -> CellDriver:
        """Return the driver of an older cell."""
        return CellDriver(self._machine, recall(plan), directory, fresh=False)


def backend(config: Config, run_dir: str) -> JailhouseBackend:
    """Return the backend; called by ``backends.detect``."""
    return JailhouseBackend(config, run_dir)
