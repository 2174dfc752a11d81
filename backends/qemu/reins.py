# SPDX-License-Identifier: Apache-2.0
"""Letting one QEMU run and stand: what we ask of it is written down first, so that the watch knows what is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread

from backends.qemu import comm, making
from backends.qemu.monitor import PATIENCE
from backends.qemu.runstate import Standing
from backends.qemu.watch import LOOK_PATIENCE
from runphi_async.errors import BackendError
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.qemu.beside import Beside
    from backends.qemu.vmm import Vmm
    from backends.qemu.watch import RunWatch


class Reins:
    """Drives the VMM of one guest, the second as the first."""

    def __init__(self, vmm: Vmm, beside: Beside, watch: RunWatch) -> None:
        self._vmm = vmm
        self._beside = beside
        self._watch = watch

    async def start(self) -> None:
        """Let the guest execute its first instruction; where that fails, a second VMM may.

        :raises BackendError: neither does.
        """
        first = not self._vmm.second
        try:
            async with self._watch.turn:
                await self.begin()
        except BackendError as exc:
            if not first or not await self._watch.rescued(exc.msg):
                raise
            async with self._watch.turn:
                if self._watch.wish is Standing.BEFORE:
                    await self.begin()

    async def begin(self) -> None:
        """Pin the vCPUs, connect the guest to the container's interfaces and let it run.

        :raises BackendError: it cannot be done.
        """
        vmm = self._vmm
        if vmm.plan.pins:
            await making.pin(vmm.monitor, vmm.plan.pins)
        if b"net-done" not in vmm.wires.told():
            lines = await self._beside.connect()
            if lines is not None and vmm.plan.kind is GuestKind.LINUX:
                for line in (*lines, "net-done"):
                    vmm.tell(line)
        await self._command("cont", Standing.RUNNING)
        vmm.hold()
        if not vmm.has_spare:
            await to_thread.run_sync(vmm.forget_handed)  # a QEMU that answers has loaded them

    async def _command(self, command: str, wish: Standing) -> None:
        before = self._watch.wish
        self._watch.asked(wish)  # first: a supervisor that is killed here must find the clock running
        try:
            # one that may be given up for another is not waited for longer than its guest is
            patience = min(PATIENCE, self._watch.limit) if self._vmm.plan.again else PATIENCE
            await self._vmm.monitor.execute(command, patience=patience)
        except BackendError:
            if before is not None:
                self._watch.asked(before)
            raise

    async def suspend(self) -> None:
        """Stop all vCPUs.

        :raises BackendError: QEMU does not answer.
        """
        async with self._watch.turn:
            await self._command("stop", Standing.PAUSED)

    async def resume(self) -> None:
        """Let all vCPUs go on.

        :raises BackendError: QEMU does not answer.
        """
        async with self._watch.turn:
            await self._command("cont", Standing.RUNNING)

    async def stop(self) -> bool:
        """Press the power button."""
        await self._vmm.monitor.execute("system_powerdown", patience=LOOK_PATIENCE)
        return True

    async def send_break(self) -> None:
        """Let the guest's UART see a break."""
        await self._vmm.monitor.execute("chardev-send-break", id=comm.CONSOLE)
