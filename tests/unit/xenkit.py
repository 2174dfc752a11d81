# SPDX-License-Identifier: Apache-2.0
"""A host with Xen and a guest image, for tests of Xen's config generator."""

from __future__ import annotations

from backends.xen.machine import HostFacts, Pool
from runphi_async.partition.image import ImageFacts, ImageFormat, Segment
from runphi_async.units import MIB

IMAGE = ImageFacts(ImageFormat.ELF, 9000, "x86_64", 64, 0x100100, (Segment(0x100000, 0x102000),), 0x100100)
POOLS = (
    Pool("Pool-0", "credit2", (0, 1, 2)),
    Pool("still", "null", (3,)),
    Pool("timed", "rtds", (4, 5)),
)
FACTS = HostFacts(
    arch="x86_64",
    cpus=tuple(range(6)),
    free_memory=1024 * MIB,
    pools=POOLS,
    scheduler="credit2",
    hvm=True,
    device_model="/usr/libexec/xen-qemu-system-i386",
    image=IMAGE,
)
