# SPDX-License-Identifier: Apache-2.0
"""The table `[qemu]` of the configuration file, and what else is known of QEMU before it is used."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from backends.base import STOP_SECONDS, Brings
from runphi_async.config.section import (
    MIB,
    BackendSection,
    MemoryDefault,
    MemoryMinimum,
    Section,
    Size,
    StopSeconds,
    doc,
)

#: environment variable that stands for ``qemu.accel`` where the file does not name it: tests and hurried people force
#: software emulation by it
ACCEL_VARIABLE: Final = "RUNPHI_ACCEL"


class InitSeconds(Section, frozen=True):
    """How long the kernel of a Linux guest may run before it reaches our init: then it is taken for hung."""

    kvm: Annotated[float, msgspec.Meta(gt=0), doc("On KVM; a good one needs less than one second.")] = 30.0
    tcg: Annotated[float, msgspec.Meta(gt=0), doc("In software; a loaded machine with slow cores needs most.")] = 120.0


class Qemu(BackendSection, frozen=True):
    """The QEMU backend."""

    accel: Annotated[
        Literal["auto", "kvm", "tcg"],
        doc(
            "Accelerator; `auto` takes KVM where it is proven to do the work of a kernel, faster than software; `kvm` "
            "refuses guests where it is not."
        ),
    ] = "auto"
    x86_64: Annotated[str, doc("QEMU for x86-64 guests, a path or a name looked up in PATH.")] = "qemu-system-x86_64"
    aarch64: Annotated[str, doc("QEMU for arm64 guests.")] = "qemu-system-aarch64"
    virtiofsd: Annotated[
        str,
        doc(
            "Server that shares the image's root filesystem with a Linux guest; a path, or a name looked up in PATH, "
            "`/usr/libexec` and `/usr/lib/qemu`."
        ),
    ] = "virtiofsd"
    kernel: Annotated[str, doc("Kernel of Linux guests whose image brings none.")] = "/var/lib/runphi/guest/vmlinux"
    initrd: Annotated[str, doc("Initial ramdisk for that kernel.")] = "/var/lib/runphi/guest/initrd"
    overhead_bytes: Annotated[
        Size, doc("Memory of QEMU itself: added to the container's memory limit for its cgroup.")
    ] = Size(128 * MIB)
    stop_seconds: StopSeconds = STOP_SECONDS
    init_seconds: InitSeconds = InitSeconds()
    memory_default: MemoryDefault = MemoryDefault()
    memory_minimum: MemoryMinimum = MemoryMinimum()

    def programs(self) -> tuple[str, ...]:
        """Return both emulators and the file server."""
        return (self.x86_64, self.aarch64, self.virtiofsd)


BRINGS: Final = Brings(section=Qemu, environment={ACCEL_VARIABLE: "accel"}, looks_ahead=True)
