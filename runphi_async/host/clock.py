# SPDX-License-Identifier: Apache-2.0
"""The time, handed in: whoever dates or waits asks a clock, so that tests need not wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

import anyio

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Timekeeper(Protocol):
    """What tells the time and wakes; ``runphi_async.testing.clock`` has one that is moved by hand."""

    def wall(self) -> float:
        """Return the seconds since the epoch, as people date things. It may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds that only go on, since whenever."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        ...

    def move_on_after(self, seconds: float, *, shield: bool = False) -> AbstractContextManager[anyio.CancelScope]:
        """Return a block that is left after so many seconds, if need be by cancelling what it waits for.

        :param shield: nobody else can cancel it.
        """
        ...


class SystemTime:
    """The machine's own."""

    def wall(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since boot."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await anyio.sleep(seconds)

    def move_on_after(self, seconds: float, *, shield: bool = False) -> AbstractContextManager[anyio.CancelScope]:
        """Return a block that is left after so many seconds."""
        return anyio.move_on_after(seconds, shield=shield)


#: what all ask who are not told otherwise
SYSTEM: Final = SystemTime()
