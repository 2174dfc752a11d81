# SPDX-License-Identifier: Apache-2.0
"""Lists for people: columns as wide as their widest cell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runphi_async.terminals.sessions import Row


def table(rows: Sequence[Sequence[str]], gap: str = "  ") -> str:
    """Return the rows, of which the first is the heading, one a line; all have as many cells as that one."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join(gap.join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)


def people(rows: Sequence[Row]) -> str:
    """Return the list of those who are on a console."""
    return table([("ROLE", "USER", "PID", "TTY", "SINCE", "SENT", "SKIPPED", "LAG", "WORDS"), *map(_person, rows)])


def _person(row: Row) -> tuple[str, ...]:
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(row.since))
    numbers = (str(number) for number in (row.sent, row.skipped, row.lag))
    return (row.role, row.user, str(row.pid), row.tty or "-", since, *numbers, row.words)
