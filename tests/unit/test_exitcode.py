# SPDX-License-Identifier: Apache-2.0
"""The table of exit codes, row by row and over every combination of evidence."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from backends.qemu.exitcode import Evidence, verdict
from runphi_async.partition.spec import GuestKind

INMATE, LINUX, KERNEL = GuestKind.INMATE, GuestKind.LINUX, GuestKind.KERNEL


def shutdown(reason: str, guest: bool = True) -> tuple[str, dict[str, Any]]:
    return "SHUTDOWN", {"guest": guest, "reason": reason}


PANIC = ("GUEST_PANICKED", {"action": "poweroff"})
RESET = shutdown("guest-reset")
OFF = shutdown("guest-shutdown")
SIGNAL = shutdown("host-signal", guest=False)


@pytest.mark.parametrize(
    ("evidence", "code", "reason"),
    [
        # the guest's own word
        ({"kind": LINUX, "control_exit": 7, "vmm_status": 0, "qmp_events": [RESET]}, 7, "exited with 7"),
        ({"kind": LINUX, "control_exit": 0, "killed_by": 15, "vmm_status": 137}, 0, "exited with 0"),
        (
            {"kind": LINUX, "control_exit": 127, "control_error": "no /x"},
            127,
            "cannot run the process: no /x",
        ),
        ({"kind": LINUX, "control_error": "no /x", "vmm_status": 0}, 126, "cannot run the process: no /x"),
        ({"guest_exit": b"\x07", "vmm_status": 1}, 7, "exited with 7"),
        ({"guest_exit": b"\x00", "vmm_status": 1}, 0, "exited with 0"),
        ({"guest_exit": b"\x01\xff", "vmm_status": 1, "killed_by": 15}, 255, "exited with 255"),
        # … but not when it only wrote and was then killed
        ({"guest_exit": b"\x00", "vmm_status": 137, "killed_by": 9}, 137, "killed by signal 9"),
        ({"guest_exit": b"\x00", "vmm_status": 139}, 139, "VMM killed by signal 11"),
        # ended by itself
        ({"arch": "aarch64", "vmm_status": 0}, 0, "exited with 0"),
        ({"arch": "aarch64", "vmm_status": 7}, 7, "exited with 7"),
        ({"arch": "aarch64", "vmm_status": 7, "killed_by": 15}, 7, "exited with 7"),
        (
            {"arch": "aarch64", "vmm_status": 1, "vmm_log_tail": "qemu: bad\n"},
            125,
            "VMM failed with status 1: qemu: bad",
        ),
        ({"arch": "aarch64", "vmm_status": 1, "started": False}, 125, "VMM failed with status 1"),
        (
            {"arch": "aarch64", "vmm_status": 0, "qmp_events": [RESET]},
            133,
            "guest reset (reboot or triple fault)",
        ),
        ({"arch": "aarch64", "vmm_status": 0, "qmp_events": [OFF]}, 0, "guest powered off"),
        ({"vmm_status": 1}, 0, "exited with 0"),
        ({"vmm_status": 85}, 42, "exited with 42"),
        ({"vmm_status": 1, "started": False}, 125, "VMM failed with status 1"),
        ({"vmm_status": 1, "vmm_log_tail": "a\nlast\n"}, 125, "VMM failed with status 1: last"),
        ({"kind": LINUX, "vmm_status": 1}, 125, "VMM failed with status 1"),
        # out of memory
        ({"oom_kills": 1, "vmm_status": 137}, 137, "out of memory: the kernel killed the VMM"),
        (
            {"oom_kills": 2, "vmm_status": 137, "killed_by": 9},
            137,
            "out of memory: the kernel killed the VMM",
        ),
        ({"oom_kills": 1, "vmm_status": None}, 137, "out of memory: the kernel killed the VMM"),
        ({"oom_kills": 1, "guest_exit": b"\x03", "vmm_status": 1}, 3, "exited with 3"),
        # we ended it
        ({"failure": "the VMM stopped: internal error", "vmm_status": 137}, 125, "the VMM stopped: internal error"),
        ({"failure": "it stopped", "vmm_status": 137, "killed_by": 15}, 125, "it stopped"),
        ({"failure": "it stopped", "vmm_status": 137, "oom_kills": 1}, 137, "out of memory: the kernel killed the VMM"),
        ({"kind": LINUX, "failure": "too late", "control_exit": 3, "vmm_status": 137}, 3, "exited with 3"),
        ({"failure": "it stopped", "vmm_status": 137, "qmp_events": [("STOP", {}), OFF]}, 125, "it stopped"),
        ({"failure": "it stopped", "vmm_status": None}, 125, "it stopped"),
        (
            {"vmm_status": 134, "vmm_log_tail": "qemu: a\x1b[1m!\nRAX=00000000\n"},
            134,
            "VMM killed by signal 6: qemu: a!",
        ),
        # what QMP told
        ({"vmm_status": 0, "qmp_events": [PANIC, shutdown("guest-panic")]}, 134, "guest panicked"),
        ({"vmm_status": 0, "qmp_events": [shutdown("guest-panic")]}, 134, "guest panicked"),
        ({"vmm_status": 137, "killed_by": 9, "qmp_events": [PANIC]}, 134, "guest panicked"),
        ({"kind": KERNEL, "vmm_status": 0, "qmp_events": [OFF]}, 0, "guest powered off"),
        ({"kind": KERNEL, "vmm_status": 0, "killed_by": 15, "qmp_events": [OFF]}, 0, "guest powered off"),
        ({"vmm_status": 0, "qmp_events": [RESET]}, 133, "guest reset (reboot or triple fault)"),
        ({"vmm_status": 0, "qmp_events": [SIGNAL]}, 143, "VMM was told to end from outside"),
        ({"vmm_status": 0, "qmp_events": [SIGNAL], "killed_by": 2}, 130, "killed by signal 2"),
        ({"vmm_status": 0, "qmp_events": [shutdown("host-error", False)]}, 125, "VMM failed: host-error"),
        ({"vmm_status": 0, "qmp_events": [("STOP", {}), ("SHUTDOWN", {})]}, 125, "VMM failed: None"),
        # what only the status tells
        ({"vmm_status": 137}, 137, "VMM killed by signal 9"),
        ({"vmm_status": 137, "killed_by": 9}, 137, "killed by signal 9"),
        ({"vmm_status": 0}, 125, "VMM failed with status 0"),
        ({"vmm_status": 0, "killed_by": 15}, 143, "killed by signal 15"),
        ({"vmm_status": None}, 137, "VMM is gone and left no status"),
        ({"vmm_status": None, "guest_exit": b"\x05"}, 5, "exited with 5"),
    ],
)
def test_table(evidence: dict[str, Any], code: int, reason: str) -> None:
    found = verdict(Evidence(**{"kind": INMATE, "arch": "x86_64", "started": True, **evidence}))
    assert (found.code, found.reason) == (code, reason)


def test_every_combination_has_a_code_and_none_is_zero_without_evidence() -> None:
    space = itertools.product(
        GuestKind,
        ("x86_64", "aarch64"),
        (None, 0, 1, 2, 85, 127, 129, 137, 139, 255),  # status
        (b"", b"\x00", b"\x07"),
        (None, 0, 9),  # control
        ((), (PANIC,), (RESET,), (OFF,), (SIGNAL,)),
        (0, 1),  # oom
        (("", None), ("qemu: failed\n", None), ("", "it stopped")),  # QEMU's log, why we ended it
        (None, 9, 15),  # killed by
        (False, True),
    )
    count = 0
    for kind, arch, status, port, control, events, oom, (log, failure), killed, started in space:
        evidence = Evidence(
            kind=kind,
            arch=arch,
            vmm_status=status,
            guest_exit=port,
            control_exit=control,
            qmp_events=events,
            oom_kills=oom,
            vmm_log_tail=log,
            killed_by=killed,
            started=started,
            failure=failure,
        )
        code, reason = verdict(evidence)
        assert 0 <= code <= 255
        assert reason
        if code == 0:
            said = control == 0 or (port == b"\x00" and (status is None or status < 128)) or OFF in events
            itself = kind is INMATE and started and not log and status == (0 if arch == "aarch64" else 1)
            assert said or itself, evidence
        count += 1
    assert count > 40_000
