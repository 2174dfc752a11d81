# SPDX-License-Identifier: Apache-2.0
"""Starting Jailhouse on this machine: load the module, look at the board, enable the hypervisor; or end it.

What is looked at, and what it means, is ``ready``, as for ``runphi doctor``. It may be done at every boot and by hand
at any time: what is done already is left alone. Stopping destroys every cell, so it is refused while there is one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import anyio

from backends.base import Finding, Level
from backends.jailhouse import machinefacts, ready
from backends.jailhouse.machine import program
from backends.jailhouse.tool import Places, Tool
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.errors import BackendError
from runphi_async.host.files import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backends.jailhouse.settings import Jailhouse


class Orders(NamedTuple):
    """What somebody wants.

    :ivar check: only look, change nothing.
    :ivar stop: disable the hypervisor and remove its module.
    :ivar module: file of the module; "": the one that modprobe finds.
    :ivar config: system configuration; "": the configured one.
    """

    check: bool = False
    stop: bool = False
    module: str = ""
    config: str = ""


class Startup:
    """One call.

    :param run_dir: where the ledger lies.
    :param tell: shows findings.
    """

    def __init__(
        self, settings: Jailhouse, asked: Orders, run_dir: str, tell: Callable[[Iterable[Finding]], None]
    ) -> None:
        self._settings = settings
        self._asked = asked
        self._run_dir = run_dir
        self._tell = tell
        self._program = program(settings)
        self._tool = Tool(Places(self._program or settings.tool, settings.sysfs), settings.deadline_seconds)

    async def run(self) -> int:
        """Do what was asked; return 1 when something is in the way.

        :raises RunphiError: it cannot be done.
        """
        if self._asked.stop:
            return await self._stop()
        machine = await self._read()
        found = ready.judge(machine)
        if not self._asked.check and not machine.view.enabled and not machine.system_path:
            found.append(_error("no system configuration is named", "name its file, or set jailhouse.system_config"))
        self._tell(found)
        if ready.hopeless(found) or self._asked.check:
            return int(ready.hopeless(found))
        for step in ready.steps(machine):
            await self._do(step, machine)
        return 0

    async def _read(self) -> ready.Machine:
        view = await self._tool.look()
        asked = self._asked
        machine = await anyio.to_thread.run_sync(
            lambda: machinefacts.read(self._settings, view, asked.config, self._program)
        )
        return machine._replace(module=True) if asked.module else machine

    async def _do(self, step: ready.Step, machine: ready.Machine) -> None:
        if step is ready.Step.LOAD:
            await self._tool.insert(self._asked.module)
            self._say("Jailhouse's kernel module was loaded")
            return
        try:
            await self._tool.enable(machine.system_path)
        except BackendError:
            view = await self._tool.look()
            if not view.enabled:
                raise
        again = await self._read()  # somebody may have been quicker, with another configuration
        wrong = [finding for finding in ready.judge(again) if finding.level is Level.ERROR]
        if wrong:
            raise BackendError(f"cannot use Jailhouse: {wrong[0].text}", wrong[0].mend)
        root = again.view.root
        self._say(f"Jailhouse was enabled; the root cell is '{root.name if root is not None else '?'}'")

    # Section: stopping

    async def _stop(self) -> int:
        view = await self._tool.look()
        ours = await anyio.to_thread.run_sync(self._ours)
        online = await anyio.to_thread.run_sync(machinefacts.online, self._settings.sysfs)
        found = ready.in_the_way(view, ours, online)
        if found:
            self._tell(found)
            return 1
        if view.enabled:
            await self._tool.disable()
            self._say("Jailhouse was disabled")
        if view.module:
            try:
                await self._tool.remove()
                self._say("its kernel module was removed")
            except BackendError as exc:
                self._say(f"its kernel module stays: {exc.msg.partition(': ')[2]}", Level.NOTE)
        if not view.module:
            self._say("Jailhouse is not loaded")
        return 0

    def _ours(self) -> dict[str, str]:
        held = Ledger(os.path.join(self._run_dir, FILE), boot_id()).held()
        return {part.owner.cell: part.owner.name for part in held}

    def _say(self, text: str, level: Level = Level.OK) -> None:
        self._tell([Finding(level, "jailhouse", text)])


def _error(text: str, mend: str) -> Finding:
    return Finding(Level.ERROR, "jailhouse", text, mend)
