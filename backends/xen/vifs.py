# SPDX-License-Identifier: Apache-2.0
"""The back ends of one domain's network cards, moved into the network namespace of its container.

The kernel of dom0 makes one, ``vif<domid>.<number>``, when xl makes the domain, and removes it with the domain,
wherever it is by then. The hotplug script that xl wants to run does nothing: what such a script is for is done here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from anyio import to_thread

from backends.guest.nics import Nics
from runphi_async.errors import BackendError
from runphi_async.host import nic
from runphi_async.host.netlink import Netlink
from runphi_async.host.nic import Tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.xen.xenstore import XenStore

#: Seconds until dom0's kernel must have made a back end; it does so while xl waits for something else.
APPEARS: Final = 10.0
_PAUSE: Final = 0.02


class Vifs(Nics):
    """The back ends of one domain's network cards; gone when the domain is."""

    async def plug(self, store: XenStore, domid: int, macs: tuple[str, ...]) -> None:
        """Do what xl expects of a hotplug script.

        :raises BackendError: a back end is not there, or cannot be moved.
        """
        await to_thread.run_sync(self.take, domid, macs)
        for number in range(len(macs)):
            await store.write(status_path(domid, number), b"connected")

    def take(self, domid: int, macs: tuple[str, ...]) -> None:
        """Move the back ends of a new domain into the namespace.

        :raises BackendError: one is not there, or cannot be moved.
        """
        self._made(self._use(lambda netlink: list(self._move(netlink, domid, macs))))

    def _move(self, inside: Netlink, domid: int, macs: tuple[str, ...]) -> Iterator[Tap]:
        outside = Netlink()
        try:
            for number, mac in enumerate(macs):
                name = f"{nic.TAP_PREFIX}{domid}.{number}"
                outside.move(_find(outside, f"vif{domid}.{number}"), self._netns, name)
                index = next(index for index, known in nic.taps(inside).items() if known == name)
                nic.quieten(name)
                yield Tap(name, index, mac)
        finally:
            outside.close()


def _find(netlink: Netlink, name: str) -> int:
    deadline = time.monotonic() + APPEARS
    while time.monotonic() < deadline:
        index = netlink.index(name)
        if index is not None:
            return index
        time.sleep(_PAUSE)
    raise BackendError(
        f"cannot connect the guest to its network: dom0's kernel made no {name}", "look at dom0's kernel log"
    )


def status_path(domid: int, number: int) -> str:
    """Return the node by which a hotplug script says that it is done."""
    return f"/local/domain/0/backend/vif/{domid}/{number}/hotplug-status"
