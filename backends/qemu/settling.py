# SPDX-License-Identifier: Apache-2.0
"""How a QEMU guest ended: what its VMM left is gathered here, and weighed by ``exitcode``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backends.base import Evidence, Verdict
from backends.qemu import again, exitcode, words
from backends.qemu.dev import EXIT_FILE
from runphi_async import regular
from runphi_async.lifeline import stub

if TYPE_CHECKING:
    from backends.qemu.vmm import Vmm


def weigh(vmm: Vmm, evidence: Evidence) -> Verdict:
    """Weigh what is known of this VMM alone."""
    return exitcode.verdict(
        exitcode.Evidence(
            kind=vmm.plan.kind,
            arch=vmm.plan.arch,
            vmm_status=stub.read_status(vmm.directory),
            guest_exit=regular.tail(os.path.join(vmm.directory, EXIT_FILE), 1),
            control_exit=vmm.heard.exit,
            control_error=vmm.heard.error,
            failure=vmm.remains.failure(),
            qmp_events=vmm.heard.events,
            oom_kills=evidence.oom_kills,
            vmm_log_tail=stub.vmm_log(vmm.directory),
            killed_by=evidence.killed_by,
            started=evidence.booted,
        )
    )


def settle(vmm: Vmm, evidence: Evidence) -> Verdict:
    """Weigh QEMU's status, its events, the guest's own words and what the host knows; say on which try it was."""
    vmm.wires.poll()
    verdict = weigh(vmm, evidence)
    reason = verdict.reason
    if vmm.heard.exit is None:
        reason += words.of_kernel(vmm.remains.kernel_lines())
    decided = again.load(vmm.directory) if vmm.second else None
    if decided is not None and not vmm.heard.reached:
        reason += f" (on the second try; on the first: {decided.reason})"
    return Verdict(verdict.code, reason)
