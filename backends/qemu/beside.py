# SPDX-License-Identifier: Apache-2.0
"""What a guest has beside its VMM: files, memory of channels, taps, the file server, the socket that QEMU inherits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread

from backends.base import Inheritance
from backends.files import write_files
from backends.guest import handed
from backends.qemu import making, virtiofs
from backends.qemu.taps import Taps
from consoles.sharedmem import shmfiles

if TYPE_CHECKING:
    import socket

    from backends.qemu.plan import QemuPlan
    from backends.qemu.vmm import Vmm


class Beside:
    """The belongings of one guest.

    :param virtiofsd: name or path of the file server.
    """

    def __init__(self, plan: QemuPlan, directory: str, virtiofsd: str) -> None:
        self._plan = plan
        self._directory = directory
        self._share = virtiofs.Server(virtiofsd, directory) if plan.share is not None else None
        self._nics = Taps(directory) if plan.macs else None
        self._listener: socket.socket | None = None

    async def make(self, vmm: Vmm) -> None:
        """Make FIFOs, files, the QMP socket, the taps and the file server.

        :raises BackendError: one cannot be made.
        """
        plan = self._plan
        await to_thread.run_sync(write_files, self._directory, plan.files)
        await to_thread.run_sync(handed.hand_over, plan.handed, self._directory, plan.memory_bytes)
        vmm.wires.make()
        await to_thread.run_sync(making.make_channels, self._directory, plan.channels)
        self._listener = vmm.monitor.listen()
        if self._nics is not None:
            await to_thread.run_sync(self._nics.make, plan.netns or "", plan.macs)
        await self._serve()

    async def _serve(self) -> None:
        share = self._plan.share
        if self._share is not None and share is not None:
            await to_thread.run_sync(self._share.start, share.path, share.binds)

    def inheritance(self, vmm: Vmm) -> Inheritance:
        """Return the event and control FIFOs, the QMP socket and the taps."""
        assert self._listener is not None
        taps = self._nics.fds if self._nics is not None else ()
        return Inheritance(vmm.wires.kept, (self._listener.fileno(), *taps))

    def handed_over(self) -> None:
        """The stub has what it inherits: let go of it here."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._nics is not None:
            self._nics.handed_over()

    @property
    def network(self) -> str:
        """Path of the namespace with the guest's taps."""
        return self._nics.network if self._nics is not None else ""

    @property
    def helpers(self) -> list[int]:
        """The file server's pid."""
        return self._share.pids() if self._share is not None else []

    async def take_up(self, vmm: int | None) -> None:
        """Find the taps of a VMM that runs already."""
        if self._nics is not None:
            await to_thread.run_sync(self._nics.take_up, vmm)

    async def connect(self) -> list[str] | None:
        """Put the guest in the place of the container's interfaces; None: it has none.

        :returns: what the guest's init is to be told of them.
        :raises BackendError: it cannot be done.
        """
        return list(await to_thread.run_sync(self._nics.connect)) if self._nics is not None else None

    async def serve_again(self) -> list[int]:
        """Start the file server for a second VMM: the first one's has ended with it; return what is to be enrolled.

        :raises BackendError: it cannot be started.
        """
        if self._share is not None:
            await to_thread.run_sync(self._share.stop)
            await self._serve()
        return self.helpers

    async def let_go(self) -> None:
        """The file server ends with QEMU, or is killed. Channels' memory lives while it is mapped."""
        shmfiles.unlink(self._directory)
        if self._listener is not None:
            self._listener.close()
        if self._share is not None:
            await to_thread.run_sync(self._share.stop)
        if self._nics is not None:
            await to_thread.run_sync(_remove, self._nics)


def _remove(nics: Taps) -> None:
    nics.take_up(None)
    nics.remove()
