# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the network decision: each interface is a tap whose descriptor QEMU inherits.

QEMU neither opens ``/dev/net/tun`` nor runs a script: it gets what it needs and no right to more. Without vhost every
packet passes through QEMU itself, which is in the container's cgroup; vhost would be the host kernel's work for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.qemu.machine import Machine
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from runphi_async.partition.net import Network


def transport(kind: GuestKind, machine: Machine, usual: str) -> str:
    """Return the suffix of the virtio device: a bare-metal program finds a memory-mapped one sooner than a PCI one."""
    return "device" if kind is GuestKind.INMATE and machine in (Machine.MICROVM, Machine.VIRT) else usual


def args(network: Network, kind: GuestKind, machine: Machine, usual: str, first_fd: int) -> list[str]:
    """Network devices.

    :param usual: suffix of virtio devices on this machine, as in ``comm.args``.
    :param first_fd: descriptor of the first tap in QEMU; the others follow.
    """
    # -nodefaults already leaves QEMU's default network card out: "none" is for readers
    if not network.macs:
        return ["-nic", "none"]
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
