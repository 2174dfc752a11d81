# SPDX-License-Identifier: Apache-2.0
"""What a guest boots: the decision every backend shares, made on facts about the image's header.

A backend reads those facts beforehand (:class:`ImageFacts`), so the decision itself touches no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runphi_async.errors import PlanError
from runphi_async.partition.image import ImageFacts
from runphi_async.partition.spec import GuestKind

if TYPE_CHECKING:
    from runphi_async.partition.spec import GuestSpec, ProcessSpec


class Boot(msgspec.Struct, frozen=True):
    """What boots, and why."""

    arch: str
    #: the file the machine starts with
    image: str
    facts: ImageFacts
    ramdisk: str | None
    explain: tuple[str, ...]


def boot_image(spec: GuestSpec, default_kernel: str | None, setting: str = "qemu.kernel") -> str:
    """The file the guest starts with; its facts are what :func:`decide` wants."""
    if spec.kind is GuestKind.INMATE:
        if spec.inmate is None:
            raise PlanError("cannot plan an inmate without an image")
        return spec.inmate
    image = spec.kernel or default_kernel
    if image is None:
        raise PlanError(
            "cannot boot a Linux guest: there is no guest kernel",
            f"run bin/prepare-guest or set {setting} in the configuration",
        )
    return image


def linux_process(spec: GuestSpec, initrd: bytes | None, setting: str) -> tuple[ProcessSpec, bytes]:
    """Return what a Linux guest runs, and the RAM disk with our init that starts it.

    :param initrd: the RAM disk, None when it is not there; ``setting`` names it in the configuration.
    :raises PlanError: one of them is missing, or the image brings a RAM disk of its own.
    """
    if initrd is None:
        raise PlanError(
            "cannot boot a Linux guest: its RAM disk with our init is missing",
            f"run bin/prepare-guest or set {setting} in the configuration",
        )
    if spec.process is None:
        raise PlanError("cannot boot a Linux guest: the container has no process to run in it")
    if spec.ramdisk is not None:
        raise PlanError(
            f"cannot use RAM disk {spec.ramdisk}: a Linux guest on the image's rootfs starts from ours",
            "leave LINUX out to boot kernel and RAM disk by themselves",
        )
    return spec.process, initrd


def decide(
    spec: GuestSpec, facts: ImageFacts, default_kernel: str | None, host_arch: str, setting: str = "qemu.kernel"
) -> Boot:
    """Choose image and architecture: the header's word, else the annotation's, else the host's.

    :param setting: key of the configuration that names the default kernel.
    """
    image = boot_image(spec, default_kernel, setting)
    if facts.arch and spec.arch and facts.arch != spec.arch:
        raise PlanError(f"cannot boot {image} as {spec.arch}: it is an image for {facts.arch}")
    arch = facts.arch or spec.arch or host_arch
    if facts.arch:
        why = f"its {facts.format} header says so"
    elif spec.arch:
        why = "annotation org.runphi.arch says so"
    else:
        why = "the host's, as neither header nor annotation says"
    explain = [f"boot: {image}, {facts.format} for {arch} ({why})"]
    if spec.kind is not GuestKind.INMATE and spec.kernel is None:
        explain.append("boot: the configured guest kernel, as the container brings none")
    if spec.ramdisk:
        explain.append(f"boot: RAM disk {spec.ramdisk}")
    return Boot(arch, image, facts, spec.ramdisk, tuple(explain))
