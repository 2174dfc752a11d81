# SPDX-License-Identifier: Apache-2.0
"""``config<name>.conf`` of the record: the plan as text for people, whichever backend made it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from runphi_async.units import human

if TYPE_CHECKING:
    from runphi_async.partition.spec import PartitionPlan


def render(plan: PartitionPlan) -> str:
    """Return the plan as readable text; ``argv`` can be pasted into a shell."""
    lines = [f"# {_shown(sentence)}" for sentence in plan.explain]
    lines += [
        f"backend = {plan.backend}",
        f"kind = {plan.kind}",
        f"arch = {plan.arch}",
        f"memory = {plan.memory_bytes} # {human(plan.memory_bytes)}",
        f"vcpus = {plan.vcpus}",
        f"pins = {' '.join(map(str, plan.pins)) or '-'}",
        f"files = {' '.join(sorted(plan.files)) or '-'}",
        *map(_shown, plan.conf()),
    ]
    if plan.argv:
        lines.append("argv = " + " \\\n    ".join(_grouped(plan.argv)))
    return "\n".join(lines) + "\n"


def _shown(line: str) -> str:
    """Return a line as a terminal may see it: an image's own words could hold control sequences and further lines."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def _grouped(argv: tuple[str, ...]) -> list[str]:
    """One option with its value a line."""
    lines: list[str] = []
    for word in argv:
        if word.startswith("-") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return lines
