# SPDX-License-Identifier: Apache-2.0
"""Writing what a plan wants to be in the record directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_files(directory: str, files: Mapping[str, bytes]) -> None:
    """Write a plan's files into the record directory; a RAM disk is one of them (blocks).

    :raises OSError: one cannot be written.
    """
    for name, data in files.items():
        fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
