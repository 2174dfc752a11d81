# SPDX-License-Identifier: Apache-2.0
"""Xen half of the CPU decision: count, places, cpupool and the scheduler's parameters.

The container's cpuset names CPUs of the machine: dom0's own numbers are virtual ones. Which parameters there are
depends on the scheduler of the pool the guest runs in:

=================  ====================================================================
credit, credit2    weight and cap
rtds               a budget in each period, for every vCPU
null               none: each vCPU has a CPU of its own, so there must be enough of them
=================  ====================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen.wishes import PERIOD_MAX, PERIOD_MIN
from runphi_async.errors import PlanError
from runphi_async.partition import cpu as counts

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, Pool
    from backends.xen.wishes import XenWishes
    from backends.xen.xlcfg import Value
    from runphi_async.partition.cpu import Cpus
    from runphi_async.partition.spec import GuestSpec

_PERIOD_USUAL: Final = 100_000
#: Schedulers that know a parameter.
_KNOWN_BY: Final = {
    "cpu_weight": ("credit", "credit2"),
    "cap": ("credit", "credit2"),
    "period": ("rtds",),
    "budget": ("rtds",),
}


def choose(spec: GuestSpec, facts: HostFacts) -> Cpus:
    """Decide how many vCPUs the guest has, and where."""
    return counts.decide(spec, facts.cpus)


def keys(spec: GuestSpec, wishes: XenWishes, cpus: Cpus, facts: HostFacts) -> dict[str, Value]:
    """vCPUs and how they are scheduled.

    :raises PlanError: the pool or the parameter is not to be had.
    """
    out: dict[str, Value] = {"vcpus": cpus.count}
    if cpus.pins:
        out["cpus"] = tuple(str(cpu) for cpu in cpus.pins)
    scheduler = facts.scheduler
    if wishes.pool is not None:
        pool = _pool(wishes.pool, cpus, facts)
        out["pool"] = pool.name
        scheduler = pool.scheduler
    wanted = {
        "cpu_weight": wishes.weight,
        "cap": wishes.cap,
        "period": wishes.period,
        "budget": wishes.budget,
    }
    if wishes.cap is not None and wishes.cap > cpus.count * 100:
        raise PlanError(f"cannot set cap '{wishes.cap}': not a number from 0 to {cpus.count * 100}")
    if spec.cpu_quota is not None:
        for key, value in _limit(spec.cpu_quota, spec.cpu_period or _PERIOD_USUAL, cpus.count, scheduler).items():
            if wanted[key] is None:
                wanted[key] = value
    for key, number in wanted.items():
        if number is None:
            continue
        if scheduler not in _KNOWN_BY[key]:
            raise PlanError(
                f"cannot set {key}: the scheduler {scheduler} has no such parameter",
                f"leave the annotation out, or name a cpupool with the scheduler {_KNOWN_BY[key][-1]}",
            )
        out[key] = number
    _check_budget(out)
    return out


def _limit(quota: int, period: int, vcpus: int, scheduler: str) -> dict[str, int]:
    """The container's CPU limit as this scheduler has it: vCPUs alone would round it up to whole CPUs."""
    if scheduler in _KNOWN_BY["cap"]:
        return {"cap": max(1, min(vcpus * 100, quota * 100 // period))}
    if scheduler in _KNOWN_BY["budget"]:
        budget = max(PERIOD_MIN, min(period, quota // vcpus))
        return {"period": max(PERIOD_MIN, min(period, PERIOD_MAX)), "budget": budget}
    return {}


def _pool(name: str, cpus: Cpus, facts: HostFacts) -> Pool:
    """The pool, if the guest fits into it: xl would make a guest whose vCPUs never run."""
    pool = next((pool for pool in facts.pools if pool.name == name), None)
    if pool is None:
        there = ", ".join(pool.name for pool in facts.pools)
        raise PlanError(f"cannot run the guest in cpupool {name}: there is none", f"there is: {there}")
    outside = [str(cpu) for cpu in cpus.pins if cpu not in pool.cpus]
    if outside:
        raise PlanError(
            f"cannot pin to CPU {', '.join(outside)}: cpupool {name} has {_listed(pool)}", "name CPUs of the pool"
        )
    if pool.scheduler == "null" and cpus.count > len(pool.cpus):
        raise PlanError(
            f"cannot run {cpus.count} vCPUs in cpupool {name}: "
            f"its scheduler null gives each a CPU of its own, and it has {_listed(pool)}",
            "ask for fewer with annotation org.runphi.vcpus",
        )
    return pool


def _listed(pool: Pool) -> str:
    return f"CPU {', '.join(map(str, pool.cpus))}" if pool.cpus else "no CPU"


def _check_budget(out: dict[str, Value]) -> None:
    period, budget = out.get("period"), out.get("budget")
    if (period is None) != (budget is None):
        raise PlanError(
            "cannot set the budget: RTDS needs both, a period and a budget",
            "set org.runphi.xen.period and org.runphi.xen.budget",
        )
    if isinstance(period, int) and isinstance(budget, int) and budget > period:
        raise PlanError(f"cannot give a budget of {budget} us in a period of {period} us", "the period is the most")


def explain(entries: dict[str, Value]) -> list[str]:
    """Say where and how the vCPUs run."""
    told = [f"{name} {entries[key]}" for key, name in _NAMES.items() if key in entries]
    return [f"cpu: {', '.join(told)}"] if told else []


_NAMES: Final = {
    "pool": "cpupool",
    "cpu_weight": "weight",
    "cap": "cap, in percent of a CPU,",
    "budget": "microseconds of CPU",
    "period": "in a period of",
}
