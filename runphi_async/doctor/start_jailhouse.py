# SPDX-License-Identifier: Apache-2.0
"""`bin/start_jailhouse`: load the module, look at the board, enable the hypervisor, and say in words what is wrong.

What is looked at, and what it means, is ``backends.jailhouse.ready``, as for ``runphi doctor``. It may be called at
every boot and by hand at any time: what is done already is left alone. Stopping destroys every cell, so it is refused
while there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import anyio

from backends.base import Finding, Level
from backends.configured import load
from backends.jailhouse import machinefacts, ready
from backends.jailhouse.machine import program
from backends.jailhouse.settings import Jailhouse
from backends.jailhouse.tool import Places, Tool
from runphi_async import wire
from runphi_async.aio import threads
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.doctor.checkup import as_text
from runphi_async.errors import BackendError, RunphiError
from runphi_async.host.files import boot_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.config.schema import Config


def main(argv: Sequence[str]) -> int:
    """Start Jailhouse, look, or stop it; the status is 1 when something is in the way."""
    given = _parser().parse_args(argv)
    try:
        config = load(os.environ.get("RUNPHI_CONFIG"))
        status = anyio.run(_Start(config, given).run)
    except RunphiError as exc:
        sys.stderr.write(f"start_jailhouse: {exc}\n")
        status = 1
    return threads.let_go(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="start_jailhouse",
        description="Load Jailhouse's module, check the board, enable the hypervisor; do nothing twice.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only look, change nothing")
    what.add_argument("--stop", action="store_true", help="disable Jailhouse and remove its module; refused with cells")
    parser.add_argument("--module", metavar="FILE", default="", help="module to load (default: modprobe jailhouse)")
    parser.add_argument(
        "config", metavar="SYSCONFIG", nargs="?", default="",
        help="the board's system configuration (default: jailhouse.system_config of runphi's configuration)",
    )  # fmt: skip
    return parser


class _Start:
    """One call."""

    def __init__(self, config: Config, given: argparse.Namespace) -> None:
        self._config = config
        self._given = given
        settings = config.of(Jailhouse)
        self._program = program(settings)
        self._tool = Tool(Places(self._program or settings.tool, settings.sysfs), settings.deadline_seconds)

    async def run(self) -> int:
        """Do what was asked."""
        if self._given.stop:
            return await self._stop()
        machine = await self._read()
        found = ready.judge(machine)
        if not self._given.check and not machine.view.enabled and not machine.system_path:
            found.append(_error("no system configuration is named", "name its file, or set jailhouse.system_config"))
        sys.stdout.write(as_text(found))
        if ready.hopeless(found) or self._given.check:
            return int(ready.hopeless(found))
        for step in ready.steps(machine):
            await self._do(step, machine)
        return 0

    async def _read(self) -> ready.Machine:
        view = await self._tool.look()
        given = self._given
        machine = await anyio.to_thread.run_sync(
            lambda: machinefacts.read(self._config.of(Jailhouse), view, given.config, self._program)
        )
        return machine._replace(module=True) if given.module else machine

    async def _do(self, step: ready.Step, machine: ready.Machine) -> None:
        if step is ready.Step.LOAD:
            await self._tool.insert(self._given.module)
            _say("Jailhouse's kernel module was loaded")
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
        _say(f"Jailhouse was enabled; the root cell is '{root.name if root is not None else '?'}'")

    # Section: stopping

    async def _stop(self) -> int:
        view = await self._tool.look()
        ours = await anyio.to_thread.run_sync(self._ours)
        online = await anyio.to_thread.run_sync(machinefacts.online, self._config.of(Jailhouse).sysfs)
        found = ready.in_the_way(view, ours, online)
        if found:
            sys.stdout.write(as_text(found))
            return 1
        if view.enabled:
            await self._tool.disable()
            _say("Jailhouse was disabled")
        if view.module:
            try:
                await self._tool.remove()
                _say("its kernel module was removed")
            except BackendError as exc:
                _say(f"its kernel module stays: {exc.msg.partition(': ')[2]}", Level.NOTE)
        if not view.module:
            _say("Jailhouse is not loaded")
        return 0

    def _ours(self) -> dict[str, str]:
        run_dir = os.environ.get("RUNPHI_RUN_DIR") or wire.DEFAULT_RUN_DIR
        held = Ledger(os.path.join(run_dir, FILE), boot_id()).held()
        return {part.owner.cell: part.owner.name for part in held}


def _error(text: str, mend: str) -> Finding:
    return Finding(Level.ERROR, "jailhouse", text, mend)


def _say(text: str, level: Level = Level.OK) -> None:
    sys.stdout.write(as_text([Finding(level, "jailhouse", text)]))
