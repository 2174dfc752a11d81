# SPDX-License-Identifier: Apache-2.0
"""What the OCI resource limits are called in cgroup v1 and v2: pure tables, used by `runphi_async.host.cgroup`.

0 means "not given" and -1 "no limit", as in the OCI runtime specification. The order of the files is the
one that usually works; the writer finds another where it does not.
"""

from __future__ import annotations

from typing import NamedTuple

from runphi_async.errors import CgroupError

#: files of each controller with the value to write; None is "leave as is"
Files = dict[str, list[tuple[str, str | None]]]


class Limits(NamedTuple):
    """What to limit; None leaves as is. `memory_swap_bytes` counts memory and swap together."""

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None


def v1_files(limits: Limits) -> Files:
    """Return the cgroup v1 files for the limits."""

    def text(value: int | None) -> str | None:
        return str(value) if value else None

    return {
        "memory": [
            ("memory.limit_in_bytes", text(limits.memory_bytes)),
            ("memory.memsw.limit_in_bytes", text(limits.memory_swap_bytes)),
        ],
        "cpu": [
            ("cpu.shares", text(limits.cpu_shares)),
            ("cpu.cfs_period_us", text(limits.cpu_period)),
            ("cpu.cfs_quota_us", text(limits.cpu_quota)),
        ],
        "cpuset": _cpuset_files(limits),
        "pids": [("pids.max", _or_max(limits.pids))],
    }


def v2_files(limits: Limits) -> Files:
    """Return the cgroup v2 files for the limits."""
    weight = bandwidth = None
    if limits.cpu_shares:
        weight = str(1 + (min(max(limits.cpu_shares, 2), 262144) - 2) * 9999 // 262142)
    if limits.cpu_quota or limits.cpu_period:
        bandwidth = f"{_or_max(limits.cpu_quota) or 'max'} {limits.cpu_period or 100000}"
    return {
        "memory": [("memory.max", _or_max(limits.memory_bytes)), ("memory.swap.max", _v2_swap(limits))],
        "cpu": [("cpu.weight", weight), ("cpu.max", bandwidth)],
        "cpuset": _cpuset_files(limits),
        "pids": [("pids.max", _or_max(limits.pids))],
    }


def _v2_swap(limits: Limits) -> str | None:
    both, memory = limits.memory_swap_bytes, limits.memory_bytes
    if not both or both < 0:
        return _or_max(both)
    if not memory or memory < 0 or both < memory:
        raise CgroupError(
            f"cannot limit memory and swap to {both} bytes: the memory limit is {memory}",
            "resources.memory.swap counts both: give a limit too, and no more than swap",
        )
    return str(both - memory)


def _cpuset_files(limits: Limits) -> list[tuple[str, str | None]]:
    return [("cpuset.cpus", limits.cpuset_cpus or None), ("cpuset.mems", limits.cpuset_mems or None)]


def _or_max(value: int | None) -> str | None:
    if not value:
        return None
    return "max" if value < 0 else str(value)
