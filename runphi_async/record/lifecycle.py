# SPDX-License-Identifier: Apache-2.0
"""The state machine of a container, and the only writer of its status: events in, actions out.

An event is either asked for, and refused where it does not fit, or it is a fact, and taken where it is news. What is
asked for leads to actions, which ``runphi_async.container.running`` carries out; facts lead to another status. The
texts of refusals are runc's, because engines match on them (docs/reference/engines.md).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from runphi_async.errors import StateError


class Status(StrEnum):
    """Where a container stands; the values are those of the OCI runtime specification, and two of ours."""

    #: resources are being claimed; nobody but the creating engine knows it
    CREATING = "creating"
    #: the guest is loaded and has not executed an instruction
    CREATED = "created"
    #: ``start`` is at work: the guest may have executed an instruction. In records only, see ``shown``
    STARTING = "starting"
    RUNNING = "running"
    #: the guest stands still, its memory intact
    PAUSED = "paused"
    #: the guest is gone, its exit code is known
    STOPPED = "stopped"

    @property
    def shown(self) -> Status:
        """The status as engines and people see it: before ``start`` has returned the container is created."""
        return Status.CREATED if self is Status.STARTING else self


class Event(StrEnum):
    """What can happen to a container."""

    # asked for
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    #: a signal for the guest that does not end it
    SIGNAL = "signal"
    #: a signal that asks the guest to end
    STOP = "stop"
    #: a signal that destroys the guest
    KILL = "kill"
    DELETE = "delete"
    FORCE_DELETE = "force-delete"
    # facts
    #: create has done all its steps
    MADE = "made"
    #: the guest executes instructions
    STARTED = "started"
    #: after a supervisor's death: it has not executed one yet, whatever its record says
    NOT_STARTED = "not-started"
    PAUSED = "paused"
    RESUMED = "resumed"
    #: the guest or its VMM has ended
    ENDED = "ended"
    #: the init process is gone: the engine gave up
    ABANDONED = "abandoned"


class Action(StrEnum):
    """What is to be done."""

    BOOT = "boot"
    SUSPEND = "suspend"
    CONTINUE = "continue"
    #: pass the signal to the guest
    DELIVER = "deliver"
    #: destroy the guest; its end follows
    DESTROY = "destroy"
    #: destroy the guest and wait until its end is settled
    END = "end"


class Step(NamedTuple):
    """A decision: the status to take at once, and what is to be done then."""

    status: Status
    action: Action | None = None


_N, _C, _G, _R, _P, _S = Status
_A, _E = Action, Event

_STEPS: Final[dict[tuple[Status, Event], Step]] = {
    (_N, _E.MADE): Step(_C),
    (_N, _E.FORCE_DELETE): Step(_N, _A.END),
    (_C, _E.START): Step(_G, _A.BOOT),
    (_C, _E.SIGNAL): Step(_C),  # nothing runs yet that could take it: runc's init ignores it as well
    (_C, _E.STOP): Step(_C, _A.DESTROY),  # nothing runs yet that could object
    (_C, _E.KILL): Step(_C, _A.DESTROY),
    (_C, _E.DELETE): Step(_C, _A.END),
    (_C, _E.FORCE_DELETE): Step(_C, _A.END),
    (_C, _E.STARTED): Step(_R),
    (_G, _E.SIGNAL): Step(_G),
    (_G, _E.STOP): Step(_G, _A.DESTROY),
    (_G, _E.KILL): Step(_G, _A.DESTROY),
    (_G, _E.FORCE_DELETE): Step(_G, _A.END),
    (_G, _E.STARTED): Step(_R),
    (_G, _E.NOT_STARTED): Step(_C),
    (_R, _E.PAUSE): Step(_R, _A.SUSPEND),
    (_R, _E.SIGNAL): Step(_R, _A.DELIVER),
    (_R, _E.STOP): Step(_R, _A.DELIVER),
    (_R, _E.KILL): Step(_R, _A.DESTROY),
    (_R, _E.FORCE_DELETE): Step(_R, _A.END),
    (_R, _E.NOT_STARTED): Step(_C),  # the record of a version that had no "starting"
    (_R, _E.PAUSED): Step(_P),
    (_P, _E.RESUME): Step(_P, _A.CONTINUE),
    (_P, _E.SIGNAL): Step(_P, _A.DELIVER),
    (_P, _E.STOP): Step(_P, _A.DELIVER),
    (_P, _E.KILL): Step(_P, _A.DESTROY),
    (_P, _E.FORCE_DELETE): Step(_P, _A.END),
    (_P, _E.RESUMED): Step(_R),
    (_S, _E.DELETE): Step(_S),
    (_S, _E.FORCE_DELETE): Step(_S),
    **{(status, _E.ABANDONED): Step(status, _A.DESTROY) for status in (_N, _C, _G, _R, _P)},
    **{(status, _E.ENDED): Step(_S) for status in (_N, _C, _G, _R, _P)},
}


class Standing(Protocol):
    """The record of a container, as far as its status goes."""

    id: str
    status: Status


class Lifecycle:
    """The status of one container; nothing else changes it once the record is made."""

    def __init__(self, record: Standing) -> None:
        self._record = record

    @property
    def status(self) -> Status:
        """Where the container stands."""
        return self._record.status

    def check(self, event: Event) -> Action | None:
        """Return what is to be done when ``event`` is asked for now; the status stays.

        :raises StateError: it is refused, with the text engines know.
        """
        return self._step(event).action

    def ask(self, event: Event) -> Action | None:
        """Take what is asked for, and return what is to be done.

        :raises StateError: it is refused, with the text engines know.
        """
        step = self._step(event)
        self._record.status = step.status
        return step.action

    def tell(self, event: Event) -> Step | None:
        """Take a fact; None: it is no news, as of a container that has stopped meanwhile."""
        step = _STEPS.get((self._record.status, event))
        if step is not None:
            self._record.status = step.status
        return step

    def _step(self, event: Event) -> Step:
        step = _STEPS.get((self._record.status, event))
        if step is None:
            raise StateError(_refusal(self._record.status, event, self._record.id))
        return step


def _refusal(status: Status, event: Event, name: str) -> str:
    if status is Status.CREATING:
        return f"cannot {event} container {name}: it is still being created"
    match event:
        case Event.START if status is Status.STOPPED:
            return "cannot start a container that has stopped"
        case Event.START if status is Status.PAUSED:
            return "cannot start a container in the paused state"
        case Event.START:
            return "cannot start an already running container"
        case Event.DELETE:
            return f"cannot delete container {name} that is not stopped: {status}"
        case Event.RESUME:
            return "container not paused"
        case _:
            # also what kill and pause say of a stopped container: shims look for these very words
            return "container not running"
