# SPDX-License-Identifier: Apache-2.0
"""Takes the blocks that are to be run out of a page of the documentation, so that the page is what is tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from tests.xen.install import HOME

PAGE: Final = Path(HOME) / "docs" / "how-to" / "partitioned-containers-on-xen.md"
_BLOCK: Final = re.compile(r"^```(\S+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block: its language, the words behind that, and its text."""

    language: str
    words: str
    text: str


def blocks(path: Path = PAGE) -> list[Block]:
    """Return the fenced blocks of a page; what is only indented is not for running."""
    return [Block(match[1], match[2].strip(), match[3]) for match in _BLOCK.finditer(path.read_text())]
