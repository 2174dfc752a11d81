# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on ranges of numbers: memory, CPUs, interrupts. Pure; board files, ledger and planner share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from runphi_async import units
from runphi_async.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: the numbers of a list in a board file or in sysfs
numbers: Final = units.parse_numbers


class Range(msgspec.Struct, frozen=True, order=True):
    """The numbers from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.end - self.start

    def overlaps(self, other: Range) -> bool:
        """Whether the two have a number in common."""
        return self.start < other.end and other.start < self.end

    def within(self, other: Range) -> bool:
        """Whether the other one holds all of this one."""
        return other.start <= self.start and self.end <= other.end

    def text(self) -> str:
        """Return it as addresses, the last one included."""
        return f"{self.start:#x}-{self.end - 1:#x}"


def listed(values: Iterable[int]) -> str:
    """Return numbers as a list such as ``0-2,5``: the inverse of ``units.parse_numbers``."""
    parts: list[list[int]] = []
    for value in sorted(set(values)):
        if parts and parts[-1][1] == value - 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def merged(parts: Iterable[Range]) -> list[Range]:
    """Return the same numbers as few, ascending ranges: neighbours and overlaps become one."""
    out: list[Range] = []
    for part in sorted(parts):
        if part.size <= 0:
            continue
        if out and part.start <= out[-1].end:
            out[-1] = Range(out[-1].start, max(out[-1].end, part.end))
        else:
            out.append(part)
    return out


def without(whole: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """Return what is left of ``whole``, merged: a range given back joins its free neighbours by itself."""
    holes = merged(taken)
    out: list[Range] = []
    for part in merged(whole):
        at = part.start
        for hole in holes:
            if hole.end <= at or hole.start >= part.end:
                continue
            if hole.start > at:
                out.append(Range(at, hole.start))
            at = hole.end
        if at < part.end:
            out.append(Range(at, part.end))
    return out


def first_fit(free: Sequence[Range], size: int, align: int = 1) -> Range | None:
    """Return the lowest aligned place for ``size`` numbers in ``free``, or None."""
    for part in free:
        start = round_up(part.start, align)
        if start + size <= part.end:
            return Range(start, start + size)
    return None
