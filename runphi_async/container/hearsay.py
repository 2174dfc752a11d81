# SPDX-License-Identifier: Apache-2.0
"""What a guest's driver tells beside its end, and what becomes of it: status, record, event, log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import anyio

from runphi_async.container.memoryrank import rank_for_memory
from runphi_async.errors import CgroupError, SpecError
from runphi_async.events import AccelFallback, Pause, Resume
from runphi_async.host.processes import rank_of
from runphi_async.record.lifecycle import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.events import AnyEvent
    from runphi_async.host.cgroup import Cgroup
    from runphi_async.record.eventlog import EventLog
    from runphi_async.record.lifecycle import Lifecycle
    from runphi_async.record.store import Record

log = logging.getLogger(__name__)


class Guest(Protocol):
    """The container that a driver tells of."""

    record: Record
    events: EventLog
    lifecycle: Lifecycle

    @property
    def directory(self) -> str:
        """Its record's directory."""
        ...

    @property
    def cgroup(self) -> Cgroup:
        """Its cgroup."""
        ...

    def note(self, event: AnyEvent) -> None:
        """Write an event."""
        ...

    def keep(self) -> None:
        """Write the record, as far as that is possible."""
        ...


def paused(guest: Guest, by: str) -> None:
    """Somebody made the guest stand still: `resume` lets it go on."""
    _stands(guest, Event.PAUSED, Pause(by=by))


def resumed(guest: Guest, by: str) -> None:
    """Somebody let the guest go on."""
    _stands(guest, Event.RESUMED, Resume(by=by))


def _stands(guest: Guest, event: Event, told: Pause | Resume) -> None:
    if guest.lifecycle.tell(event) is None:
        return  # nothing new
    guest.keep()
    guest.note(told)
    log.warning("%s: %s by %s", guest.record.name, event, told.by)


def again(guest: Guest, reason: str) -> None:
    """The guest was started a second time, without KVM."""
    if guest.record.fallback is None:
        guest.record.fallback = reason
        guest.keep()
    elif guest.events.has(guest.directory, AccelFallback):
        return  # a supervisor before us has said so; it may also have been killed right behind the record
    guest.note(AccelFallback(accel="tcg", reason=reason))


async def enrol(guest: Guest, pids: Sequence[int]) -> None:
    """Put helpers that were made later into the container's cgroup, and give them its rank for when memory runs out."""
    await anyio.to_thread.run_sync(_enrol, guest, pids)


def _enrol(guest: Guest, pids: Sequence[int]) -> None:
    rank = rank_of(guest.record.pid)
    for pid in pids:
        try:
            guest.cgroup.join(pid)
            if rank is not None:
                rank_for_memory(pid, rank)
        except (CgroupError, SpecError, OSError) as exc:
            # during `create` the cgroup may not be there yet: it is filled later
            log.info("%s: %s", guest.record.name, exc)
