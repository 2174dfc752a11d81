# SPDX-License-Identifier: Apache-2.0
"""The state machine of a container: one synchronous table of (status, event) → (status, actions).

``runphi_async.container.guest`` carries the actions out; nothing else changes a status. The texts of refusals are
runc's, because engines match on them (docs/reference/engines.md).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from runphi_async.errors import StateError


class Status(StrEnum):
    """Where a container stands; the values are those of the OCI runtime specification, and "paused"."""

    #: resources are being claimed; nobody but the creating engine knows it
    CREATING = "creating"
    #: the guest is loaded and has not executed an instruction
    CREATED = "created"
    RUNNING = "running"
    #: the guest stands still, its memory intact
    PAUSED = "paused"
    #: the guest is gone, its exit code is known
    STOPPED = "stopped"


class Event(StrEnum):
    """What can happen to a container."""

    #: create has done all its steps
    MADE = "made"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    #: a signal for the guest, other than one that destroys
    SIGNAL = "signal"
    #: a signal that destroys the guest
    KILL = "kill"
    #: the guest or its VMM has ended
    ENDED = "ended"
    #: the init stub is gone: the engine gave up
    ABANDONED = "abandoned"
    #: a step of start failed
    FAILED = "failed"
    DELETE = "delete"
    FORCE_DELETE = "force-delete"


class Action(StrEnum):
    """What is to be done, in the order given."""

    BOOT = "boot"
    SUSPEND = "suspend"
    CONTINUE = "continue"
    DELIVER = "deliver"
    DESTROY = "destroy"
    #: drain the console, find the exit code, tell the stub
    SETTLE = "settle"
    #: free everything and remove the record
    FORGET = "forget"


class Step(NamedTuple):
    """A decision: the status to take and the actions that lead there."""

    status: Status
    actions: tuple[Action, ...]


_C, _R, _P, _S, _N = Status.CREATED, Status.RUNNING, Status.PAUSED, Status.STOPPED, Status.CREATING
_GONE = (Action.DESTROY, Action.SETTLE)
_REMOVE = (Action.DESTROY, Action.SETTLE, Action.FORGET)

_STEPS: Final[dict[tuple[Status, Event], Step]] = {
    (_N, Event.MADE): Step(_C, ()),
    (_N, Event.ENDED): Step(_S, (Action.SETTLE,)),
    (_N, Event.ABANDONED): Step(_S, _GONE),
    (_N, Event.FAILED): Step(_S, _REMOVE),
    (_N, Event.FORCE_DELETE): Step(_S, _REMOVE),
    (_C, Event.START): Step(_R, (Action.BOOT,)),
    (_C, Event.SIGNAL): Step(_C, ()),  # nothing runs yet that could take it: runc's init ignores it as well
    (_C, Event.KILL): Step(_C, (Action.DESTROY,)),
    (_C, Event.ENDED): Step(_S, (Action.SETTLE,)),
    (_C, Event.ABANDONED): Step(_S, _GONE),
    (_C, Event.FAILED): Step(_S, _GONE),
    (_C, Event.DELETE): Step(_S, _REMOVE),
    (_C, Event.FORCE_DELETE): Step(_S, _REMOVE),
    (_R, Event.PAUSE): Step(_P, (Action.SUSPEND,)),
    (_R, Event.SIGNAL): Step(_R, (Action.DELIVER,)),
    (_R, Event.KILL): Step(_R, (Action.DESTROY,)),
    (_R, Event.ENDED): Step(_S, (Action.SETTLE,)),
    (_R, Event.ABANDONED): Step(_S, _GONE),
    (_R, Event.FAILED): Step(_S, _GONE),
    (_R, Event.FORCE_DELETE): Step(_S, _REMOVE),
    (_P, Event.RESUME): Step(_R, (Action.CONTINUE,)),
    (_P, Event.SIGNAL): Step(_P, (Action.DELIVER,)),
    (_P, Event.KILL): Step(_P, (Action.DESTROY,)),
    (_P, Event.ENDED): Step(_S, (Action.SETTLE,)),
    (_P, Event.ABANDONED): Step(_S, _GONE),
    (_P, Event.FAILED): Step(_S, _GONE),
    (_P, Event.FORCE_DELETE): Step(_S, _REMOVE),
    (_S, Event.ENDED): Step(_S, ()),
    (_S, Event.ABANDONED): Step(_S, ()),
    (_S, Event.FAILED): Step(_S, ()),
    (_S, Event.DELETE): Step(_S, (Action.FORGET,)),
    (_S, Event.FORCE_DELETE): Step(_S, (Action.FORGET,)),
}


def decide(status: Status, event: Event, name: str) -> Step:
    """Return what ``event`` means for container ``name`` in ``status``.

    :raises StateError: the event is refused, with the text engines know.
    """
    step = _STEPS.get((status, event))
    if step is None:
        raise StateError(_refusal(status, event, name))
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
