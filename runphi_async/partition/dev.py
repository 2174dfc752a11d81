# SPDX-License-Identifier: Apache-2.0
"""Which devices a guest has besides console and network: the decision every backend shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from runphi_async.partition.spec import GuestSpec


class Devices(msgspec.Struct, frozen=True):
    """The devices decided, and why."""

    #: the image's rootfs is shared with the guest, not copied into its memory
    share_rootfs: bool
    #: a port by which a program without an operating system says its exit code
    exit_port: bool
    #: a device by which a guest says that it panicked
    panic: bool
    #: source of random numbers: a kernel without one waits for entropy at boot
    random: bool
    explain: tuple[str, ...]


def decide(spec: GuestSpec) -> Devices:
    """Give each kind what it can use and nothing else: every device is code a guest can reach."""
    if spec.kind is GuestKind.LINUX:
        mode = "read-only in the guest" if spec.readonly_root else "writable"
        return Devices(
            share_rootfs=True,
            exit_port=False,
            panic=True,
            random=True,
            explain=(f"dev: rootfs shared by virtiofs, {mode}",),
        )
    if spec.kind is GuestKind.KERNEL:
        return Devices(
            share_rootfs=False,
            exit_port=False,
            panic=True,
            random=True,
            explain=("dev: no disk, the root is the RAM disk",),
        )
    return Devices(
        share_rootfs=False,
        exit_port=True,
        panic=True,
        random=False,
        explain=("dev: exit port and panic device",),
    )
