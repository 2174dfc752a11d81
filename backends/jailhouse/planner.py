# SPDX-License-Identifier: Apache-2.0
"""Planning cells on this machine: the board, the ledger, the cells that are there, and the decision."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import msgspec

from backends.jailhouse import gathering, generator
from backends.jailhouse.gathering import SYSFS
from backends.jailhouse.settings import Jailhouse
from runphi_async.board import iomem
from runphi_async.board.claims import Seen, strangers
from runphi_async.board.ledger import FILE, Decision, Ledger
from runphi_async.errors import PlanError
from runphi_async.host.files import boot_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.jailhouse.plan import JailhousePlan
    from runphi_async.board.board import Board
    from runphi_async.board.claims import Held
    from runphi_async.config.schema import Config
    from runphi_async.partition.spec import GuestSpec


class JailhousePlanner:
    """Plans cells for the configured board."""

    name = "jailhouse"

    def __init__(self, config: Config, run_dir: str, sysfs: str = SYSFS, iomem_path: str | None = None) -> None:
        self._config = config.of(Jailhouse)
        self._sysfs = sysfs
        # a sysfs tree that is not the machine's own is no word about the machine
        self._iomem = iomem.PATH if iomem_path is None and sysfs == SYSFS else iomem_path
        self.ledger = Ledger(os.path.join(run_dir, FILE), boot_id())

    async def plan(self, spec: GuestSpec) -> JailhousePlan:
        """Plan a cell; changes nothing."""
        seen = await self.seen()
        return await anyio.to_thread.run_sync(lambda: self.decide(spec, self.ledger.held(), seen))

    async def reserve(self, spec: GuestSpec, owner: str) -> JailhousePlan:
        """Plan a cell and claim what it needs, in one step: nobody can take it in between.

        :param owner: the container's record, which ``ledger.free`` wants at its end.
        """
        return await anyio.to_thread.run_sync(self._reserve, spec, owner, await self.seen())

    def decide(self, spec: GuestSpec, held: Sequence[Held], seen: Sequence[Seen]) -> JailhousePlan:
        """Plan a cell beside all that is given away (blocks)."""
        return generator.plan(spec, gathering.gather(spec, self.board(), self._config, held, seen))

    def _reserve(self, spec: GuestSpec, owner: str, seen: Sequence[Seen]) -> JailhousePlan:
        facts = gathering.gather(spec, self.board(), self._config)

        def decide(held: tuple[Held, ...]) -> Decision[JailhousePlan]:
            everything = (*held, *strangers(held, seen))
            plan = generator.plan(spec, msgspec.structs.replace(facts, held=everything))
            return Decision(plan, plan.cell.name, plan.claims)

        return self.ledger.reserve(owner, decide)

    def board(self) -> Board:
        """Return the configured board.

        :raises PlanError: the system that runs on it uses memory that the board file lends.
        """
        found = gathering.board(self._config)
        if self._iomem is not None and os.path.isdir(self._sysfs):  # else this machine is not the board
            for finding in iomem.findings(found, gathering.system_ram(self._iomem)):
                raise PlanError(f"cannot use board '{found.name}': {finding.problem}", finding.hint)
        return found

    async def seen(self) -> Sequence[Seen]:
        """Return the cells that the hypervisor shows."""
        return await anyio.to_thread.run_sync(self.cells)

    def cells(self) -> list[Seen]:
        """Return the cells that the hypervisor shows (blocks)."""
        return gathering.cells(self._sysfs)
