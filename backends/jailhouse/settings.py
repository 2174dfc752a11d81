# SPDX-License-Identifier: Apache-2.0
"""The table `[jailhouse]` of the configuration file, and what else is known of Jailhouse before it is used."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from backends.base import Brings
from runphi_async.board.ledger import FILE
from runphi_async.config.section import BackendSection, doc


class Jailhouse(BackendSection, frozen=True):
    """The Jailhouse backend."""

    board: Annotated[
        str, doc("Board file: the name of a shipped one (`runphi board list`) or a path; empty: no Jailhouse here.")
    ] = ""
    tool: Annotated[str, doc("The `jailhouse` tool, a path or a name looked up in PATH.")] = "jailhouse"
    sysfs: Annotated[str, doc("Directory of the kernel module in sysfs.")] = "/sys/devices/jailhouse"
    system_config: Annotated[
        str,
        doc(
            "The system configuration that the hypervisor was enabled with: each cell is checked against it before it "
            "is made; empty: against the board file only."
        ),
    ] = ""
    pause: Annotated[
        Literal["refuse", "shutdown"],
        doc(
            "What `pause` does, as Jailhouse cannot make a cell stand still: refuse, or shut the cell down, so that "
            "`resume` loads its images again and starts it from its beginning."
        ),
    ] = "refuse"
    firmware: Annotated[
        str, doc("Where the kernel's remoteproc finds images: those for remote processors are linked below it.")
    ] = "/lib/firmware"
    deadline_seconds: Annotated[
        float,
        msgspec.Meta(gt=0),
        doc("How long one call of the tool may take before the board is taken for hung."),
    ] = 30.0
    kernel: Annotated[str, doc("Kernel of Linux cells whose image brings none.")] = "/var/lib/runphi/jailhouse/Image"
    initrd: Annotated[str, doc("RAM disk with our init, for Linux cells that run a container's process.")] = (
        "/var/lib/runphi/jailhouse/initrd"
    )
    dtb: Annotated[
        str,
        doc(
            "Device tree of Linux cells whose image brings none; without such a file one is made of the board file's "
            "[devicetree]."
        ),
    ] = "/var/lib/runphi/jailhouse/inmate.dtb"
    loader: Annotated[str, doc("Jailhouse's loader, which starts a Linux kernel in a cell.")] = (
        "/usr/local/libexec/jailhouse/linux-loader.bin"
    )


BRINGS: Final = Brings(section=Jailhouse, ledger=FILE, verbs=("board", "cell", "map"))
