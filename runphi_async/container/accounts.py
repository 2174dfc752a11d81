# SPDX-License-Identifier: Apache-2.0
"""Whether what containers have claimed is what the hypervisor shows: asked once, when all were taken over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backends import detect
from runphi_async.errors import RunphiError
from runphi_async.events import LedgerProblem

if TYPE_CHECKING:
    from runphi_async.container.registry import Supervisor

log = logging.getLogger(__name__)


async def look_over(supervisor: Supervisor) -> None:
    """Compare what containers have claimed with what the hypervisor shows, where anything was ever claimed.

    Claims that stand for nothing are freed; the rest is said, and ``runphi doctor`` goes on saying it.
    """
    try:
        found = await detect.look_over(supervisor.detection)
    except RunphiError as exc:
        log.error("ledger: cannot compare it with the hypervisor: %s", exc)
        return
    for odd in found:
        log.warning("ledger: %s: %s", odd.name or "nobody", odd.text)
        container = supervisor.guests.get(odd.name)
        if container is not None:
            container.note(LedgerProblem(problem=odd.text))
