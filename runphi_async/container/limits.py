# SPDX-License-Identifier: Apache-2.0
"""What a container's resources mean for its cgroup, which holds a VMM and its guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.host.cgroup import Limits

if TYPE_CHECKING:
    from runphi_async.oci import spec as oci


def limits(spec: oci.Spec, overhead: int) -> Limits:
    """Return the cgroup limits: the guest's memory is the container's limit, the VMM's own comes on top."""
    resources = spec.linux.resources if spec.linux is not None else None
    if resources is None:
        return Limits()
    memory, cpu = resources.memory, resources.cpu
    limit = memory.limit if memory is not None else None
    bounded = limit is not None and limit > 0
    return Limits(
        memory_bytes=limit + overhead if limit is not None and bounded else None,
        cpu_shares=cpu.shares if cpu is not None else None,
        cpu_quota=cpu.quota if cpu is not None else None,
        cpu_period=cpu.period if cpu is not None else None,
        cpuset_cpus=cpu.cpus if cpu is not None else "",
        cpuset_mems=cpu.mems if cpu is not None else "",
    )
