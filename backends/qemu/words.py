# SPDX-License-Identifier: Apache-2.0
"""Last words of QEMU and of a guest's kernel, fit for a reason: few, short, and without control characters."""

from __future__ import annotations

import re
from typing import Final

#: What is kept of a text: its end.
TAIL_BYTES: Final = 16384
LINES: Final = 4
LINE_MAX: Final = 160
#: How many lines of QEMU fit into one reason.
_VMM_LINES: Final = 3
_PANIC: Final = "Kernel panic - "
#: Around the reason of an internal error QEMU shows all registers and some numbers.
_REGISTERS: Final = re.compile(r"(?:extra data\[|[A-Z][A-Z0-9]{1,3} ?= *[0-9a-f]{4}|Code=)")
#: Sequences that a terminal acts on; firmware sends them. Source: ECMA-48, 5.4.
_SEQUENCES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-~])")


def last(data: bytes, lines: int = LINES) -> tuple[str, ...]:
    """Return the last lines of a text that are not empty."""
    text = _SEQUENCES.sub("", data[-TAIL_BYTES:].decode("utf-8", "replace"))
    shown = ("".join(char for char in line if char.isprintable()).strip() for line in re.split(r"[\r\n]+", text))
    return tuple(line[:LINE_MAX] for line in shown if line)[-lines:]


def of_panic(data: bytes) -> tuple[str, ...]:
    """Return a kernel's last lines, and in front of them why it panicked: behind that stands a long trace."""
    lines = last(data, TAIL_BYTES)
    told = tuple(line for line in lines[:-LINES] if _PANIC in line)
    return (*told[-1:], *lines[-LINES:])


def of_vmm(log: bytes) -> str:
    """Return what QEMU said last, in one line; "" when it said nothing."""
    said = [line for line in last(log, TAIL_BYTES) if not _REGISTERS.match(line)]
    return "; ".join(said[-_VMM_LINES:])


def of_kernel(lines: tuple[str, ...]) -> str:
    """Return what a guest's kernel said last, as the end of a reason."""
    return f"; its last lines: {' | '.join(lines)}" if lines else ""
