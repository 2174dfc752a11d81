# SPDX-License-Identifier: Apache-2.0
"""How much RAM a guest gets: the decision every backend shares; backends add how their hypervisor is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from runphi_async.errors import PlanError
from runphi_async.units import MIB, human, round_up

if TYPE_CHECKING:
    from runphi_async.partition.spec import GuestSpec


class PerKind(Protocol):
    """Bytes for each kind of guest: the tables ``memory_default`` and ``memory_minimum`` of the
    configuration.
    """

    @property
    def inmate(self) -> int:
        """For a bare-metal program or RTOS."""

    @property
    def linux(self) -> int:
        """For a Linux guest that runs the image."""

    @property
    def kernel(self) -> int:
        """For a kernel with its own RAM disk."""


class Memory(msgspec.Struct, frozen=True):
    """The RAM decided, and why."""

    bytes: int
    explain: str


def decide(spec: GuestSpec, page_size: int, default: PerKind, minimum: PerKind, granule: int = MIB) -> Memory:
    """Turn the container's memory limit into guest RAM: whole MiB, which every hypervisor takes, or ``granule``."""
    limit, least = spec.memory_limit, int(getattr(minimum, spec.kind))
    if limit is None:
        size = round_up(int(getattr(default, spec.kind)), granule)
        return Memory(size, f"memory: {human(size)}, the default of a guest of kind {spec.kind}")
    if limit < least:
        raise PlanError(
            f"cannot give the guest {human(limit)} of memory: one of kind {spec.kind} needs {human(least)}",
            "raise the container's memory limit or set annotation org.runphi.memory",
        )
    step = max(granule, page_size)
    size = limit // step * step  # down: the guest must never have more than its limit
    note = f", rounded down to {human(size)}" if size != limit else ""
    return Memory(size, f"memory: {human(limit)} from the container's memory limit{note}")


def need(memory: Memory, end: int, base: int, what: str) -> None:
    """Check that something ending at a guest address lies in RAM that starts at ``base``.

    :raises PlanError: naming the memory the guest would need.
    """
    if end - base > memory.bytes:
        wanted = round_up(end - base, MIB)
        raise PlanError(
            f"cannot place {what} in guest memory: it ends at {end:#x}, RAM at {base + memory.bytes:#x}",
            f"the guest needs {human(wanted)}: raise the container's memory limit or set org.runphi.memory",
        )
