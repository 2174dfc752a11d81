# SPDX-License-Identifier: Apache-2.0
"""Xen half of booting: which kind of guest can start the image, and what xl is told.

| image                                   | kind | why                                                        |
|-----------------------------------------|------|------------------------------------------------------------|
| ELF with a PVH note                     | pvh  | hardware keeps it apart; needs VT-x or SVM                 |
| the same, processor without VT-x or SVM | pv   | if the image has a PV note as well                         |
| ELF with a PV note only                 | pv   | older unikernels and RTOS ports                            |
| Linux kernel (ELF or bzImage)           | pv   | every Debian kernel can; org.runphi.machine=pvh asks for it|

``org.runphi.machine`` chooses pv, pvh or hvm against this table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.xen.machine import Type
from runphi_async.errors import PlanError
from runphi_async.partition import boot as boots
from runphi_async.partition.image import Handed, ImageFormat
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from backends.xen.machine import HostFacts, PlanConfig
    from backends.xen.xlcfg import Value
    from runphi_async.partition.boot import Boot
    from runphi_async.partition.spec import GuestSpec

#: the RAM disk of a Linux guest in the record directory
GUEST_INITRD: Final = "initrd"
#: names of the image's own files there
IMAGE: Final = "image"
RAMDISK: Final = "ramdisk"
_KERNEL_FORMATS: Final = (ImageFormat.ELF, ImageFormat.BZIMAGE)
#: a panic ends the domain with the reason "crash"; xen_nopvspin would be for overcommitted hosts
_CMDLINE: Final = {
    GuestKind.LINUX: "console=hvc0 quiet loglevel=1 panic=-1",
    GuestKind.KERNEL: "console=hvc0 panic=-1",
}


def choose(spec: GuestSpec, facts: HostFacts, config: PlanConfig) -> Boot:
    """Choose image and architecture."""
    return boots.decide(spec, facts.image, config.kernel, facts.arch, "xen.kernel")


def guest_type(spec: GuestSpec, boot: Boot, facts: HostFacts, pv_note: bool) -> Type:
    """The kind of guest.

    :param pv_note: whether the image has the notes of a PV kernel.
    :raises PlanError: Xen cannot start this image here, with the reason.
    """
    if boot.arch != facts.arch:
        raise PlanError(f"cannot boot {boot.image}: it is for {boot.arch}, and this machine is {facts.arch}")
    wished = spec.machine
    if wished is not None and wished not in tuple(Type):
        raise PlanError(f"cannot use machine '{wished}' on Xen", f"one of: {', '.join(Type)}")
    chosen = Type(wished) if wished is not None else _usual(spec, boot, facts, pv_note)
    if chosen is not Type.PV and not facts.hvm:
        raise PlanError(
            f"cannot run {boot.image} as {chosen}: the processor, or Xen's command line, has no HVM",
            "set org.runphi.machine=pv for an image with PV notes",
        )
    if chosen is Type.HVM and facts.device_model is None:
        raise PlanError("cannot run an HVM guest: there is no device model", "apt-get install qemu-system-xen in dom0")
    if chosen is Type.HVM and boot.facts.format is not ImageFormat.BZIMAGE:
        raise PlanError(
            f"cannot run {boot.image} as hvm: the device model starts bzImage kernels only, "
            f"and it is {boot.facts.format}",
            "set org.runphi.machine=pvh for an ELF image with a PVH note",
        )
    return chosen


def _usual(spec: GuestSpec, boot: Boot, facts: HostFacts, pv_note: bool) -> Type:
    if spec.kind is not GuestKind.INMATE:
        if boot.facts.format not in _KERNEL_FORMATS:
            raise PlanError(
                f"cannot boot {boot.image} as a Linux kernel: it is {boot.facts.format}, not ELF or bzImage"
            )
        return Type.PV
    if boot.facts.pvh_entry is not None and (facts.hvm or not pv_note):
        return Type.PVH
    if pv_note:
        return Type.PV
    raise PlanError(
        f"cannot boot {boot.image}: it has none of Xen's ELF notes",
        "add a PVH note (Xen, type 18); see docs/reference/inmates.md",
    )


def keys(spec: GuestSpec, boot: Boot, chosen: Type) -> dict[str, Value]:
    """What boots; ``ramdisk`` of a Linux guest is filled in by the plan, which knows the record directory."""
    if spec.dtb is not None:
        raise PlanError(f"cannot use device tree {spec.dtb}: Xen makes its own for a guest")
    if spec.load_address is not None:
        raise PlanError(
            f"cannot load {boot.image} at {spec.load_address:#x}: Xen takes ELF images, which say it themselves"
        )
    out: dict[str, Value] = {"type": str(chosen), "kernel": IMAGE if _of_the_image(spec) else boot.image}
    words = [_CMDLINE.get(spec.kind, ""), spec.cmdline or ""]
    cmdline = " ".join(word for word in words if word)
    if cmdline:
        out["extra"] = cmdline
    return out


def handed(spec: GuestSpec, boot: Boot) -> tuple[Handed, ...]:
    """The files of the image that xl is given; the configuration's own kernel it opens where that lies.

    As they are: libxl reads notes and symbols of an ELF file that QEMU has no use for, and was written for strangers'.
    """
    files = []
    if _of_the_image(spec):
        files.append(Handed(IMAGE, boot.image, boot.facts))
    if boot.ramdisk is not None:
        files.append(Handed(RAMDISK, boot.ramdisk))
    return tuple(files)


def _of_the_image(spec: GuestSpec) -> bool:
    return spec.kind is GuestKind.INMATE or spec.kernel is not None


def explain(chosen: Type) -> str:
    """Say which kind and why."""
    why = "kept apart by the processor" if chosen is not Type.PV else "kept apart by Xen alone"
    return f"boot: a {chosen} guest, {why}"
