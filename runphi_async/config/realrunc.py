# SPDX-License-Identifier: Apache-2.0
"""Which file is the ordinary runc, and which is runPHI under that name: it must never hand a container to itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: where the ordinary runc is looked for; first where `configure --replace-runc` keeps it
CANDIDATES: Final = (
    "/usr/sbin/runc_vanilla",
    "/usr/bin/runc_vanilla",
    "/usr/local/sbin/runc_vanilla",
    "/usr/local/bin/runc_vanilla",
    "/usr/bin/runc",
    "/usr/sbin/runc",
    "/usr/local/sbin/runc",
    "/usr/local/bin/runc",
)
#: how far a launcher's text is read to know it
_HEAD: Final = 4096


def is_runphi(path: str) -> bool:
    """Whether a file is a launcher of runPHI, of this installation or of another one, through all links."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head.startswith(b"#!") and b"runphi_async" in head


def find(candidates: Iterable[str] = CANDIDATES) -> str | None:
    """Return the first that can be run and is not runPHI."""
    return next((path for path in candidates if os.access(path, os.X_OK) and not is_runphi(path)), None)
