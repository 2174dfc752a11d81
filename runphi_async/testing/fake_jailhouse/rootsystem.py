# SPDX-License-Identifier: Apache-2.0
"""What the board's Linux shows of itself: reserved memory, interrupt controller, the list of its modules.

Written when the board is made, as on the recorded machine: Linux was booted with mem=768M of the board's 1 GiB.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MODULE: Final = "lib/modules/RELEASE/extra/jailhouse.ko"
_FILES: Final = {
    "proc/iomem": "09000000-09000fff : pl011@9000000\n40000000-6fffffff : System RAM\n  40210000-4115ffff : Kernel\n",
    "proc/cmdline": "console=ttyAMA0 root=/dev/vda mem=768M\n",
    "proc/interrupts": "           CPU0\n 11:       1042     GICv3  27 Level     arch_timer\n",
    "proc/sys/kernel/arch": "aarch64\n",
    "lib/modules/RELEASE/modules.dep": "extra/jailhouse.ko:\n",
    MODULE: "a module\n",
}


def show(root: Path) -> None:
    """Write the files."""
    for name, text in _FILES.items():
        path = root / here(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def here(name: str) -> str:
    """Return a name with this kernel's release in it."""
    return name.replace("RELEASE", os.uname().release)
