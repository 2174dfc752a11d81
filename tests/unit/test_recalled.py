# SPDX-License-Identifier: Apache-2.0
"""What records keep of guests, as builds before this one wrote it: byte for byte, for their guests live on."""

from __future__ import annotations

import msgspec
import pytest

from backends.jailhouse import plan as jailhouse
from backends.qemu import plan as qemu
from backends.qemu.virtiofs import Share
from backends.xen import plan as xen
from runphi_async.partition.channels import Channel
from runphi_async.partition.spec import GuestKind

#: As records of version 2 have it.
LINUX = (
    b'{"kind":"linux","arch":"x86_64","vcpus":2,"pins":[0,1],"share":{"path":"/bundle/rootfs","binds":[]},'
    b'"console":null,"net":true,"accel":"kvm","again":true,"vouched":true}'
)
INMATE = (
    b'{"kind":"inmate","arch":"aarch64","vcpus":1,"pins":[],"share":null,"console":{"name":"uart","place":"tty:/dev/x"},'
    b'"net":false,"accel":"tcg","again":false,"vouched":false}'
)
CELL = (
    b'{"cell":{"name":"c1","board":"qemu-x86","dialect":"0.12","arch":"x86_64","cpus":[3],"rpus":[],"regions":[],'
    b'"chips":[],"devices":[],"uart":{},"virtual_console":"no","console":{},"passive":false,"reply_timeout":0,'
    b'"reset_address":0,"vpci_irq_base":0,"loads":[]},"console":null}'
)


def test_qemus_guests() -> None:
    plan = qemu.recall(msgspec.Raw(LINUX))
    assert (plan.kind, plan.arch, plan.vcpus, plan.pins) == (GuestKind.LINUX, "x86_64", 2, (0, 1))
    assert plan.share == Share("/bundle/rootfs")
    assert (plan.accel, plan.vouched, bool(plan.again), bool(plan.macs)) == ("kvm", True, True, True)
    assert plan.console_channel is None
    plan = qemu.recall(msgspec.Raw(INMATE))
    assert plan.console_channel == Channel("uart", place="tty:/dev/x")
    assert (plan.share, plan.again, plan.macs, plan.pins) == (None, (), (), ())


def test_xens_domains() -> None:
    plan = xen.recall(msgspec.Raw(b'{"kind":"linux","disk_dir":"/var/lib/runphi/images","net":true}'))
    assert (plan.kind, plan.disk_dir, bool(plan.macs)) == (GuestKind.LINUX, "/var/lib/runphi/images", True)
    plan = xen.recall(msgspec.Raw(b'{"kind":"inmate","disk_dir":null,"net":false}'))
    assert (plan.kind, plan.disk_dir, plan.macs) == (GuestKind.INMATE, None, ())


def test_cells() -> None:
    plan = jailhouse.recall(msgspec.Raw(CELL))
    assert (plan.cell.name, plan.cell.cpus, plan.console, plan.channels) == ("c1", (3,), None, ())


@pytest.mark.parametrize("module", [qemu, xen, jailhouse])
@pytest.mark.parametrize("kept", [b"{}", b"[]", b'{"kind":"lunix"}', b'{"backend":"qemu"}', b'{"cell":{"name":"c1"}}'])
def test_what_is_damaged(module: object, kept: bytes) -> None:
    """It says what is missing of a plan, in whichever way it was damaged."""
    with pytest.raises(msgspec.ValidationError):
        module.recall(msgspec.Raw(kept))  # type: ignore[attr-defined]
