# SPDX-License-Identifier: Apache-2.0
"""What the fake tool asks its driver for: a cell, and images to load."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """A cell as the command line names it: by id, or by name where the id is None."""

    id: int | None
    name: str


class Image(NamedTuple):
    """Something to load, and where to."""

    data: bytes
    address: int
