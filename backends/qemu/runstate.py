# SPDX-License-Identifier: Apache-2.0
"""What QEMU's run states mean for a container, and how long a guest has run: decisions without I/O.

QEMU says STOP for a pause of ours, for one by another monitor and for an error of its own alike; only ``query-status``
tells them apart. Source: qapi/run-state.json of QEMU, type RunState.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from backends.qemu import words
from backends.qemu.exitcode import SIGNALLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from backends.qemu.settings import InitSeconds


class Standing(StrEnum):
    """What a run state means."""

    #: no instruction was executed yet
    BEFORE = "before"
    RUNNING = "running"
    #: it stands still until somebody says ``cont``
    PAUSED = "paused"
    #: QEMU is about to end, and has said why
    ENDING = "ending"
    #: it will never run again
    FAILED = "failed"
    #: a state of a later QEMU
    UNKNOWN = "unknown"


_STATES: Final = {
    "prelaunch": Standing.BEFORE,
    "preconfig": Standing.BEFORE,
    "inmigrate": Standing.BEFORE,
    "running": Standing.RUNNING,
    # the guest itself went to sleep, and may be woken
    "suspended": Standing.RUNNING,
    "paused": Standing.PAUSED,
    "debug": Standing.PAUSED,
    "save-vm": Standing.PAUSED,
    "restore-vm": Standing.PAUSED,
    "finish-migrate": Standing.PAUSED,
    "postmigrate": Standing.PAUSED,
    "colo": Standing.PAUSED,
    "shutdown": Standing.ENDING,
    "guest-panicked": Standing.ENDING,
    "internal-error": Standing.FAILED,
    "io-error": Standing.FAILED,
    "watchdog": Standing.FAILED,
}
_TEXTS: Final = {
    "internal-error": "internal error",
    "io-error": "input or output of a device failed",
    "watchdog": "the guest's watchdog struck",
}


def status_of(answer: object) -> str:
    """Return the run state in an answer to ``query-status``."""
    status = answer.get("status") if isinstance(answer, dict) else None
    return status if isinstance(status, str) else ""


def standing(status: str) -> Standing:
    """Return what a run state means."""
    return _STATES.get(status, Standing.UNKNOWN)


def failure(status: str, vmm_log: bytes) -> str:
    """Say why a guest in a failed state is over, with QEMU's own last words."""
    said = words.of_vmm(vmm_log)
    return f"the VMM stopped: {_TEXTS.get(status, status)}" + (f": {said}" if said else "")


def is_news(wish: Standing | None, found: Standing) -> bool:
    """Whether a state was brought about by somebody else.

    :param wish: what we asked for last; None: an earlier supervisor did, and nobody knows.
    """
    return found in (Standing.RUNNING, Standing.PAUSED) and found is not wish


# Section: the deadline


class Clock(msgspec.Struct, frozen=True):
    """For how long a guest has run; times are those of CLOCK_MONOTONIC, which no time server sets."""

    #: seconds before it was last paused
    ran: float = 0.0
    #: when it was last let go; None: it stands
    since: float | None = None

    def go(self, now: float) -> Clock:
        """The guest runs from now on."""
        return self if self.since is not None else Clock(self.ran, now)

    def stand(self, now: float) -> Clock:
        """The guest stands still from now on."""
        return Clock(self.at(now))

    def at(self, now: float) -> float:
        """Return for how many seconds it has run."""
        return self.ran + (max(0.0, now - self.since) if self.since is not None else 0.0)

    def left(self, now: float, limit: float) -> float | None:
        """Return in how many seconds it will have run for ``limit``; None: it stands still."""
        return None if self.since is None else max(0.0, limit - self.at(now))


def deadline(accel: str, seconds: InitSeconds) -> float:
    """Return how long a kernel may take to reach our init."""
    return seconds.kvm if accel == "kvm" else seconds.tcg


def late(limit: float, accel: str) -> str:
    """Say that a kernel did not reach our init."""
    return f"the guest's kernel did not reach init within {limit:g} s on {accel.upper()}"


# Section: a second try


def is_kvms(status: int | None, events: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether a VMM that ended before init did so by itself: nobody killed it, or told it to end.

    :param status: as in ``exitcode.Evidence``; None also while it waits to be ended, and has said why.
    """
    reasons = {data.get("reason") for name, data in events if name == "SHUTDOWN"}
    if status in SIGNALLED or reasons & {"host-signal", "host-qmp-quit"}:
        return False
    return status is not None or bool(reasons) or any(name == "GUEST_PANICKED" for name, _ in events)
