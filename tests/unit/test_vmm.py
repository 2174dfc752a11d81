# SPDX-License-Identifier: Apache-2.0
"""The VMM of one guest: what it is ended for, and that this is said once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backends.qemu.plan import QemuPlan
from backends.qemu.vmm import Vmm
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from pathlib import Path


class Nobody:
    """Looks after nothing."""

    def heard(self, event: str) -> None:
        """Hear nothing."""

    def look(self) -> None:
        """Look at nothing."""

    def restart(self, accel: str) -> None:
        """Restart nothing."""


def made(path: Path) -> Vmm:
    plan = QemuPlan(backend="qemu", kind=GuestKind.LINUX, arch="x86_64", memory_bytes=1 << 20, vcpus=1, again=("q",))
    vmm = Vmm(plan, str(path))
    vmm.watcher = Nobody()
    return vmm


async def test_what_fails_behind_somebodys_word_is_not_why_the_guest_ended(tmp_path: Path) -> None:
    """A second VMM that is killed while it is brought up does not answer; that was 125 in place of 137 now and then."""
    vmm = made(tmp_path)
    vmm.destroy()
    vmm.fail("cannot start the guest on TCG either: QEMU has ended")
    assert vmm.remains.failure() is None
    await vmm.let_go()


async def test_the_first_failure_counts(tmp_path: Path) -> None:
    vmm = made(tmp_path)
    vmm.fail("the kernel did not reach our init")
    vmm.fail("QEMU has ended")
    assert vmm.is_doomed
    assert vmm.remains.failure() == "the kernel did not reach our init"
    await vmm.let_go()


async def test_letting_go_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    await made(tmp_path).let_go()
    assert len(os.listdir("/proc/self/fd")) <= before
