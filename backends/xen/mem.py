# SPDX-License-Identifier: Apache-2.0
"""Xen half of the memory decision: the domain's size, refused at once when the machine has not got it.

The domain's memory is Xen's, not dom0's: no cgroup sees it. What Xen spends besides is a little for each domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runphi_async.errors import PlanError
from runphi_async.partition import mem as sizes
from runphi_async.units import MIB, human

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.xlcfg import Value
    from runphi_async.partition.mem import Memory
    from runphi_async.partition.spec import GuestSpec

#: What Xen needs for a domain besides its RAM: page tables of its own, the shadow of a PVH guest, grant tables.
OVERHEAD: Final = 4 * MIB


def choose(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> Memory:
    """Decide how much the guest gets."""
    return sizes.decide(spec, facts.page_size, config.memory_default, config.memory_minimum)


def keys(memory: Memory, facts: HostFacts) -> dict[str, Value]:
    """Memory of the domain, for good: no ballooning.

    :raises PlanError: dom0 and the other domains have too much of it.
    """
    wanted = memory.bytes + OVERHEAD + memory.bytes // 128
    if wanted > facts.free_memory:
        raise PlanError(
            f"cannot give the guest {human(memory.bytes)}: Xen has {human(facts.free_memory)} left",
            "end other domains, or give dom0 less (dom0_mem= on Xen's command line, or xl mem-set 0)",
        )
    size = memory.bytes // MIB
    return {"memory": size, "maxmem": size}
