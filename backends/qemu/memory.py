# SPDX-License-Identifier: Apache-2.0
"""What is remembered of a QEMU guest's plan in its record."""

from __future__ import annotations

import msgspec

from backends.qemu.virtiofs import Share
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What a new supervisor must know of a guest to adopt it."""

    kind: GuestKind
    arch: str
    vcpus: int
    pins: tuple[int, ...]
    share: Share | None = None
    #: the channel that is the console
    console: Channel | None = None
    #: it has interfaces
    net: bool = False
    #: what the first VMM runs on
    accel: str = "tcg"
    #: the stub has a second command line, for software
    again: bool = False
    #: KVM is to blame when only the second one comes to our init
    vouched: bool = False
