# SPDX-License-Identifier: Apache-2.0
"""The result: rows of one markdown table, and the document that keeps it."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: All below this line of the document is made anew by ``--write``.
MARKER: Final = "<!-- below this line: made by bin/bench --write -->"
_HEAD: Final = ("what", "ours", "against", "ratio", "goal", "met")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line; ``met`` is None where nothing was promised."""

    what: str
    ours: str
    against: str = "-"
    ratio: str = "-"
    goal: str = "-"
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """The line's cells as text."""
        met = "-" if self.met is None else "yes" if self.met else "**no**"
        return (self.what, self.ours, self.against, self.ratio, self.goal, met)


def compared(what: str, ours: float, against: float, name: str, goal: float | None, unit: str = "ms") -> Row:
    """A row of two times, of which ours may be at most ``goal`` times the other."""
    ratio = ours / against
    return Row(
        what,
        f"{ours:.1f} {unit}",
        f"{against:.1f} {unit} ({name})",
        f"{ratio:.2f}",
        "-" if goal is None else f"≤ {goal:g} ×",
        None if goal is None else ratio <= goal,
    )


def render(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    lines = [_HEAD, ("---",) * len(_HEAD), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def circumstances(quick: bool, load: float) -> str:
    """When and where it was measured, and how busy the machine was before and after."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"load average {load:.2f} before and {os.getloadavg()[0]:.2f} after"
        f"{', few repetitions (--quick)' if quick else ''}."
    )


def write(document: Path, note: str, table: str) -> None:
    """Replaces what stands below the marker."""
    above, found, _ = document.read_text().partition(MARKER)
    if not found:
        raise ValueError(f"cannot write {document}: it lacks the line {MARKER}")
    temporary = document.with_suffix(".tmp")
    temporary.write_text(f"{above}{MARKER}\n\nMeasured {note}\n\n{table}")
    temporary.replace(document)
