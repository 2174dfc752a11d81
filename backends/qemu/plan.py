# SPDX-License-Identifier: Apache-2.0
"""What a QEMU guest will be: pure data, which ``generator.py`` makes and the driver remembers it by."""

from __future__ import annotations

import msgspec

from backends import recalled
from backends.qemu.virtiofs import Share
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind, PartitionPlan


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

    def conf(self) -> tuple[str, ...]:
        """Say what is shared, and that there is a second command line; show it."""
        shared = (f"virtiofs = {self.share.path}",) if self.share is not None else ()
        if not self.again:
            return shared
        return (*shared, f"# if KVM fails before the guest's init, once more in software: {' '.join(self.again)}")


class _Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What was kept of a guest before its plan was (records of version 2).

    :ivar console: the channel that is the console.
    :ivar net: it has interfaces.
    :ivar again: the stub has a second command line.
    """

    kind: GuestKind
    arch: str
    vcpus: int
    pins: tuple[int, ...]
    share: Share | None = None
    console: Channel | None = None
    net: bool = False
    accel: str = "tcg"
    again: bool = False
    vouched: bool = False


_decoder = msgspec.json.Decoder(QemuPlan)
_memory = msgspec.json.Decoder(_Memory)


def recall(kept: msgspec.Raw) -> QemuPlan:
    """Return the plan that a record keeps, as far as a guest's later life asks for it.

    :raises msgspec.ValidationError: it is damaged.
    """
    return recalled.plan_of(kept, _decoder, _plan_of)


def _plan_of(memory: bytes) -> QemuPlan:
    """Of command lines and addresses it has one empty text each: only whether there are some counts by now."""
    known = _memory.decode(memory)
    return QemuPlan(
        backend="qemu",
        kind=known.kind,
        arch=known.arch,
        memory_bytes=0,
        vcpus=known.vcpus,
        pins=known.pins,
        share=known.share,
        channels=(known.console,) if known.console is not None else (),
        console=known.console.name if known.console is not None else None,
        macs=("",) if known.net else (),
        accel=known.accel,
        again=("",) if known.again else (),
        vouched=known.vouched,
    )
