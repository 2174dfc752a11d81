# SPDX-License-Identifier: Apache-2.0
"""What a guest's driver tells beside its end, and what becomes of it: status, record, event, log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import anyio

from runphi_async.container.memoryrank import rank_for_memory
from runphi_async.errors import CgroupError, SpecError
from runphi_async.host.processes import rank_of
from runphi_async.record.lifecycle import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.host.cgroup import Cgroup
    from runphi_async.record.eventlog import EventLog
    from runphi_async.record.lifecycle import Lifecycle
    from runphi_async.record.store import Record

log = logging.getLogger(__name__)

#: the event of a second try
FALLBACK: Final = "accel-fallback"


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

    def note(self, kind: str, **data: object) -> None:
        """Write an event."""
        ...

    def keep(self) -> None:
        """Write the record, as far as that is possible."""
        ...


def paused(guest: Guest, by: str) -> None:
    """Somebody made the guest stand still: `resume` lets it go on."""
    _stands(guest, Event.PAUSED, "pause", by)


def resumed(guest: Guest, by: str) -> None:
    """Somebody let the guest go on."""
    _stands(guest, Event.RESUMED, "resume", by)


def _stands(guest: Guest, event: Event, kind: str, by: str) -> None:
    if guest.lifecycle.tell(event) is None:
        return  # nothing new
    guest.keep()
    guest.note(kind, by=by)
    log.warning("%s: %s by %s", guest.record.name, event, by)


def again(guest: Guest, reason: str) -> None:
    """The guest was started a second time, without KVM."""
    if guest.record.fallback is None:
        guest.record.fallback = reason
        guest.keep()
    elif guest.events.has(guest.directory, FALLBACK):
        return  # a supervisor before us has said so; it may also have been killed right behind the record
    guest.note(FALLBACK, accel="tcg", reason=reason)


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
