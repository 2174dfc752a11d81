# SPDX-License-Identifier: Apache-2.0
"""systemd: the units of ``packaging/`` made for this installation."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

from runphi_async.install.root import HOME

if TYPE_CHECKING:
    from runphi_async.install.root import Root

NAMES: Final = ("runphid.service", "runphid.socket")
SYSTEMCTL: Final = "/usr/bin/systemctl"


def text(template: str) -> str:
    """Return a unit for the installation, without the words on how to make it of the template."""
    lines = template.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("[Unit]"))
    body = "\n".join(lines[begin:]) + "\n"
    body = body.replace("@CHECKOUT@/.venv/", f"{HOME}/venv/").replace("@CHECKOUT@", HOME)
    return f"# SPDX-License-Identifier: Apache-2.0\n# Written by runphi-configure.\n\n{body}"


def systemctl(root: Root, *words: str) -> None:
    """Tell systemd, where it runs; what it answers is its own affair."""
    if root.is_machine and os.path.isdir("/run/systemd/system"):
        subprocess.run([SYSTEMCTL, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
