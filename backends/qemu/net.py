# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the network decision: each interface is a tap whose descriptor QEMU inherits.

QEMU neither opens ``/dev/net/tun`` nor runs a script: it gets what it needs and no right to more. Without vhost every
packet passes through QEMU itself, which is in the container's cgroup; vhost would be the host kernel's work for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from backends.qemu.machine import Machine
from runphi_async.lifeline import stub
from runphi_async.partition import net
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.qemu.machine import HostFacts
    from runphi_async.partition.net import Network
    from runphi_async.partition.spec import GuestSpec

#: descriptor of the first tap in QEMU where no QMP socket lies in front of it
FIRST_TAP_FD: Final = stub.FIRST_EXTRA


def choose(spec: GuestSpec, facts: HostFacts) -> Network:
    """Decide whether the guest gets interfaces, and how many.

    :raises PlanError: it asks for a network that it cannot have.
    """
    network = net.decide(spec, facts.links, facts.no_taps)
    return msgspec.structs.replace(network, explain=(*network.explain, *net.explain_netconf(spec)))


def transport(kind: GuestKind, machine: Machine, usual: str) -> str:
    """Return the suffix of the virtio device: a bare-metal program finds a memory-mapped one sooner than a PCI one."""
    return "device" if kind is GuestKind.INMATE and machine in (Machine.MICROVM, Machine.VIRT) else usual


def args(network: Network, kind: GuestKind, machine: Machine, usual: str, qmp_fd: int | None) -> list[str]:
    """Network devices.

    :param usual: suffix of virtio devices on this machine, as in ``comm.args``.
    :param qmp_fd: as in ``comm.args``; the taps follow.
    """
    # -nodefaults already leaves QEMU's default network card out: "none" is for readers
    if not network.macs:
        return ["-nic", "none"]
    first_fd = FIRST_TAP_FD if qmp_fd is None else qmp_fd + 1
    suffix = transport(kind, machine, usual)
    # no boot from the network
    rom = ",romfile=" if suffix == "pci" else ""
    out: list[str] = []
    if suffix == "device" and kind is not GuestKind.LINUX:
        out += ["-global", "virtio-mmio.force-legacy=false"]
    for number, mac in enumerate(network.macs):
        out += [
            "-netdev", f"tap,id=net{number},fd={first_fd + number},vhost=off",
            "-device", f"virtio-net-{suffix},netdev=net{number},mac={mac}{rom}",
        ]  # fmt: skip
    return out
