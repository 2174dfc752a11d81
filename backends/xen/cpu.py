# SPDX-License-Identifier: Apache-2.0
"""Xen half of the CPU decision: count, places, cpupool and the scheduler's parameters.

The container's cpuset names CPUs of the machine: dom0's own numbers are virtual ones. Weight and cap are parameters
of the credit schedulers; the null scheduler gives each vCPU a CPU of its own and takes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen.machine import wish
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts
    from backends.xen.xlcfg import Value
    from runphi_async.partition.cpu import Cpus
    from runphi_async.partition.spec import GuestSpec

_WEIGHT_MAX: Final = 65535
_WEIGHING: Final = ("credit", "credit2")


def keys(spec: GuestSpec, cpus: Cpus, facts: HostFacts) -> dict[str, Value]:
    """vCPUs and how they are scheduled.

    :raises PlanError: the pool or the parameter is not to be had.
    """
    out: dict[str, Value] = {"vcpus": cpus.count}
    if cpus.pins:
        out["cpus"] = tuple(str(cpu) for cpu in cpus.pins)
    pool = wish(spec, "pool")
    if pool is not None:
        if pool not in facts.pools:
            raise PlanError(
                f"cannot run the guest in cpupool {pool}: there is none", f"there is: {', '.join(facts.pools)}"
            )
        out["pool"] = pool
    weight = _number(spec, "weight", 1, _WEIGHT_MAX)
    cap = _number(spec, "cap", 0, cpus.count * 100)
    if cap is None and spec.cpu_quota is not None and facts.scheduler in _WEIGHING:
        # The container's CPU limit, to the percent: vCPUs alone would round it up to whole CPUs.
        cap = max(1, min(cpus.count * 100, spec.cpu_quota * 100 // (spec.cpu_period or 100_000)))
    for key, value in (("cpu_weight", weight), ("cap", cap)):
        if value is None:
            continue
        if pool is None and facts.scheduler not in _WEIGHING:
            raise PlanError(
                f"cannot set {key}: the scheduler {facts.scheduler} has no such parameter",
                "leave the annotation out, or name a cpupool with the scheduler credit2",
            )
        out[key] = value
    return out


def explain(entries: dict[str, Value]) -> list[str]:
    """Say where and how the vCPUs run."""
    told = [f"{name} {entries[key]}" for key, name in _NAMES.items() if key in entries]
    return [f"cpu: {', '.join(told)}"] if told else []


_NAMES: Final = {"pool": "cpupool", "cpu_weight": "weight", "cap": "cap, in percent of a CPU,"}


def _number(spec: GuestSpec, name: str, least: int, most: int) -> int | None:
    text = wish(spec, name)
    if text is None:
        return None
    if not text.isdecimal() or not least <= int(text) <= most:
        raise PlanError(f"cannot set {name} {text!r}: not a number from {least} to {most}")
    return int(text)
