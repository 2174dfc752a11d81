# SPDX-License-Identifier: Apache-2.0
"""Jailhouse as a backend: plans cells, claims what they need, makes drivers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import anyio
import msgspec

from backends.base import Capabilities, Finding, Level
from backends.jailhouse import boot, sysfs
from backends.jailhouse.driver import CellDriver, Memory
from backends.jailhouse.images import refuse_unsupported
from backends.jailhouse.machine import Machine
from backends.jailhouse.plan import JailhousePlan
from backends.jailhouse.planner import JailhousePlanner, gather
from runphi_async.errors import BackendError, RunphiError
from runphi_async.partition import claims, ranges

if TYPE_CHECKING:
    from backends.jailhouse.desk import Facts
    from backends.jailhouse.sysfs import View
    from runphi_async.config import Config, Jailhouse
    from runphi_async.partition.spec import GuestSpec, PartitionPlan

_decoder = msgspec.json.Decoder(Memory)
#: where hypervisor images lie
FIRMWARE: Final = (
    "/lib/firmware/jailhouse.bin",
    "/lib/firmware/jailhouse-intel.bin",
    "/lib/firmware/jailhouse-amd.bin",
)


class JailhouseBackend(JailhousePlanner):
    """Jailhouse on this machine; see ``backends.base.Backend``."""

    def __init__(self, config: Config, run_dir: str) -> None:
        super().__init__(config, run_dir, config.jailhouse.sysfs)
        self._machine = Machine(config.jailhouse, self.ledger)

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
        try:
            able = await self.probe()
            view = await self._machine.tool.look()
        except RunphiError as exc:
            missing = [] if any(map(os.path.exists, FIRMWARE)) else [_NO_FIRMWARE]
            return [Finding(Level.WARNING, self.name, exc.msg, exc.hint or ""), *missing]
        found = [Finding(Level.OK, self.name, able.summary), *_linux(self._config)]
        held = await anyio.to_thread.run_sync(self.ledger.held)
        found += [
            Finding(
                Level.WARNING,
                self.name,
                f"ledger: {odd.owner + ': ' if odd.owner else ''}{odd.problem}",
                "it is freed with the next cell that is made" if odd.stale else "runphi map shows who has what",
            )
            for odd in claims.check(held, view.guests())
            if not (odd.stale and odd.owner in self._machine.cells)
        ]
        return found

    def _gather(self, spec: GuestSpec) -> Facts:
        view = sysfs.look(self._sysfs, console=False)
        held = self.ledger.held()
        stale = self._machine.stale(held, view) if view.enabled else set()
        current = [part for part in held if part.owner.name not in stale]
        return gather(spec, self.board(), self._config, current, view.guests())

    async def claim(self, spec: GuestSpec, plan: PartitionPlan, owner: str) -> JailhousePlan:
        """Claim what the cell needs; somebody may have taken it since it was planned, so it is planned once more."""
        assert isinstance(plan, JailhousePlan)
        refuse_unsupported(plan.cell)
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

    def driver(self, plan: PartitionPlan, directory: str) -> CellDriver:
        """Return the driver of a new cell."""
        assert isinstance(plan, JailhousePlan)
        return CellDriver(self._machine, Memory(cell=plan.cell), directory, plan)

    def remember(self, plan: PartitionPlan) -> msgspec.Raw:
        """Return what ``recall`` needs."""
        assert isinstance(plan, JailhousePlan)
        return msgspec.Raw(msgspec.json.encode(Memory(cell=plan.cell)))

    def recall(self, plan: msgspec.Raw, directory: str) -> CellDriver:
        """Return the driver of an older cell."""
        return CellDriver(self._machine, _decoder.decode(plan), directory)


_NO_FIRMWARE: Final = Finding(
    Level.WARNING, "jailhouse", "no hypervisor image below /lib/firmware", "install jailhouse.bin there"
)


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
