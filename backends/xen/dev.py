# SPDX-License-Identifier: Apache-2.0
"""Xen half of the devices: disks, shared directories, devices of the host handed over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen import fields
from backends.xen.machine import allow
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.wishes import XenWishes
    from backends.xen.xlcfg import Value

#: the disk with the image's root filesystem, if it is one
ROOT_DISK: Final = "xvda"


def keys(wishes: XenWishes, facts: HostFacts, config: PlanConfig) -> dict[str, Value]:
    """Devices a container asked for by annotation, each allowed by the configuration.

    :raises PlanError: one is not allowed, or cannot work here.
    """
    out: dict[str, Value] = {}
    for disk in wishes.disk:
        # a format other than raw names further files, in the disk itself: whoever may write there chooses them
        prefix = "" if disk["format"] == "raw" else f"{disk['format']}:"
        allow("disk", prefix + disk["target"], config.devices)
    for share in wishes.p9:
        allow("directory", share["path"], config.devices)
    if wishes.p9:
        need_device_model("a directory by 9pfs", facts)
    handed = {"pci": wishes.pci, "iomem": wishes.iomem, "irqs": wishes.irqs, "dtdev": wishes.dtdev}
    for name, devices in handed.items():
        for device in devices:
            allow(name, device, config.devices)
        if devices:
            out[name] = devices
    for region in wishes.static_shm:
        allow("static shared memory", region["id"], config.devices)
    if wishes.static_shm and not facts.static_shm:
        raise PlanError(
            "cannot share static memory: this version of xl has no static_shm, and would make the guest without it",
            "Xen has it on Arm only; use org.runphi.xen.channel, or a network of the guests' own",
        )
    if wishes.static_shm:
        out["static_shm"] = tuple(map(fields.written, wishes.static_shm))
    if wishes.disk:
        out["disk"] = tuple(map(fields.disk_written, wishes.disk))
    if wishes.p9:
        out["p9"] = tuple(map(fields.written, wishes.p9))
    return out


def need_device_model(what: str, facts: HostFacts) -> None:
    """Refuse what needs a QEMU in dom0 when there is none: libxl would fail late and at length."""
    if facts.device_model is None:
        raise PlanError(f"cannot have {what}: Xen 4.17 needs a device model for it",
                        "apt-get install qemu-system-xen in dom0")  # fmt: skip
