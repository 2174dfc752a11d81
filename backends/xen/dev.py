# SPDX-License-Identifier: Apache-2.0
"""Xen half of the devices: disks, shared directories, devices of the host handed over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backends.xen.machine import allow, wishes
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: the disk with the image's root filesystem, if it is one
ROOT_DISK: Final = "xvda"
_PCI: Final = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE)
_IOMEM: Final = re.compile(r"[0-9a-f]+,[0-9a-f]+(?:@[0-9a-f]+)?", re.IGNORECASE)


def keys(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> dict[str, Value]:
    """Devices a container asked for by annotation, each allowed by the configuration.

    :raises PlanError: one is not allowed, or cannot work here.
    """
    out: dict[str, Value] = {}
    disks = wishes(spec, "disk")
    for disk in disks:
        allow("disk", disk_target(disk), config.devices)
    shares = wishes(spec, "p9")
    for share in shares:
        allow("directory", _field(share, "path"), config.devices)
    if shares:
        need_device_model("a directory by 9pfs", facts)
    for name, pattern in (
        ("pci", _PCI),
        ("iomem", _IOMEM),
        ("irqs", re.compile(r"\d+")),
        ("dtdev", re.compile(r"/.+")),
    ):
        devices = wishes(spec, name)
        for device in devices:
            if not pattern.fullmatch(device):
                raise PlanError(f"cannot hand over {name} {device!r}: it is not written as xl.cfg has it")
            allow(name, device, config.devices)
        if devices:
            out[name] = devices
    regions = wishes(spec, "static-shm")
    for region in regions:
        allow("static shared memory", _field(region, "id"), config.devices)
    if regions and not facts.static_shm:
        raise PlanError(
            "cannot share static memory: this version of xl has no static_shm, and would make the guest without it",
            "Xen has it on Arm only; use org.runphi.xen.channel, or a network of the guests' own",
        )
    if regions:
        out["static_shm"] = regions
    if disks:
        out["disk"] = disks
    if shares:
        out["p9"] = shares
    return out


def need_device_model(what: str, facts: HostFacts) -> None:
    """Refuse what needs a QEMU in dom0 when there is none: libxl would fail late and at length."""
    if facts.device_model is None:
        raise PlanError(f"cannot have {what}: Xen 4.17 needs a device model for it",
                        "apt-get install qemu-system-xen in dom0")  # fmt: skip


def disk_target(disk: str) -> str:
    """Return the file or device of an xl disk specification, in either of its two forms."""
    for part in disk.split(","):
        if part.startswith("target="):
            return part.removeprefix("target=")
    first = disk.split(",", 1)[0]
    return first.split(":", 1)[1] if first.startswith(("phy:", "file:")) else first


def _field(text: str, name: str) -> str:
    for part in text.split(","):
        if part.startswith(name + "="):
            return part.removeprefix(name + "=")
    raise PlanError(f"cannot understand {text!r}: it says no {name}=")
