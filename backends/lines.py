# SPDX-License-Identifier: Apache-2.0
"""A line of a hypervisor's own console: who wrote it, and whom it is about."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """Who wrote a line."""

    #: the hypervisor
    HYPERVISOR = "hypervisor"
    #: a cell
    INMATE = "inmate"
    #: it ends as the hypervisor's lines do, but is none that is known: a Linux cell, or a hypervisor of another version
    UNKNOWN = "unknown"
    #: the driver says that it lost bytes
    MISSED = "missed"
    #: whoever reads the stream says that it is gone or back
    MARK = "mark"


class Line(NamedTuple):
    """One line.

    :ivar cell: whose it is, or which it is about; "" when that cannot be told.
    :ivar cut: it begins or ends within a line: something came between, or it was too long.
    :ivar missed: how many bytes the driver lost here.
    """

    kind: Kind
    text: bytes
    cell: str = ""
    cut: bool = False
    missed: int = 0
