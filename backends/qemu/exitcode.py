# SPDX-License-Identifier: Apache-2.0
"""The exit code of a container whose guest is over, and the reason, from evidence that outlives the
supervisor.

The life cycle collects an :class:`Evidence` once QEMU is gone, also after a restart of the supervisor, and
asks :func:`verdict`. The first row that fits decides; docs/reference/exit-codes.md tells the same to users:

====  =====================================================================  ===========  ==================
row   evidence                                                               code         reason
====  =====================================================================  ===========  ==================
1     the guest's init said ``exit N``                                       N            exited
2     the guest's init said ``error TEXT`` and no more                       126          cannot run …
3     the guest wrote the exit code port, and no signal killed QEMU          that byte    exited
4     QEMU ended by itself (below), arm64: semihosting                       the status   exited
5     QEMU ended by itself (below), x86, odd status: isa-debug-exit          status>>1    exited
6     the kernel killed a process of the container for memory                137          out of memory
7     we ended QEMU because its guest would never have run (again)           125          the VMM stopped: …
8     event GUEST_PANICKED, or SHUTDOWN guest-panic                          134          guest panicked
9     event SHUTDOWN guest-shutdown                                          0            guest powered off
10    we were asked to deliver signal n, or to destroy the guest with it     128+n        killed by signal n
11    event SHUTDOWN guest-reset                                             133          guest reset
12    event SHUTDOWN host-signal or host-qmp-quit                            143          VMM was told …
13    event SHUTDOWN with any other reason                                   125          VMM failed
14    no status of QEMU                                                      137          VMM is gone
15    QEMU's status is 128+n                                                 128+n        VMM killed …
16    anything else, also status 0: x86 never ends so by itself              125          VMM failed
====  =====================================================================  ===========  ==================

The guest's own word (1 to 5) comes before what was done to it: a process that handles SIGTERM and returns 0
has exited with 0. "Ended by itself" means: a bare-metal guest that had been started, no event SHUTDOWN, a
status below 128, and nothing in QEMU's log, as a QEMU that fails says why. From 128 up a status cannot be
told from a signal, so row 15 takes it; the code is the same for arm64, and x86 images should write the exit
code port. Row 6 needs a VMM that died: an OOM kill which the guest outlived explains nothing. Row 7 is what
``runstate`` says: a state that no guest comes back from, or a kernel that did not reach our init in time.
"""

from __future__ import annotations

import dataclasses
import signal
from typing import TYPE_CHECKING, Any, Final

from backends.base import Verdict
from backends.qemu import words
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: as shells say it: 128 + SIGTRAP, SIGABRT, SIGKILL, SIGTERM
RESET: Final = 133
PANICKED: Final = 134
KILLED: Final = 137
TERMINATED: Final = 143
#: as docker says "the runtime failed"
VMM_FAILED: Final = 125
CANNOT_RUN: Final = 126
#: statuses of a VMM that somebody ended, as opposed to one that failed
SIGNALLED: Final = frozenset(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is left of a guest; every part can be read again after a restart."""

    kind: GuestKind
    arch: str
    #: ``$?`` of a shell that waited for QEMU: its exit status, or 128 + the signal that killed it
    vmm_status: int | None = None
    #: contents of the file behind the exit code port
    guest_exit: bytes = b""
    #: N of the control channel's ``exit N``
    control_exit: int | None = None
    #: TEXT of the control channel's ``error TEXT``
    control_error: str | None = None
    #: why we ended a QEMU whose guest would never have run
    failure: str | None = None
    #: (name, data) in the order QEMU sent them
    qmp_events: Sequence[tuple[str, Mapping[str, Any]]] = ()
    #: growth of ``oom_kill`` in the container's cgroup
    oom_kills: int = 0
    #: end of what QEMU wrote to its stderr
    vmm_log_tail: str = ""
    #: the signal we were asked to deliver, or destroyed the guest for
    killed_by: int | None = None
    #: the guest was allowed to run its first instruction
    started: bool = False


def verdict(evidence: Evidence) -> Verdict:
    """Decide; see the table above."""
    return (
        _guests_word(evidence)
        or _memory(evidence)
        or _failed(evidence)
        or _told_by_qmp(evidence)
        or _told_by_status(evidence, evidence.vmm_status)
    )


def _guests_word(evidence: Evidence) -> Verdict | None:
    if evidence.control_exit is not None:
        code = evidence.control_exit & 0xFF
        reason = (
            f"cannot run the process: {evidence.control_error}" if evidence.control_error else f"exited with {code}"
        )
        return Verdict(code, reason)
    if evidence.control_error is not None:
        return Verdict(CANNOT_RUN, f"cannot run the process: {evidence.control_error}")
    if evidence.guest_exit and (evidence.vmm_status is None or evidence.vmm_status < 128):
        code = evidence.guest_exit[-1]
        return Verdict(code, f"exited with {code}")
    return _ended_by_itself(evidence, evidence.vmm_status)


def _ended_by_itself(evidence: Evidence, status: int | None) -> Verdict | None:
    if evidence.kind is not GuestKind.INMATE or not evidence.started or evidence.vmm_log_tail.strip():
        return None
    if status is None or status >= 128 or any(name == "SHUTDOWN" for name, _ in evidence.qmp_events):
        return None
    if evidence.arch == "aarch64":
        return Verdict(status, f"exited with {status}")
    return Verdict(status >> 1, f"exited with {status >> 1}") if status & 1 else None


def _memory(evidence: Evidence) -> Verdict | None:
    if evidence.oom_kills > 0 and evidence.vmm_status != 0:
        return Verdict(KILLED, "out of memory: the kernel killed the VMM")
    return None


def _failed(evidence: Evidence) -> Verdict | None:
    return Verdict(VMM_FAILED, evidence.failure) if evidence.failure is not None else None


def _told_by_qmp(evidence: Evidence) -> Verdict | None:
    reasons = [data.get("reason") for name, data in evidence.qmp_events if name == "SHUTDOWN"]
    panics = [data for name, data in evidence.qmp_events if name == "GUEST_PANICKED"]
    if panics or "guest-panic" in reasons:
        return Verdict(PANICKED, "guest panicked")
    if "guest-shutdown" in reasons:
        return Verdict(0, "guest powered off")
    if evidence.killed_by is not None:
        return Verdict(128 + evidence.killed_by, f"killed by signal {evidence.killed_by}")
    if "guest-reset" in reasons:
        return Verdict(RESET, "guest reset (reboot or triple fault)")
    if "host-signal" in reasons or "host-qmp-quit" in reasons:
        return Verdict(TERMINATED, "VMM was told to end from outside")
    if reasons:
        return Verdict(VMM_FAILED, f"VMM failed: {reasons[0]}")
    return None


def _told_by_status(evidence: Evidence, status: int | None) -> Verdict:
    if status is None:
        return Verdict(KILLED, "VMM is gone and left no status")
    said = words.of_vmm(evidence.vmm_log_tail.encode())
    if status > 128:
        # whoever is killed by somebody has no last words about it
        why = f": {said}" if said and status not in SIGNALLED else ""
        return Verdict(status, f"VMM killed by signal {status - 128}{why}")
    last = words.last(evidence.vmm_log_tail.encode(), 1)
    return Verdict(VMM_FAILED, f"VMM failed with status {status}" + (f": {last[0]}" if last else ""))
