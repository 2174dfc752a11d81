# SPDX-License-Identifier: Apache-2.0
"""How many vCPUs a guest has and on which host CPUs they run: the decision every backend shares.

The count is, first hit wins: annotation ``org.runphi.vcpus``; the CPU limit (quota / period) rounded up,
because less would throttle a guest that may use more and more would only be throttled; the size of the
cpuset; one. It never exceeds the host's CPUs. With a cpuset each vCPU is pinned to one CPU of it, in
ascending order, and shares only when there are more vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.partition.spec import GuestSpec

#: microseconds; what the kernel uses when only a quota is given
DEFAULT_PERIOD: Final = 100_000


class Cpus(msgspec.Struct, frozen=True):
    """The vCPUs decided, and why."""

    count: int
    #: the host CPU of each vCPU; empty = unpinned
    pins: tuple[int, ...]
    explain: tuple[str, ...]


def decide(spec: GuestSpec, online: Sequence[int], word: str = "online") -> Cpus:
    """Turn quota, period and cpuset into vCPUs and their places.

    :param online: the CPUs guests may run on, and ``word`` what they are called.
    """
    absent = [cpu for cpu in spec.cpuset if cpu not in online]
    if absent:
        raise PlanError(
            f"cannot pin the guest to CPU {absent[0]}: it is not {word}",
            f"{word}: {', '.join(map(str, online)) or 'none'}",
        )
    usable = spec.cpuset or tuple(online)
    count, why = _count(spec)
    if spec.vcpus is None and count > len(usable):
        why += f", held to the {len(usable)} CPUs it may use"
        count = len(usable)
    explain = [f"cpu: {count} vCPU{'s' if count > 1 else ''} {why}"]
    pins: tuple[int, ...] = ()
    if spec.cpuset:
        pins = tuple(spec.cpuset[i % len(spec.cpuset)] for i in range(count))
        where = ", ".join(map(str, pins))
        explain.append(f"cpu: vCPUs pinned to host CPUs {where}, from the container's cpuset")
    return Cpus(count, pins, tuple(explain))


def _count(spec: GuestSpec) -> tuple[int, str]:
    if spec.vcpus is not None:
        return spec.vcpus, "from annotation org.runphi.vcpus"
    if spec.cpu_quota is not None:
        period = spec.cpu_period or DEFAULT_PERIOD
        return max(1, -(-spec.cpu_quota // period)), f"from the CPU limit {spec.cpu_quota}/{period}"
    if spec.cpuset:
        return len(spec.cpuset), "from the size of the cpuset"
    return 1, "by default"
