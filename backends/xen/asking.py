# SPDX-License-Identifier: Apache-2.0
"""What Xen tells of itself, by ``xl``: each question is a process, so nothing is asked that nobody wants to know."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.xen.states import parse_pools

if TYPE_CHECKING:
    from backends.xen.hypervisor import Hypervisor
    from backends.xen.machine import Pool

_INFO: Final = re.compile(r"^(\w+)\s*: ?(.*)$", re.MULTILINE)


class XlInfo(NamedTuple):
    """What the hypervisor has told of itself.

    :ivar info: what ``xl info`` says.
    :ivar free: bytes that it can still give.
    :ivar pools: cpupools, if the container asks for one.
    """

    info: dict[str, str]
    free: int
    pools: tuple[Pool, ...]

    @property
    def hvm(self) -> bool:
        """Whether the processor can run PVH and HVM guests."""
        return has_hvm(self.info)


def has_hvm(info: dict[str, str]) -> bool:
    """Whether ``xl info`` says that the processor can run PVH and HVM guests."""
    return "hvm" in info.get("virt_caps", "").split() or "hvm-" in info.get("xen_caps", "")


async def info(xen: Hypervisor) -> dict[str, str]:
    """Ask ``xl info``; it needs dom0.

    :raises BackendError: it does not answer.
    """
    return dict(_INFO.findall(await xen.xl.must("ask Xen what it is", "info")))


async def ask(xen: Hypervisor, known: dict[str, str], pool: str | None) -> XlInfo:
    """Ask what a plan wants to know.

    :param known: what ``info`` has said.
    :param pool: the cpupool that the container asks for; without one the cpupools are not asked for: that costs two
        processes.
    :raises BackendError: it does not answer.
    """
    free = await xen.free_memory()
    if pool is None:
        return XlInfo(known, free, ())
    table = await xen.xl.must("list the cpupools", "cpupool-list")
    return XlInfo(
        known, free, parse_pools(table, await xen.xl.must("list the CPUs of the cpupools", "cpupool-list", "-c"))
    )
