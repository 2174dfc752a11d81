# SPDX-License-Identifier: Apache-2.0
"""Where a change of the machine may be interrupted: tests kill the process at each of these places.

``RUNPHI_KILL_AT=NAME`` in the environment kills it at the step NAME; ``RUNPHI_STEPS=FILE`` writes the steps down that
were passed, so that a test need not know their names.
"""

from __future__ import annotations

import os
import signal
from typing import Final

KILL_AT: Final = "RUNPHI_KILL_AT"
STEPS: Final = "RUNPHI_STEPS"


def step(name: str) -> None:
    """Pass a place between two changes."""
    listing = os.environ.get(STEPS)
    if listing:
        with open(listing, "a") as file:
            file.write(name + "\n")
    if os.environ.get(KILL_AT) == name:
        os.kill(os.getpid(), signal.SIGKILL)
