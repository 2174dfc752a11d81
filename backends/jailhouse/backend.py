# SPDX-License-Identifier: Apache-2.0
"""Jailhouse as a backend: plans cells, claims what they need, makes drivers."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import anyio
import msgspec

from backends.base import Capabilities, Discrepancy, Finding, Level
from backends.jailhouse import boot, generator, machinefacts, ready
from backends.jailhouse.driver import CellDriver, Memory, memory_of
from backends.jailhouse.machine import Machine, program
from backends.jailhouse.plan import JailhousePlan
from backends.jailhouse.planner import JailhousePlanner, gather
from backends.jailhouse.reading import HANGS
from runphi_async.board import ranges
from runphi_async.errors import BackendError, RunphiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.base import HypervisorLog
    from backends.jailhouse.desk import Facts
    from backends.jailhouse.sysfs import View
    from runphi_async.board.claims import Seen
    from runphi_async.config.schema import Config, Jailhouse
    from runphi_async.partition.spec import GuestSpec, PartitionPlan

_decoder = msgspec.json.Decoder(Memory)


class JailhouseBackend(JailhousePlanner):
    """Jailhouse on this machine; see ``backends.base.Backend``."""

    def __init__(self, config: Config, run_dir: str) -> None:
        super().__init__(config, run_dir, config.jailhouse.sysfs)
        self._machine = Machine(config.jailhouse, self.ledger, run_dir)

    async def probe(self) -> Capabilities:
        """Return the board and its architecture."""
        known = await anyio.to_thread.run_sync(self.board)
        view = await self._machine.tool.enabled()
        _same_board(known.root_cell, view)
        free = ranges.listed(view.root.cpus) if view.root is not None else ""
        summary = f"Jailhouse on {known.title or known.name}, CPUs {free} with the root cell"
        return Capabilities(summary, (boot.ARCHES[known.arch],))

    async def examine(self) -> list[Finding]:
        """Look at board file, tool, module and hypervisor, and whether the ledger agrees with the cells."""
        if not self._config.board:
            return [
                Finding(Level.NOTE, self.name, "no board is configured", "set jailhouse.board to use Jailhouse here")
            ]
        found: list[Finding] = []
        try:
            view = await self._machine.tool.look()
            machine = await anyio.to_thread.run_sync(
                functools.partial(machinefacts.read, self._config, view, program=program(self._config))
            )
            found += map(_bearable, ready.judge(machine))
            if view.enabled:
                found += [Finding(Level.OK, self.name, (await self.probe()).summary), *_linux(self._config)]
                found += await self._accounts(view)
        except RunphiError as exc:
            found.append(Finding(Level.WARNING, self.name, exc.msg, exc.hint or ""))
        if lost := self._machine.tool.reading.lost:
            text = f"{lost} read{'s' if lost > 1 else ''} of sysfs never came back"
            found.append(Finding(Level.WARNING, self.name, text, HANGS))
        return found

    async def _accounts(self, view: View) -> list[Finding]:
        held = await anyio.to_thread.run_sync(self.ledger.held)
        return [
            Finding(
                Level.WARNING,
                self.name,
                f"ledger: {odd.owner + ': ' if odd.owner else ''}{odd.problem}",
                "it is freed with the next cell that is made" if odd.stale else "runphi map shows who has what",
            )
            for odd in self._machine.odd(held, view)
        ]

    async def look_over(self) -> list[Discrepancy]:
        """Compare the ledger with the cells; see ``backends.base.Accounting``."""
        view = await self._machine.tool.look()
        held = await anyio.to_thread.run_sync(self.ledger.held)
        odd = self._machine.odd(held, view)
        await self._machine.reconcile(view)
        return [Discrepancy(one.owner, one.problem + (": freed" if one.stale else "")) for one in odd]

    async def plan(self, spec: GuestSpec) -> JailhousePlan:
        """Plan a cell; changes nothing."""
        view = await self._machine.tool.look()
        return generator.plan(spec, await anyio.to_thread.run_sync(self._facts, spec, view))

    async def look(self) -> View:
        """Return what sysfs shows."""
        return await self._machine.tool.look()

    async def seen(self) -> Sequence[Seen]:
        """Return the cells that the hypervisor shows."""
        return (await self.look()).guests()

    def _facts(self, spec: GuestSpec, view: View) -> Facts:
        held = self.ledger.held()
        stale = self._machine.stale(held, view) if view.enabled else set()
        current = [part for part in held if part.owner.name not in stale]
        return gather(spec, self.board(), self._config, current, view.guests())

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> JailhousePlan:
        """Claim what the cell needs; somebody may have taken it since it was planned, so it is planned once more."""
        assert isinstance(plan, JailhousePlan)
        view = await self._machine.tool.enabled()
        _same_board((await anyio.to_thread.run_sync(self.board)).root_cell, view)
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
        return CellDriver(self._machine, memory_of(plan), directory, plan)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        assert isinstance(plan, JailhousePlan)
        return msgspec.Raw(msgspec.json.encode(memory_of(plan)))

    def recall(self, plan: msgspec.Raw, directory: str) -> CellDriver:
        """Return the driver of an older cell."""
        return CellDriver(self._machine, _decoder.decode(plan), directory)


def _bearable(finding: Finding) -> Finding:
    """A machine that cannot run cells is no sick machine."""
    return finding._replace(level=Level.WARNING) if finding.level is Level.ERROR else finding


def _linux(config: Jailhouse) -> list[Finding]:
    """Say what Linux cells lack; a board of bare-metal cells needs none of it."""
    prepare = "run bin/prepare-guest --cells, or set jailhouse."
    files = (
        (config.loader, "Jailhouse's linux-loader.bin", "install Jailhouse's tools, or set jailhouse.loader"),
        (config.kernel, "the kernel", prepare + "kernel"),
        (config.initrd, "the RAM disk with our init", prepare + "initrd"),
    )
    return [
        Finding(Level.NOTE, "jailhouse", f"no Linux cells: {what} is missing at {path}", hint)
        for path, what, hint in files
        if not os.path.exists(path)
    ]


def _same_board(root_cell: str, view: View) -> None:
    if view.root is not None and view.root.name != root_cell:
        raise BackendError(
            f"cannot use Jailhouse: the root cell here is '{view.root.name}', and the board file is for '{root_cell}'",
            "set jailhouse.board to the file of this board, or make one: runphi board from-sysconfig FILE",
        )


def backend(config: Config, run_dir: str) -> JailhouseBackend:
    """Return the backend; called by ``backends.detect``."""
    return JailhouseBackend(config, run_dir)
