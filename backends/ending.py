# SPDX-License-Identifier: Apache-2.0
"""The end of one guest, as every driver tells it: once, whatever comes first, and also when the driver itself fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from backends.base import Verdict

if TYPE_CHECKING:
    from backends.base import Told

log = logging.getLogger(__name__)

#: Exit code of a container that the runtime itself could not go on with; as docker says it.
FAILED: Final = 125


class Ending:
    """Who is to hear of a guest's end, until it was told.

    :ivar told: what the driver calls back; None before anybody attends, when the end was told, and after `forget`.
    :ivar failure: why the driver gave the guest up, "" if it did not.
    """

    def __init__(self) -> None:
        self.told: Told | None = None
        self.failure = ""

    def attend(self, told: Told) -> None:
        """Tell the end there."""
        self.told = told

    def once(self) -> bool:
        """Tell the end; False: nobody is to hear it any more."""
        told, self.told = self.told, None
        if told is None:
            return False
        told.ended()
        return True

    def broke(self, task: str, exc: BaseException) -> str:
        """Remember that the driver's own task failed, and return that for people."""
        self.failure = self.failure or f"internal error in the {task}: {exc!r}"
        return self.failure

    def forget(self) -> None:
        """Nobody is to hear of it any more."""
        self.told = None

    def verdict(self) -> Verdict | None:
        """Return the verdict on a guest that its driver gave up, None for any other."""
        return Verdict(FAILED, self.failure) if self.failure else None
