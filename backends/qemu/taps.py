# SPDX-License-Identifier: Apache-2.0
"""The taps of one QEMU guest: made before QEMU is, which inherits their descriptors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backends.guest.nics import HINT, Nics
from runphi_async.errors import BackendError
from runphi_async.host import namespaces, nic
from runphi_async.host.nic import Tap

if TYPE_CHECKING:
    from runphi_async.host.netlink import Netlink


class Taps(Nics):
    """The taps of one guest; gone when QEMU and the init stub are."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._fds: list[int] = []

    def make(self, netns: str, macs: tuple[str, ...]) -> None:
        """Open or make the namespace and make a tap for each interface of the guest.

        :raises BackendError: it cannot be done.
        """
        self.join(netns)
        self._made(self._use(lambda netlink: [self._make_tap(netlink, mac) for mac in macs]))

    def _make_tap(self, netlink: Netlink, mac: str) -> Tap:
        try:
            fd, name = namespaces.in_network(self._netns, nic.open_tap)
        except BackendError as exc:
            raise BackendError(exc.msg, HINT) from exc
        self._fds.append(fd)
        index = next(index for index, known in nic.taps(netlink).items() if known == name)
        return Tap(name, index, mac)

    @property
    def fds(self) -> tuple[int, ...]:
        """The taps' descriptors, until :meth:`handed_over`."""
        return tuple(self._fds)

    def handed_over(self) -> None:
        """QEMU has the taps: let go of them here."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def remove(self) -> None:
        """Undo what is left outside the record; never fails."""
        self.handed_over()
        super().remove()
