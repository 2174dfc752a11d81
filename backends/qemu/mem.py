# SPDX-License-Identifier: Apache-2.0
"""QEMU half of the memory decision: ``-m``, or a shared memory file when the rootfs is shared by virtiofs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runphi_async.partition import mem as sizes
from runphi_async.units import MIB

if TYPE_CHECKING:
    from backends.qemu.machine import HostFacts, PlanConfig
    from runphi_async.partition.mem import Memory
    from runphi_async.partition.spec import GuestSpec

BACKEND_ID: Final = "mem"


def choose(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> Memory:
    """Decide how much the guest gets."""
    return sizes.decide(spec, facts.page_size, config.memory_default, config.memory_minimum)


def machine_options(shared: bool) -> list[str]:
    """Options of the machine itself."""
    return [f"memory-backend={BACKEND_ID}"] if shared else []


def args(memory: Memory, shared: bool) -> list[str]:
    """Guest RAM; ``shared`` lets the virtiofs daemon see it."""
    size = f"{memory.bytes // MIB}M"
    if not shared:
        return ["-m", size]
    return ["-m", size, "-object", f"memory-backend-memfd,id={BACKEND_ID},size={size},share=on"]
