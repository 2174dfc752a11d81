# SPDX-License-Identifier: Apache-2.0
"""The second try of one guest: when it is safe, why it is made, and its steps; ``again`` keeps them in the record."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

import msgspec

from backends.base import Evidence
from backends.qemu import again, runstate, words
from backends.qemu.again import Again
from backends.qemu.runstate import Standing
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.base import Told, Verdict
    from backends.qemu.heard import Heard
    from backends.qemu.memory import Memory
    from backends.qemu.monitor import Monitor
    from backends.qemu.remains import Remains
    from backends.qemu.taps import Taps
    from backends.qemu.virtiofs import Server
    from backends.qemu.wires import Wires
    from runphi_async.host.processes import Process

log = logging.getLogger(__name__)


async def unblamed(reason: str) -> None:
    """Nobody keeps accounts of KVM's failures."""


class Vmm(Protocol):
    """What is known of the VMM of a guest, be it the first or the second, to those who look after it."""

    name: str
    #: the second VMM is up to the stub, or runs
    second: bool
    monitor: Monitor
    remains: Remains

    @property
    def told(self) -> Told | None:
        """Who hears of the guest; None when its end was told."""
        ...

    @property
    def heard(self) -> Heard:
        """What was heard of it."""
        ...

    @property
    def vmm_ended(self) -> bool:
        """Whether it has ended and its status is known."""
        ...


class Driven(Vmm, Protocol):
    """The driver of the guest, as its second try needs it."""

    directory: str
    memory: Memory
    wires: Wires
    share: Server | None
    nics: Taps | None

    @property
    def destroyed(self) -> bool:
        """Whether the guest is to end."""
        ...

    def verdict(self, evidence: Evidence) -> Verdict:
        """Weigh what is known."""
        ...

    def hold_vmm(self) -> Process | None:
        """Return the VMM's process, None where it is gone or not there yet."""
        ...

    def renew(self) -> None:
        """A second VMM takes the place of the first: let go of that."""
        ...

    async def new_monitor(self) -> None:
        """Connect to the second VMM from now on."""
        ...

    async def begun(self) -> bool:
        """Wait for the VMM that is up to the stub; False: the guest is over, or to be."""
        ...

    async def begin(self) -> None:
        """Let the guest run."""
        ...


class SecondTry:
    """What the watch over a guest carries out when the first VMM has failed it.

    :param blame: told why KVM failed a guest which then ran in software.
    """

    def __init__(self, driver: Driven, blame: Callable[[str], Awaitable[None]] = unblamed) -> None:
        self._driver = driver
        self._tell_blame = blame

    @property
    def is_safe(self) -> bool:
        """Whether nothing of the container has run, nobody wants its end, and there was no second try yet."""
        driver = self._driver
        return (
            driver.memory.again
            and not driver.second
            and not driver.destroyed
            and not driver.heard.reached
            and driver.told is not None
        )

    def reason(self) -> str:
        """Say why the first VMM ended, or is about to, "" where somebody ended it."""
        driver = self._driver
        if not runstate.is_kvms(stub.read_status(driver.directory), driver.heard.events):
            return ""
        return driver.verdict(Evidence(None, 0, driver.heard.started)).reason

    def decided(self) -> Again | None:
        """Return what was decided."""
        return again.load(self._driver.directory)

    def decide(self, reason: str, started: bool) -> bool:
        """Decide for a second try, where one is safe, and end the first VMM, if it has not by itself."""
        driver = self._driver
        if not reason or not self.is_safe:
            return False
        if self.decided() is None:
            whole = reason + words.of_kernel(driver.remains.kernel_lines())
            again.save(driver.directory, Again(whole, started or driver.heard.started))
            log.warning("%s: %s: starting it once more on TCG", driver.name, whole)
        if not driver.vmm_ended and (vmm := driver.hold_vmm()) is not None:
            vmm.send(9)
        return True

    async def hand_over(self, decided: Again) -> None:
        """Let the stub start the second VMM.

        :raises BackendError: the file server cannot be started.
        """
        driver = self._driver
        ends = driver.wires.ends()
        share = driver.memory.share
        if driver.share is not None and share is not None:
            await asyncio.to_thread(driver.share.stop)
            await asyncio.to_thread(driver.share.start, share.path, share.binds)
            if driver.told is not None:
                await driver.told.enrol(driver.share.pids())
        if driver.destroyed:
            return
        # From here to the stub's word nobody else has a turn.
        driver.wires.rewind()
        again.save(driver.directory, msgspec.structs.replace(decided, events_from=ends[0], control_from=ends[1]))
        driver.wires.listen_anew(ends)
        driver.renew()
        again.hand_over(driver.directory)
        await driver.new_monitor()
        if driver.told is not None:
            driver.told.again(decided.reason)

    async def take_up(self, decided: Again) -> None:
        """Wait for the second VMM, and bring it to where the first one stood.

        :raises BackendError: it does not answer.
        """
        driver = self._driver
        if not await driver.begun():
            return
        driver.monitor.connect_soon()
        if driver.nics is not None:
            await asyncio.to_thread(driver.nics.take_up, stub.read_pid(driver.directory))
        state = runstate.status_of(await driver.monitor.execute("query-status"))
        if runstate.standing(state) is Standing.BEFORE and decided.started:
            await driver.begin()

    async def blame(self) -> None:
        """The guest's kernel has come to our init: if only in software, KVM is to blame."""
        decided = self.decided() if self._driver.second else None
        if decided is not None and self._driver.memory.vouched:
            await self._tell_blame(decided.reason)
