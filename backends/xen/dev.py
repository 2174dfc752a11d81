# SPDX-License-Identifier: Apache-2.0
"""Xen half of the devices: disks, shared directories, devices of the host handed over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backends.xen import fields
from backends.xen.machine import allow, wishes
from runphi_async.errors import PlanError

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.xlcfg import Value
    from runphi_async.partition.spec import GuestSpec

#: the disk with the image's root filesystem, if it is one
ROOT_DISK: Final = "xvda"
_PCI: Final = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE)
#: a node of a device tree, whose names may hold commas
_DTDEV: Final = re.compile(r"/[\w,.+@/-]{1,500}", re.ASCII)
_IOMEM: Final = re.compile(r"[0-9a-f]+,[0-9a-f]+(?:@[0-9a-f]+)?", re.IGNORECASE)


def keys(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> dict[str, Value]:
    """Devices a container asked for by annotation, each allowed by the configuration.

    :raises PlanError: one is not allowed, or cannot work here.
    """
    out: dict[str, Value] = {}
    disks = [fields.disk(text) for text in wishes(spec, "disk")]
    for disk in disks:
        # a format other than raw names further files, in the disk itself: whoever may write there chooses them
        prefix = "" if disk["format"] == "raw" else f"{disk['format']}:"
        allow("disk", prefix + disk["target"], config.devices)
    shares = [_named("directory", text, fields.P9, "path") for text in wishes(spec, "p9")]
    for share in shares:
        allow("directory", share["path"], config.devices)
    if shares:
        need_device_model("a directory by 9pfs", facts)
    for name, pattern in (
        ("pci", _PCI),
        ("iomem", _IOMEM),
        ("irqs", re.compile(r"[0-9]{1,5}")),
        ("dtdev", _DTDEV),
    ):
        devices = wishes(spec, name)
        for device in devices:
            if not pattern.fullmatch(device):
                raise PlanError(f"cannot hand over {name} {device!r}: it is not written as xl.cfg has it")
            allow(name, device, config.devices)
        if devices:
            out[name] = devices
    regions = [_named("memory", text, fields.STATIC_SHM, "id") for text in wishes(spec, "static-shm")]
    for region in regions:
        allow("static shared memory", region["id"], config.devices)
    if regions and not facts.static_shm:
        raise PlanError(
            "cannot share static memory: this version of xl has no static_shm, and would make the guest without it",
            "Xen has it on Arm only; use org.runphi.xen.channel, or a network of the guests' own",
        )
    if regions:
        out["static_shm"] = tuple(map(fields.written, regions))
    if disks:
        out["disk"] = tuple(map(fields.disk_written, disks))
    if shares:
        out["p9"] = tuple(map(fields.written, shares))
    return out


def _named(what: str, text: str, form: fields.Form, needed: str) -> dict[str, str]:
    found = fields.parse(what, text, form)
    if needed not in found:
        raise PlanError(f"cannot understand {text!r}: it says no {needed}=")
    return found


def need_device_model(what: str, facts: HostFacts) -> None:
    """Refuse what needs a QEMU in dom0 when there is none: libxl would fail late and at length."""
    if facts.device_model is None:
        raise PlanError(f"cannot have {what}: Xen 4.17 needs a device model for it",
                        "apt-get install qemu-system-xen in dom0")  # fmt: skip
