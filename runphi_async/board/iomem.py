# SPDX-License-Identifier: Apache-2.0
"""What the running root system uses of the board's RAM, by its ``/proc/iomem``.

Memory that a board file lends and the root system uses would be lost to it the moment a cell is made there: the root
system dies. Only the running system knows, so board files are compared with it where one runs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runphi_async.board import ranges
from runphi_async.board.board import Finding
from runphi_async.board.ranges import Range

if TYPE_CHECKING:
    from runphi_async.board.board import Board

#: where Linux says it
PATH: Final = "/proc/iomem"
_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) : (.*)", re.IGNORECASE)


def system_ram(text: str) -> list[Range]:
    """Return what the root system uses for RAM; nothing when who read the file was not root and saw zeros only."""
    found = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)  # what lies within another range is indented
        if match is not None and match[3] == "System RAM":
            found.append(Range(int(match[1], 16), int(match[2], 16) + 1))
    return ranges.merged(part for part in found if part.start or part.size > 1)


def findings(board: Board, used: list[Range]) -> list[Finding]:
    """Return memory that the board file lends although the root system uses it."""
    found = []
    for i, part in enumerate(board.memory):
        for ram in used:
            if ram.overlaps(part.range):
                both = f"{part.range.text()} overlaps {ram.text()}, which the running root system uses as its RAM"
                hint = "boot it with mem= or a reserved-memory node, or lend other memory"
                found.append(Finding(f"memory[{i}]", both, hint))
    return found
