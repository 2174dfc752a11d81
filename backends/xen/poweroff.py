# SPDX-License-Identifier: Apache-2.0
"""Asking a domain to power off, where its kernel listens in XenStore."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backends.xen.xl import LONG
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    import asyncio

    from backends.xen.known import KnownDomain
    from backends.xen.tools import Tools
    from backends.xen.watch import DomainWatch

log = logging.getLogger(__name__)


class PowerOff:
    """The request for one domain; see ``backends.base.Stops``."""

    def __init__(self, tools: Tools, known: KnownDomain, watch: DomainWatch) -> None:
        self._tools = tools
        self._known = known
        self._watch = watch
        self._asking: asyncio.Task[None] | None = None

    async def stop(self) -> bool:
        """Ask the guest to power off, if it has said that it can be asked."""
        store = self._watch.store
        if store is None or await store.find(f"{self._known.home}/control/feature-poweroff") != b"1":
            return False
        if self._asking is None:
            self._asking = self._watch.tasks.start(self._ask(), "request to power off")
        return True

    async def _ask(self) -> None:
        """``xl shutdown`` waits a minute for the guest's answer; the runtime's own deadline is another one."""
        xl, domid = self._tools.hypervisor.xl, self._known.domid
        try:
            await xl.must("stop the guest", "shutdown", str(domid), seconds=LONG)
        except BackendError as exc:
            log.info("domain %d: %s", domid, exc)
