# SPDX-License-Identifier: Apache-2.0
"""How far a cell has come, as its record says: what a next supervisor cannot see in sysfs."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from backends.jailhouse.ending import Phase
from backends.jailhouse.marks import Said
from runphi_async import regular
from runphi_async.host.files import write_atomically

#: Written before each step.
PHASE: Final = "cell.phase"
#: what a Linux cell's init said of its end
SAID: Final = "cell.exit"
#: most bytes of it
SAID_MAX: Final = 1 << 16


class Progress:
    """The files of one record.

    :param fresh: the cell is new; else they are read.
    :ivar phase: what was done last.
    :ivar said: what init said of the end, None if it has not.
    """

    def __init__(self, directory: str, *, fresh: bool) -> None:
        self._directory = directory
        self.phase = Phase.NONE if fresh else self._read_phase()
        self.said = None if fresh else self._read_said()

    def _read_phase(self) -> Phase:
        try:
            return Phase(regular.read(os.path.join(self._directory, PHASE), 64, links=False).decode().strip())
        except (OSError, ValueError):
            return Phase.NONE

    def _read_said(self) -> Said | None:
        try:
            return Said.read(regular.read(os.path.join(self._directory, SAID), SAID_MAX, links=False).decode())
        except (OSError, ValueError):
            return None

    def go(self, phase: Phase) -> None:
        """Write down the next step.

        :raises OSError: it cannot be written.
        """
        write_atomically(os.path.join(self._directory, PHASE), f"{phase}\n".encode())
        self.phase = phase

    def keep(self, said: Said) -> None:
        """Write down what init said of the end."""
        self.said = said
        with contextlib.suppress(OSError):  # the record is gone already
            write_atomically(os.path.join(self._directory, SAID), f"{said.line()}\n".encode())
