# SPDX-License-Identifier: Apache-2.0
"""What is true of a container whether or not anything of it runs: its record, its status, its events, its cgroup.

``runphi_async.container.container`` adds what runs and what verbs ask; everything below that one, which only writes
down and looks up, knows a container as this.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

import anyio

from runphi_async.errors import CgroupError
from runphi_async.events import Exit
from runphi_async.host.cgroup import Cgroup, hierarchies
from runphi_async.host.processes import Process
from runphi_async.lifeline import stub
from runphi_async.record.lifecycle import Event, Lifecycle, Status

if TYPE_CHECKING:
    from backends.base import Verdict
    from runphi_async.config.schema import Config
    from runphi_async.events import AnyEvent
    from runphi_async.host.clock import Timekeeper
    from runphi_async.record.eventlog import EventLog
    from runphi_async.record.store import Record, Store

log = logging.getLogger(__name__)


class Shared(NamedTuple):
    """What all containers of a supervisor have in common."""

    config: Config
    store: Store
    events: EventLog
    clock: Timekeeper


class Recorded:
    """A container as its record has it.

    :ivar settled: set once the guest has ended and its exit code is known.
    """

    def __init__(self, record: Record, shared: Shared) -> None:
        self.record = record
        self.shared = shared
        #: the only writer of the record's status
        self.lifecycle = Lifecycle(record)
        self.settled = anyio.Event()
        if record.status is Status.STOPPED:
            self.settled.set()
        #: monotonic time of the start, None when an earlier supervisor did it
        self._started_at: float | None = None

    @property
    def directory(self) -> str:
        """The record directory."""
        return self.shared.store.directory(self.record.name)

    @property
    def cgroup(self) -> Cgroup:
        """The container's cgroup."""
        return Cgroup(self.record.cgroup, hierarchies())

    def save(self) -> None:
        """Write the record."""
        self.shared.store.save(self.record)

    def keep(self) -> None:
        """Write the record where nobody can be told that it failed: what is on disk lags behind then.

        A next supervisor asks the guest itself; no full disk may keep a guest from being ended.
        """
        try:
            self.save()
        except OSError as exc:
            log.error("%s: cannot write its record: %s", self.record.name, exc.strerror)

    def note(self, event: AnyEvent) -> None:
        """Write an event into the container's event log."""
        self.shared.events.write(self.directory, event)

    def started(self) -> None:
        """The guest is about to execute its first instruction."""
        clock = self.shared.clock
        self.record.booted = True
        self.record.started, self._started_at = clock.wall(), clock.monotonic()

    def since_start(self) -> float | None:
        """Return the seconds since the guest was started, None before; after a restart as the dates have it."""
        clock, started = self.shared.clock, self.record.started
        if started is None:
            return None
        return clock.wall() - started if self._started_at is None else clock.monotonic() - self._started_at

    def stopped(self, verdict: Verdict, *, delivered: bool) -> None:
        """Take the end into the record and the event log.

        :param delivered: whether the engine got all that the guest printed.
        """
        record = self.record
        self.lifecycle.tell(Event.ENDED)
        record.exit_code, record.reason = verdict
        record.finished = self.shared.clock.wall()
        self.keep()
        self.note(Exit(code=verdict.code, reason=verdict.reason, delivered=delivered))
        log.info("%s: ended with %d: %s", record.name, verdict.code, verdict.reason)

    def kill_group(self, spare: int = 0) -> None:
        """Kill what is in the container's cgroup; without one, the machine's process (blocks).

        :param spare: pid of the init process, if it is to be told how the guest ended.
        """
        try:
            if self.record.cgroup:
                self.cgroup.kill_all(spare=spare)
                return
            with contextlib.closing(Process(stub.read_pid(self.directory) or -1)) as vmm:
                vmm.send(9)
        except (CgroupError, OSError) as exc:
            log.warning("%s: %s", self.record.name, exc)
