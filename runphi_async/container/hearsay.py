# SPDX-License-Identifier: Apache-2.0
"""What a guest's driver tells beside its end, and what becomes of it: status, record, event, log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from runphi_async.container.memoryrank import rank_for_memory
from runphi_async.errors import CgroupError, SpecError
from runphi_async.events import AccelFallback, Pause, Resume
from runphi_async.host.processes import rank_of
from runphi_async.record.lifecycle import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.container.recorded import Recorded

log = logging.getLogger(__name__)


def paused(container: Recorded, by: str) -> None:
    """Somebody made the guest stand still: `resume` lets it go on."""
    _stands(container, Event.PAUSED, Pause(by=by))


def resumed(container: Recorded, by: str) -> None:
    """Somebody let the guest go on."""
    _stands(container, Event.RESUMED, Resume(by=by))


def _stands(container: Recorded, event: Event, told: Pause | Resume) -> None:
    if container.lifecycle.tell(event) is None:
        return  # nothing new
    container.keep()
    container.note(told)
    log.warning("%s: %s by %s", container.record.name, event, told.by)


def again(container: Recorded, reason: str) -> None:
    """The guest was started a second time, without KVM."""
    if container.record.fallback is None:
        container.record.fallback = reason
        container.keep()
    elif container.shared.events.has(container.directory, AccelFallback):
        return  # a supervisor before us has said so; it may also have been killed right behind the record
    container.note(AccelFallback(accel="tcg", reason=reason))


async def enrol(container: Recorded, pids: Sequence[int]) -> None:
    """Put helpers that were made later into the container's cgroup, and give them its rank for when memory runs out."""
    await anyio.to_thread.run_sync(_enrol, container, pids)


def _enrol(container: Recorded, pids: Sequence[int]) -> None:
    rank = rank_of(container.record.pid)
    for pid in pids:
        try:
            container.cgroup.join(pid)
            if rank is not None:
                rank_for_memory(pid, rank)
        except (CgroupError, SpecError, OSError) as exc:
            # during `create` the cgroup may not be there yet: it is filled later
            log.info("%s: %s", container.record.name, exc)
