# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the CPU decision: accelerator, CPU model and count.

Pinning is no option of QEMU: the life cycle pins vCPU threads by the ids QMP tells, before the guest's
first instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.qemu.machine import accel_for
from runphi_async.partition import cpu as counts

if TYPE_CHECKING:
    from backends.qemu.machine import HostFacts
    from runphi_async.partition.cpu import Cpus
    from runphi_async.partition.spec import GuestSpec


def choose(spec: GuestSpec, facts: HostFacts) -> Cpus:
    """Decide how many vCPUs the guest has, and where."""
    return counts.decide(spec, facts.online_cpus)


def args(cpus: Cpus, arch: str, facts: HostFacts) -> list[str]:
    """Accelerator, model and count of the vCPUs."""
    accel = accel_for(facts, arch)
    out = ["-accel", accel]
    if accel == "kvm":
        out += ["-cpu", "host"]
    elif arch == "aarch64":
        # not "max": its pointer authentication costs a guest in software a third of its speed
        out += ["-cpu", "cortex-a72"]
    elif arch == "x86_64":
        out += ["-cpu", "max"]
    return [*out, "-smp", str(cpus.count)]


def explain(arch: str, facts: HostFacts) -> str:
    """Say what the guest runs on."""
    if arch != facts.arch:
        return f"cpu: software emulation, as the guest is {arch} and the host {facts.arch}"
    what = "KVM" if facts.accel == "kvm" else "software emulation"
    return f"cpu: {what}: {facts.accel_reason}" if facts.accel_reason else f"cpu: {what}"
