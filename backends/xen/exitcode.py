# SPDX-License-Identifier: Apache-2.0
"""The exit code of a container whose domain is over, and the reason. The first row that fits decides:

====  ===================================================================  =======  ======================
row   evidence                                                             code     reason
====  ===================================================================  =======  ======================
1     the guest's init said ``exit N``                                     N        exited
2     the guest's init said ``error TEXT`` and no more                     126      cannot run …
3     the guest wrote N to ``data/exit-code`` in its part of xenstore      N        exited
4     it shut down with reason 3 (crash) or 4 (watchdog)                   134      crashed; watchdog
5     it shut down with reason 0 (poweroff)                                0        powered off
6     it shut down with a reason of its own, 6 to 254                      that     exited
7     we were asked to deliver signal n, or to destroy it with n           128+n    killed by signal n
8     it shut down with reason 1 (reboot) or 5 (soft reset)                133      reset
9     it shut down with reason 2 (suspend), or 255                         125      cannot be kept
10    the domain is gone                                                   137      destroyed from outside
====  ===================================================================  =======  ======================

A reason has room for 0 to 255, and Xen took 0 to 5 for itself: a guest that wants to end with 1 to 5 or 255 writes
row 3's node first. docs/reference/exit-codes.md tells the same to users.
"""

from __future__ import annotations

from typing import Final

import msgspec

from backends.base import Evidence, Verdict
from backends.xen.states import Reason

FAILED: Final = 125
CANNOT_RUN: Final = 126
RESET: Final = 133
CRASHED: Final = 134
KILLED: Final = 137


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was seen of a domain's end; written down before the domain is destroyed.

    :ivar reason: the shutdown reason; None: it never shut down.
    :ivar said: what the guest wrote to ``data/exit-code``.
    """

    reason: int | None = None
    said: int | None = None
    control_exit: int | None = None
    control_error: str | None = None
    #: why the runtime itself gave the guest up
    failure: str | None = None


def verdict(end: End, evidence: Evidence) -> Verdict:
    """Decide; see the table above."""
    if end.control_exit is not None:
        code = end.control_exit & 0xFF
        text = f"cannot run the process: {end.control_error}" if end.control_error else f"exited with {code}"
        return Verdict(code, text)
    if end.control_error is not None:
        return Verdict(CANNOT_RUN, f"cannot run the process: {end.control_error}")
    if end.said is not None:
        return Verdict(end.said & 0xFF, f"exited with {end.said & 0xFF}")
    if end.reason == Reason.CRASH:
        return Verdict(CRASHED, "guest crashed")
    if end.reason == Reason.WATCHDOG:
        return Verdict(CRASHED, "guest did not feed its watchdog")
    if end.reason == Reason.POWEROFF:
        return Verdict(0, "guest powered off")
    if end.reason is not None and Reason.SOFT_RESET < end.reason < 255:
        return Verdict(end.reason, f"exited with {end.reason}")
    if evidence.killed_by is not None:
        return Verdict(128 + evidence.killed_by, f"killed by signal {evidence.killed_by}")
    if end.reason in (Reason.REBOOT, Reason.SOFT_RESET):
        return Verdict(RESET, "guest reset (reboot)")
    if end.reason is not None:
        return Verdict(
            FAILED, "guest suspended itself" if end.reason == Reason.SUSPEND else "guest ended with no reason"
        )
    if end.failure is not None:
        return Verdict(FAILED, end.failure)
    return Verdict(KILLED, "domain was destroyed from outside")
