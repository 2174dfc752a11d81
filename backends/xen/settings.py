# SPDX-License-Identifier: Apache-2.0
"""The table `[xen]` of the configuration file, and what else is known of Xen before it is used."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from backends.base import STOP_SECONDS, Brings
from runphi_async.config.section import MIB, BackendSection, MemoryDefault, MemoryMinimum, Size, StopSeconds, doc


class Xen(BackendSection, frozen=True):
    """The Xen backend; the supervisor runs in dom0."""

    xl: Annotated[str, doc("Xen's toolstack, a path or a name looked up in PATH.")] = "xl"
    libxenctrl: Annotated[
        bool, doc("Whether domains are looked at and paused through Xen's Python module where there is one.")
    ] = True
    xenstore: Annotated[
        str, doc("Socket or device of xenstored; empty: the first of the usual places that answers.")
    ] = ""
    kernel: Annotated[str, doc("Kernel of Linux guests whose image brings none.")] = "/var/lib/runphi/guest/vmlinux"
    initrd: Annotated[str, doc("Initial ramdisk for that kernel.")] = "/var/lib/runphi/guest/initrd-xen"
    ramdisk_max_bytes: Annotated[
        Size, doc("Largest root file system that a Linux guest gets in its RAM; larger ones become a disk.")
    ] = Size(64 * MIB)
    image_dir: Annotated[str, doc("Directory for the disks of Linux guests while they are made.")] = (
        "/var/lib/runphi/xen"
    )
    bridges: Annotated[
        tuple[str, ...], doc("Bridges that containers may name in `org.runphi.xen.vif`; empty: none.")
    ] = ()
    devices: Annotated[
        tuple[str, ...],
        doc(
            "What containers may be given of the host by `org.runphi.xen.disk`, `p9`, `pci`, `iomem`, `irqs` and "
            "`dtdev`: each as it is written there; a path stands for all below it. Empty: nothing."
        ),
    ] = ()
    drain_quiet_seconds: Annotated[
        float,
        msgspec.Meta(ge=0.01),
        doc("Silence after which the console of a domain that ended is taken to be complete."),
    ] = 0.1
    stop_seconds: StopSeconds = STOP_SECONDS
    memory_default: MemoryDefault = MemoryDefault()
    memory_minimum: MemoryMinimum = MemoryMinimum()


BRINGS: Final = Brings(section=Xen, wishes=True)
