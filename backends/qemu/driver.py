# SPDX-License-Identifier: Apache-2.0
"""The life of one QEMU guest; each part of it has a module of its own.

``vmm`` is the process and what is heard of it, ``beside`` what lies around it, ``reins`` lets it run and stand,
``watch`` looks after it, ``second`` replaces it, ``adopting`` takes it over, ``settling`` says how it ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backends.base import Abilities, Evidence, Inheritance, Told, Verdict
from backends.qemu import adopting, settling
from backends.qemu.beside import Beside
from backends.qemu.reins import Reins
from backends.qemu.second import SecondTry, unblamed
from backends.qemu.signals import Signals
from backends.qemu.vmm import Vmm
from backends.qemu.watch import RunWatch
from runphi_async.partition import channels
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.qemu.plan import QemuPlan
    from backends.qemu.settings import Qemu
    from consoles.sources.base import Source


class QemuDriver:
    """Drives one QEMU process; see ``backends.base.Driver``.

    :param blame: told why KVM failed a guest which then ran in software.
    """

    def __init__(
        self,
        plan: QemuPlan,
        directory: str,
        config: Qemu,
        blame: Callable[[str], Awaitable[None]] = unblamed,
    ) -> None:
        self.command = plan.argv
        self.again = plan.again
        self.overhead_bytes = int(config.overhead_bytes)
        self._plan = plan
        self._directory = directory
        self._patience = config.stop_seconds
        self._vmm = vmm = Vmm(plan, directory)
        self._beside = Beside(plan, directory, config.virtiofsd)
        second = SecondTry(vmm, self._beside, lambda: self._reins.begin(), blame)
        self._watch = vmm.watcher = RunWatch(vmm, second, config.init_seconds)
        self._reins = Reins(vmm, self._beside, self._watch)
        self._signals = Signals(vmm.init, lambda: vmm.heard, lambda: self._watch.clock.at(time.monotonic()))

    @property
    def abilities(self) -> Abilities:
        """A Linux guest has our init, a kernel of the container's a power button; a virtio port has no breaks."""
        vmm, reins = self._vmm, self._reins
        match self._plan.kind:
            case GuestKind.LINUX:
                able = Abilities(signals=self._signals, resizes=vmm.init, takes_eof=vmm.init, hears_bell=vmm)
            case GuestKind.KERNEL:
                able = Abilities(stops=reins, breaks=reins, hears_bell=vmm)
            case GuestKind.INMATE:
                able = Abilities(breaks=reins, hears_bell=vmm)
        return able._replace(patience=self._patience)

    # Section: making it

    async def create(self) -> None:
        """Make FIFOs, files, the QMP socket and the file server."""
        await self._beside.make(self._vmm)

    def inheritance(self) -> Inheritance:
        """Return the event and control FIFOs and the QMP socket."""
        return self._beside.inheritance(self._vmm)

    @property
    def network(self) -> str:
        """Path of the namespace with the guest's taps."""
        return self._beside.network

    def console(self) -> Source | None:
        """Return the channel that is the console; None: QEMU's chardev ``pipe`` is the FIFO pair."""
        channel = self._plan.console_channel
        return channels.source(channel, self._directory) if channel is not None else None

    def helpers(self) -> list[int]:
        """Return the file server's pid."""
        return self._beside.helpers

    # Section: watching it

    async def watch(self, told: Told) -> None:
        """Listen on every channel; the QMP connection is made in the background."""
        self._vmm.ending.attend(told)
        self._beside.handed_over()
        self._vmm.wires.listen()
        self._vmm.monitor.connect_soon()
        self._watch.start(self._vmm.tasks)

    async def adopt(self, told: Told) -> bool | None:
        """Open everything again; ask QEMU whether the guest had been started."""
        return await adopting.adopt(self._vmm, self._beside, self._watch, told)

    # Section: driving it

    async def start(self) -> None:
        """Pin the vCPUs, connect the guest to the container's interfaces and let it run."""
        await self._reins.start()

    async def suspend(self) -> None:
        """Stop all vCPUs."""
        await self._reins.suspend()

    async def resume(self) -> None:
        """Let all vCPUs go on."""
        await self._reins.resume()

    def end(self) -> None:
        """Kill QEMU; one that the stub is just about to start is killed when the bell rings."""
        self._vmm.destroy()

    # Section: its end

    def settle(self, evidence: Evidence) -> Verdict:
        """Weigh QEMU's status, its events, the guest's own words and what the host knows."""
        return settling.settle(self._vmm, evidence)

    async def release(self) -> None:
        """Close everything."""
        self._vmm.ending.forget()
        await self._watch.close()
        await self._vmm.let_go()
        await self._beside.let_go()

    async def bury(self) -> None:
        """QEMU and its file server were in the container's cgroup."""
        await self.release()
