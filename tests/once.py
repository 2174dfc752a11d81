# SPDX-License-Identifier: Apache-2.0
"""What all tests of a run share is made once, by whichever of pytest-xdist's workers comes first."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory that ``make`` has filled; nobody may change it.

    :param make: gets a new directory. When it fails, the next worker tries again.
    """
    base = factory.getbasetemp()
    top = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # a worker's directory lies in the run's
    made = top / f"{name}.made"
    with open(top / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder = factory.mktemp(name)
            make(folder)
            made.symlink_to(folder)
    return made.resolve()
