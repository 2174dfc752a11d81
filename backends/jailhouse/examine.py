# SPDX-License-Identifier: Apache-2.0
"""What ``runphi doctor`` says of Jailhouse: board file, tool, module, hypervisor, what Linux cells need, the ledger."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from backends.base import Finding, Level
from backends.jailhouse import machinefacts, ready
from backends.jailhouse.machine import program
from backends.jailhouse.reading import HANGS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.jailhouse.settings import Jailhouse
    from backends.jailhouse.sysfs import View
    from runphi_async.board.claims import Discrepancy

AREA: Final = "jailhouse"


def no_board() -> Finding:
    """Say that nothing was looked at, and why."""
    return Finding(Level.NOTE, AREA, "no board is configured", "set jailhouse.board to use Jailhouse here")


def machine(config: Jailhouse, view: View) -> list[Finding]:
    """Look at the machine (blocks). One that cannot run cells is no sick machine."""
    found = ready.judge(machinefacts.read(config, view, program=program(config)))
    return [one._replace(level=Level.WARNING) if one.level is Level.ERROR else one for one in found]


def linux_cells(config: Jailhouse) -> list[Finding]:
    """Say what Linux cells lack; a board of bare-metal cells needs none of it."""
    prepare = "run bin/prepare-guest --cells, or set jailhouse."
    files = (
        (config.loader, "Jailhouse's linux-loader.bin", "install Jailhouse's tools, or set jailhouse.loader"),
        (config.kernel, "the kernel", prepare + "kernel"),
        (config.initrd, "the RAM disk with our init", prepare + "initrd"),
    )
    return [
        Finding(Level.NOTE, AREA, f"no Linux cells: {what} is missing at {path}", hint)
        for path, what, hint in files
        if not os.path.exists(path)
    ]


def accounts(found: Iterable[Discrepancy]) -> list[Finding]:
    """Tell where the ledger and the hypervisor disagree."""
    return [
        Finding(
            Level.WARNING,
            AREA,
            f"ledger: {odd.owner + ': ' if odd.owner else ''}{odd.problem}",
            "it is freed with the next cell that is made" if odd.stale else "runphi map shows who has what",
        )
        for odd in found
    ]


def lost_reads(lost: int) -> list[Finding]:
    """Tell of reads that never came back."""
    if not lost:
        return []
    return [Finding(Level.WARNING, AREA, f"{lost} read{'s' if lost > 1 else ''} of sysfs never came back", HANGS)]
