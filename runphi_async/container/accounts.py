# SPDX-License-Identifier: Apache-2.0
"""Whether what containers have claimed is what the hypervisor shows: asked once, when all were taken over."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

import anyio

from backends import detect
from backends.base import Accounting
from runphi_async.board.ledger import FILE, Ledger
from runphi_async.errors import RunphiError
from runphi_async.events import LedgerProblem
from runphi_async.host.files import boot_id

if TYPE_CHECKING:
    from runphi_async.container.registry import Supervisor

log = logging.getLogger(__name__)

#: The backend that keeps the ledger of the run directory: of the others' hypervisors each has an allocator.
LEDGERED: Final = "jailhouse"


async def look_over(supervisor: Supervisor) -> None:
    """Compare what containers have claimed with what the hypervisor shows, where anything was ever claimed.

    Claims that stand for nothing are freed; the rest is said, and ``runphi doctor`` goes on saying it.
    """
    try:
        if not await anyio.to_thread.run_sync(Ledger(os.path.join(supervisor.store.run_dir, FILE), boot_id()).held):
            return
        backend = await detect.backend(LEDGERED, supervisor.detection)
        found = await backend.look_over() if isinstance(backend, Accounting) else []
    except RunphiError as exc:
        log.error("ledger: cannot compare it with the hypervisor: %s", exc)
        return
    for odd in found:
        log.warning("ledger: %s: %s", odd.name or "nobody", odd.text)
        container = supervisor.guests.get(odd.name)
        if container is not None:
            container.note(LedgerProblem(problem=odd.text))
