# SPDX-License-Identifier: Apache-2.0
"""Everything the runtime says of a container, as types: each line of an event log is one of these.

Whoever writes an event makes one, so a kind or a field that is not here is an error of types. What is written is the
kind as ``event`` and the fields by name; docs/reference lists them, and a test compares the two. Rules for a console
may not have the name of any (``NAMES``): nobody could tell a guest's words from the runtime's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias, get_args

import msgspec
from msgspec import UNSET, UnsetType

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """One thing that happened."""


class _OnStream(_Event, frozen=True, kw_only=True):
    """It happened on a stream; ``channel`` is not there when that is the console."""

    channel: str | UnsetType = UNSET


# Section: life


class Create(_Event, frozen=True, tag="create"):
    """The container is there, and its guest waits for ``start``; ``guest`` is its kind."""

    backend: str
    guest: str
    memory: int
    vcpus: int


class Start(_Event, frozen=True, tag="start"):
    """The guest runs."""


class AccelFallback(_Event, frozen=True, tag="accel-fallback"):
    """The guest was started once more, with ``accel``, because of ``reason``."""

    accel: str
    reason: str


class Pause(_Event, frozen=True, tag="pause"):
    """The guest stands still; ``by`` is there when it was somebody else who made it."""

    by: str | UnsetType = UNSET


class Resume(_Event, frozen=True, tag="resume"):
    """The guest goes on; ``by`` as for ``pause``."""

    by: str | UnsetType = UNSET


class SignalSent(_Event, frozen=True, tag="signal"):
    """A signal goes to the guest."""

    number: int


class Update(_Event, frozen=True, tag="update"):
    """Limits were changed."""


class Exit(_Event, frozen=True, tag="exit"):
    """The end; ``delivered``: whether all console bytes reached the engine and the logs."""

    code: int | None
    reason: str | None
    delivered: bool


class Sick(_Event, frozen=True, tag="sick"):
    """A supervisor could not take the container over; it can be killed and deleted."""

    problem: str


class LedgerProblem(_Event, frozen=True, tag="ledger"):
    """What the container has claimed is not what the hypervisor shows."""

    problem: str


# Section: streams and people


class LogError(_OnStream, frozen=True, tag="log-error"):
    """A log cannot be written for now; ``log`` is its kind."""

    log: str
    path: str
    error: str


class LogResumed(_OnStream, frozen=True, tag="log-resumed"):
    """A log is written again; so many bytes are not in it."""

    log: str
    path: str
    lost: int


class ConsoleGone(_Event, frozen=True, tag="console-gone"):
    """The far end of a console that is a source is lost."""

    reason: str


class ConsoleBack(_Event, frozen=True, tag="console-back"):
    """It is there again."""


class ConsoleLost(_Event, frozen=True, kw_only=True, tag="console-lost"):
    """Bytes of the hypervisor's console were lost, some of which may have been the guest's."""

    bytes: int | UnsetType = UNSET
    why: str


class ConsoleViolation(_Event, frozen=True, tag="console-violation"):
    """The guest broke the rules of a console in shared memory, ``count`` times until now."""

    what: str
    count: int


class ChannelGone(_Event, frozen=True, tag="channel-gone"):
    """The far end of a channel is lost."""

    channel: str
    reason: str


class ChannelBack(_Event, frozen=True, tag="channel-back"):
    """It is there again."""

    channel: str


class ChannelViolation(_Event, frozen=True, tag="channel-violation"):
    """The guest broke the rules of a channel, ``count`` times until now."""

    channel: str
    what: str
    count: int


class _Person(_OnStream, frozen=True, kw_only=True):
    """Somebody did something; ``role`` is the one they have by it, or had."""

    who: str
    role: str


class Attach(_Person, frozen=True, tag="attach"):
    """Somebody came."""


class Detach(_Person, frozen=True, tag="detach"):
    """Somebody left."""


class Take(_Person, frozen=True, tag="take"):
    """Somebody is the only one who types."""


class Share(_Person, frozen=True, tag="share"):
    """Somebody types beside others."""


class Observe(_Person, frozen=True, tag="observe"):
    """Somebody only watches from now on."""


# Section: cells


class CpusLeft(_Event, frozen=True, tag="cpus-left"):
    """These CPUs are the cell's and offline in the root system, which has the others."""

    cpus: str
    root: str


class CpusBack(_Event, frozen=True, tag="cpus-back"):
    """These CPUs are the root system's again, ``offline`` those that stay so."""

    cpus: str
    offline: str


class CpusFailed(_Event, frozen=True, tag="cpus-failed"):
    """The hypervisor parked these CPUs."""

    cpus: str
    state: str


class HypervisorLine(_Event, frozen=True, tag="hypervisor"):
    """A line of the hypervisor's console that names the cell."""

    text: str


class IvshmemState(_Event, frozen=True, tag="ivshmem-state"):
    """The cell's word in the state table of its console's device has changed."""

    device: str
    peer: int
    state: int


# Section: the hypervisor's own console, which is no container's: `timeline` shows these two


class HypervisorConsoleGone(_Event, frozen=True, tag="hypervisor-console-gone"):
    """Its far end is lost."""

    reason: str


class HypervisorConsoleBack(_Event, frozen=True, tag="hypervisor-console-back"):
    """It is there again."""


#: what the runtime says by itself
Own: TypeAlias = (
    Create | Start | AccelFallback | Pause | Resume | SignalSent | Update | Exit | Sick | LedgerProblem
    | LogError | LogResumed
    | ConsoleGone | ConsoleBack | ConsoleLost | ConsoleViolation
    | ChannelGone | ChannelBack | ChannelViolation
    | Attach | Detach | Take | Share | Observe
    | CpusLeft | CpusBack | CpusFailed | HypervisorLine | IvshmemState
    | HypervisorConsoleGone | HypervisorConsoleBack
)  # fmt: skip


class RuleMatch(msgspec.Struct, frozen=True):
    """A line of a console matched a rule, ``count`` times until now. The event has the rule's name, as has ``rule``."""

    event: str
    rule: str
    count: int
    line: str


AnyEvent: TypeAlias = Own | RuleMatch


def kind(event: AnyEvent | type[Own]) -> str:
    """Return what an event is called where it is written."""
    return event.event if isinstance(event, RuleMatch) else str(event.__struct_config__.tag)


#: What no rule for a console may be called.
NAMES: Final = frozenset(kind(event) for event in get_args(Own))


def on_channel(event: AnyEvent, channel: str) -> AnyEvent:
    """Return the event as one of a stream that is not the console."""
    return msgspec.structs.replace(event, channel=channel) if isinstance(event, _OnStream) else event


def encode(counted: Mapping[str, Any], event: AnyEvent) -> bytes:
    """Return the line of an event: what it is counted by, its kind, its fields."""
    return msgspec.json.encode(counted)[:-1] + b"," + msgspec.json.encode(event)[1:] + b"\n"
