# SPDX-License-Identifier: Apache-2.0
"""What the Xen halves of the plan share: facts about the host, settings, kinds of guests, what is allowed."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from runphi_async.errors import PlanError
from runphi_async.host.nic import Link
from runphi_async.partition.image import ImageFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.partition.mem import PerKind


class Type(StrEnum):
    """The kinds of guests Xen has on x86; arm64 has one, which its tools call pvh."""

    PV = "pv"
    PVH = "pvh"
    HVM = "hvm"


class Pool(msgspec.Struct, frozen=True):
    """One cpupool: CPUs with a scheduler of their own."""

    name: str
    scheduler: str
    cpus: tuple[int, ...]


class HostFacts(msgspec.Struct, frozen=True):
    """What is true of this machine and image, gathered before a plan is made."""

    arch: str
    #: CPUs of the whole machine; dom0 may have fewer
    cpus: tuple[int, ...]
    #: bytes Xen can still give
    free_memory: int
    #: the cpupools, if the container asks for one
    pools: tuple[Pool, ...]
    #: the scheduler of Pool-0: credit, credit2, null, rtds …
    scheduler: str
    #: whether the processor can run PVH and HVM guests
    hvm: bool
    #: the device model that libxl would run, None: there is none
    device_model: str | None
    image: ImageFacts
    #: whether this version of xl knows memory shared between guests from the start
    static_shm: bool = False
    #: why a vchan cannot be had, if the container asks for one; "" = it can
    no_vchan: str = ""
    page_size: int = 4096
    #: contents of the RAM disk with our init
    initrd: bytes | None = None
    #: bytes of the image's files, for a Linux guest
    rootfs_bytes: int = 0
    #: contents of the files that the guest gets copies of, by path
    copies: dict[str, bytes] = {}
    #: interfaces in the container's network namespace; None: it uses the host's
    links: tuple[Link, ...] | None = None
    #: why no card can be made, "" when one can
    no_vifs: str = ""


class PlanConfig(Protocol):
    """What a plan asks of the ``[xen]`` table of the configuration."""

    @property
    def kernel(self) -> str:
        """Kernel of Linux guests whose image brings none."""

    @property
    def memory_default(self) -> PerKind:
        """RAM of a guest whose container has no memory limit."""

    @property
    def memory_minimum(self) -> PerKind:
        """Least RAM of a guest."""

    @property
    def ramdisk_max_bytes(self) -> int:
        """Largest root filesystem that goes into the guest's RAM."""

    @property
    def image_dir(self) -> str:
        """Where disks of Linux guests are made."""

    @property
    def bridges(self) -> Sequence[str]:
        """Bridges that containers may use."""

    @property
    def devices(self) -> Sequence[str]:
        """Devices and paths of the host that containers may use."""


def allow(what: str, device: str, allowed: Sequence[str]) -> None:
    """Check that the administrator lets containers use a device or path of the host.

    :raises PlanError: naming the key to set.
    """
    if device.startswith("/") and os.path.normpath(device) != device:  # ".." would lead out of what is allowed
        raise PlanError(f"cannot use {what} {device}: it is not the plain name of a path")
    for entry in allowed:
        if device == entry or (entry.startswith("/") and device.startswith(entry.rstrip("/") + "/")):
            return
    raise PlanError(f"cannot use {what} {device}: the configuration does not allow it", "add it to devices under [xen]")
