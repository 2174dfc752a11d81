# SPDX-License-Identifier: Apache-2.0
"""The second try of one guest: when it is safe, why it is made, and its steps; ``again`` keeps them in the record."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from backends.base import Evidence
from backends.qemu import again, runstate, settling, words
from backends.qemu.again import Again
from backends.qemu.runstate import Standing
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.qemu.beside import Beside
    from backends.qemu.vmm import Vmm

log = logging.getLogger(__name__)


async def unblamed(reason: str) -> None:
    """Nobody keeps accounts of KVM's failures."""


class SecondTry:
    """What the watch over a guest carries out when the first VMM has failed it.

    :param begin: lets the guest run.
    :param blame: told why KVM failed a guest which then ran in software.
    """

    def __init__(
        self,
        vmm: Vmm,
        beside: Beside,
        begin: Callable[[], Awaitable[None]],
        blame: Callable[[str], Awaitable[None]] = unblamed,
    ) -> None:
        self._vmm = vmm
        self._beside = beside
        self._begin = begin
        self._tell_blame = blame

    @property
    def is_safe(self) -> bool:
        """Whether nothing of the container has run, nobody wants its end, and there was no second try yet."""
        vmm = self._vmm
        return vmm.has_spare and not vmm.is_doomed and not vmm.heard.reached and vmm.told is not None

    def reason(self) -> str:
        """Say why the first VMM ended, or is about to, "" where somebody ended it."""
        vmm = self._vmm
        if not runstate.is_kvms(stub.read_status(vmm.directory), vmm.heard.events):
            return ""
        return settling.weigh(vmm, Evidence(None, 0, vmm.heard.started)).reason

    def decided(self) -> Again | None:
        """Return what was decided."""
        return again.load(self._vmm.directory)

    def decide(self, reason: str, started: bool) -> bool:
        """Decide for a second try, where one is safe, and end the first VMM, if it has not by itself."""
        vmm = self._vmm
        if not reason or not self.is_safe:
            return False
        if self.decided() is None:
            whole = reason + words.of_kernel(vmm.remains.kernel_lines())
            again.save(vmm.directory, Again(whole, started or vmm.heard.started))
            log.warning("%s: %s: starting it once more on TCG", vmm.name, whole)
        if not vmm.ended and (process := vmm.hold()) is not None:
            process.send(9)
        return True

    async def hand_over(self, decided: Again) -> None:
        """Let the stub start the second VMM.

        :raises BackendError: the file server cannot be started.
        """
        vmm = self._vmm
        ends = vmm.wires.ends()
        helpers = await self._beside.serve_again()
        if helpers and vmm.told is not None:
            await vmm.told.enrol(helpers)
        if vmm.is_doomed:
            return
        # From here to the stub's word nobody else has a turn.
        vmm.wires.rewind()
        again.save(vmm.directory, msgspec.structs.replace(decided, events_from=ends[0], control_from=ends[1]))
        vmm.wires.listen_anew(ends)
        vmm.renew()
        again.hand_over(vmm.directory)
        await vmm.new_monitor()
        if vmm.told is not None:
            vmm.told.again(decided.reason)

    async def take_up(self, decided: Again) -> None:
        """Wait for the second VMM, and bring it to where the first one stood.

        :raises BackendError: it does not answer.
        """
        vmm = self._vmm
        if not await vmm.begun():
            return
        vmm.monitor.connect_soon()
        await self._beside.take_up(stub.read_pid(vmm.directory))
        state = runstate.status_of(await vmm.monitor.execute("query-status"))
        if runstate.standing(state) is Standing.BEFORE and decided.started:
            await self._begin()

    async def blame(self) -> None:
        """The guest's kernel has come to our init: if only in software, KVM is to blame."""
        decided = self.decided() if self._vmm.second else None
        if decided is not None and self._vmm.plan.vouched:
            await self._tell_blame(decided.reason)
