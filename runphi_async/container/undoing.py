# SPDX-License-Identifier: Apache-2.0
"""What takes back a creation that fails: its steps one by one, until there is somebody who answers for all of them.

Before there is an init process each step has an undoing of its own, and nobody else knows what is there. From then on
the container is alive: its own end lets go of everything, also of what later steps add. ``hand_over`` is the border.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Undoing(NamedTuple):
    """What takes one step back.

    :ivar what: as it is logged, behind "cannot".
    """

    what: str
    undo: Callable[[], Awaitable[object]]


class Undo:
    """The undoings of the steps that were taken."""

    def __init__(self) -> None:
        self._undoings: list[Undoing] = []
        self._end: Undoing | None = None

    def push(self, what: str, undo: Callable[[], Awaitable[object]]) -> None:
        """A step is taken, or about to be; behind the hand-over its undoing is part of the end already."""
        self._undoings.append(Undoing(what, undo))

    def hand_over(self, what: str, end: Callable[[], Awaitable[object]]) -> None:
        """From now on ``end`` takes back everything, instead of each step's own undoing."""
        self._end = Undoing(what, end)

    async def run(self) -> None:
        """Take everything back, the last step first; what fails keeps nothing else from being taken back."""
        for undoing in [self._end] if self._end is not None else reversed(self._undoings):
            try:
                await undoing.undo()
            except Exception:
                log.exception("cannot %s", undoing.what)
