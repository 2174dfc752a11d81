# SPDX-License-Identifier: Apache-2.0
"""Images, a host, and a plan of QEMU's config generator to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from backends.qemu import generator as planner
from backends.qemu.machine import HostFacts
from backends.qemu.settings import Qemu
from runphi_async.partition.image import ImageFacts, ImageFormat, Segment
from runphi_async.partition.spec import GuestKind, GuestSpec, PartitionPlan, ProcessSpec
from runphi_async.units import MIB

if TYPE_CHECKING:
    from backends.qemu.plan import QemuPlan

PVH = ImageFacts(ImageFormat.ELF, 9000, "x86_64", 64, 0x100100, (Segment(0x100000, 0x102000),), 0x100100)
MULTIBOOT = msgspec.structs.replace(PVH, bits=32, pvh_entry=None, multiboot=True)
ARM = ImageFacts(ImageFormat.ELF, 9000, "aarch64", 64, 0x40080000, (Segment(0x40080000, 0x40090000),))
FLAT = ImageFacts(ImageFormat.FLAT, 3 * MIB)
BZIMAGE = ImageFacts(ImageFormat.BZIMAGE, 9000, "x86_64")
ARM_IMAGE = ImageFacts(ImageFormat.ARM64_IMAGE, 9000, "aarch64")

FACTS = HostFacts(
    accel="tcg",
    arch="x86_64",
    binaries={"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"},
    online_cpus=(0, 1, 2, 3),
    image=PVH,
)


def plan(image: ImageFacts = PVH, facts: HostFacts = FACTS, **asked: Any) -> QemuPlan:
    fields: dict[str, Any] = {"id": "c1", "kind": GuestKind.INMATE, "rootfs": "/r", "inmate": "/r/i", **asked}
    return planner.plan(GuestSpec(**fields), msgspec.structs.replace(facts, image=image), Qemu())


def options(found: PartitionPlan, name: str) -> list[str]:
    return [value for option, value in zip(found.argv, found.argv[1:], strict=False) if option == name]


def option(found: PartitionPlan, name: str) -> str:
    (value,) = options(found, name)
    return value


LINUX: dict[str, Any] = {
    "kind": GuestKind.LINUX,
    "inmate": None,
    "process": ProcessSpec(("sh",)),
    "facts": msgspec.structs.replace(FACTS, kernel="/var/vmlinux", initrd=b"base"),
}
