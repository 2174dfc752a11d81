# SPDX-License-Identifier: Apache-2.0
"""Every event that the runtime writes, with its data; no rule for a console may have the name of one.

It stands below all rooms because the configuration refuses such rules too. The classes say what fits; what is written
are the data as they were given, so the lines stay as they are whatever the order of the fields here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType


class Event(msgspec.Struct, tag_field="event", forbid_unknown_fields=True):
    """Something that happened to a container; the tag is its kind."""


class Create(Event, tag="create"):
    """The guest is there and waits for `start`."""

    backend: str
    guest: str
    memory: int
    vcpus: int


class Start(Event, tag="start"):
    """The guest runs."""


class Exit(Event, tag="exit"):
    """The guest ended; `delivered`: whether the engine was told by the lifeline."""

    code: int | None
    reason: str | None
    delivered: bool


class Pause(Event, tag="pause"):
    """The guest stands still; `by`: who did it, if not the verb."""

    by: str | UnsetType = UNSET


class Resume(Event, tag="resume"):
    """The guest goes on; `by`: who did it, if not the verb."""

    by: str | UnsetType = UNSET


class Signal(Event, tag="signal"):
    """A signal was sent to the guest."""

    number: int


class Update(Event, tag="update"):
    """The limits were changed."""


class Sick(Event, tag="sick"):
    """The guest cannot be looked after."""

    problem: str


class Ledger(Event, tag="ledger"):
    """The board's ledger and the hypervisor do not agree."""

    problem: str


class AccelFallback(Event, tag="accel-fallback"):
    """The guest was started a second time, without KVM."""

    accel: str
    reason: str


class LogError(Event, tag="log-error"):
    """A log of a console cannot be written."""

    log: str
    path: str | None
    error: str
    channel: str | UnsetType = UNSET


class LogResumed(Event, tag="log-resumed"):
    """A log of a console is written again."""

    log: str
    path: str | None
    lost: int
    channel: str | UnsetType = UNSET


class ConsoleBack(Event, tag="console-back"):
    """The console's far end answers again."""


class ConsoleGone(Event, tag="console-gone"):
    """The console's far end went away."""

    reason: str


class ConsoleLost(Event, tag="console-lost"):
    """Output of a console was lost."""

    why: str
    bytes: int | UnsetType = UNSET


class ConsoleViolation(Event, tag="console-violation"):
    """A cell broke the rules of its console."""

    what: str
    count: int


class ChannelBack(Event, tag="channel-back"):
    """A channel's far end answers again."""

    channel: str


class ChannelGone(Event, tag="channel-gone"):
    """A channel's far end went away."""

    channel: str
    reason: str


class ChannelViolation(Event, tag="channel-violation"):
    """The guest broke the rules of a channel."""

    channel: str
    what: str
    count: int


class Hypervisor(Event, tag="hypervisor"):
    """The hypervisor said something of the guest."""

    text: str


class CpusLeft(Event, tag="cpus-left"):
    """CPUs have left the root system."""

    cpus: str
    root: str


class CpusFailed(Event, tag="cpus-failed"):
    """The hypervisor stopped CPUs of the cell."""

    cpus: str
    state: str


class CpusBack(Event, tag="cpus-back"):
    """The cell's CPUs are the root system's again; `offline`: those that are not."""

    cpus: str
    offline: str


class IvshmemState(Event, tag="ivshmem-state"):
    """The state a peer shows in the table of an ivshmem device."""

    device: str
    peer: int
    state: int


class _Session(Event):
    who: str
    role: str


class Attach(_Session, tag="attach"):
    """Somebody looks at the console."""


class Detach(_Session, tag="detach"):
    """Somebody went away from the console."""


class Take(_Session, tag="take"):
    """Somebody took the keyboard."""


class Share(_Session, tag="share"):
    """Somebody types beside the others."""


class Observe(_Session, tag="observe"):
    """Somebody only watches now."""


#: every event there is
KINDS: Final[tuple[type[Event], ...]] = (
    Create, Start, Exit, Pause, Resume, Signal, Update, Sick, Ledger, AccelFallback, LogError, LogResumed,
    ConsoleBack, ConsoleGone, ConsoleLost, ConsoleViolation, ChannelBack, ChannelGone, ChannelViolation,
    Hypervisor, CpusLeft, CpusFailed, CpusBack, IvshmemState, Attach, Detach, Take, Share, Observe,
)  # fmt: skip
BY_NAME: Final[dict[str, type[Event]]] = {str(kind.__struct_config__.tag): kind for kind in KINDS}
RESERVED: Final = frozenset(BY_NAME)


class Match(msgspec.Struct, forbid_unknown_fields=True):
    """A line of the console matched a rule, whose name is the kind."""

    rule: str
    count: int
    line: str


def problem(kind: str, data: dict[str, Any]) -> str | None:
    """Say why this is no event of the runtime and no match of a rule; None: it is one."""
    found = BY_NAME.get(kind)
    try:
        # a guest made before a name was taken may still have a rule of that name
        if data.get("rule") == kind:
            msgspec.convert(msgspec.to_builtins(data), Match)
        elif found is None:
            return "no such event"
        else:
            msgspec.convert({**msgspec.to_builtins(data), "event": kind}, found)
    except (msgspec.ValidationError, TypeError) as exc:
        return str(exc)
    return None
