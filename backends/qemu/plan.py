# SPDX-License-Identifier: Apache-2.0
"""What a QEMU guest will be: pure data, which ``generator.py`` makes and the driver remembers it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.qemu.virtiofs import Share
from runphi_async.partition.spec import PartitionPlan

if TYPE_CHECKING:
    from runphi_async.partition.channels import Channel


class QemuPlan(PartitionPlan, frozen=True, omit_defaults=True):
    """A plan with what is to be known of QEMU's own failures."""

    #: "kvm" or "tcg"
    accel: str = "tcg"
    #: command line of a second try in software, should KVM fail before anything of the container ran
    again: tuple[str, ...] = ()
    #: kernel and command line are the configured ones: when they fail on KVM and run in software, KVM is to blame
    vouched: bool = False
    #: what the file server shares, None where there is none
    share: Share | None = None

    @property
    def console_channel(self) -> Channel | None:
        """The channel that is the console, None where that is the FIFO pair."""
        return next((channel for channel in self.channels if channel.name == self.console), None)

    def conf(self) -> tuple[str, ...]:
        """Say what is shared, and that there is a second command line; show it."""
        shared = (f"virtiofs = {self.share.path}",) if self.share is not None else ()
        if not self.again:
            return shared
        return (*shared, f"# if KVM fails before the guest's init, once more in software: {' '.join(self.again)}")
