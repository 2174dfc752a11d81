# SPDX-License-Identifier: Apache-2.0
"""A clock that is moved by hand: what would last ten seconds is over when a test says so."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeClock:
    """A ``runphi_async.host.clock.Timekeeper``.

    :param wall: seconds since the epoch when it is made.
    """

    def __init__(self, wall: float = 1_000_000_000.0) -> None:
        self._wall = wall
        self._passed = 0.0
        #: what to call, and when
        self._alarms: list[tuple[float, Callable[[], object]]] = []

    def wall(self) -> float:
        """Return the seconds since the epoch, as far as they were let pass."""
        return self._wall + self._passed

    def monotonic(self) -> float:
        """Return the seconds that were let pass."""
        return self._passed

    async def sleep(self, seconds: float) -> None:
        """Return when so many seconds were let pass."""
        over = anyio.Event()
        with self._alarm(seconds, over.set):
            await over.wait()

    @contextlib.contextmanager
    def move_on_after(self, seconds: float, *, shield: bool = False) -> Iterator[anyio.CancelScope]:
        """Give a block that is left when so many seconds were let pass."""
        with anyio.CancelScope(shield=shield) as scope, self._alarm(seconds, scope.cancel):
            yield scope

    @contextlib.contextmanager
    def _alarm(self, seconds: float, ring: Callable[[], object]) -> Iterator[None]:
        alarm = (self._passed + seconds, ring)
        self._alarms.append(alarm)
        try:
            yield
        finally:
            if alarm in self._alarms:
                self._alarms.remove(alarm)

    @property
    def waits(self) -> list[float]:
        """For how many seconds somebody still waits, the shortest first."""
        return sorted(due - self._passed for due, _ in self._alarms)

    def advance(self, seconds: float) -> None:
        """Let seconds pass; who has waited for them goes on as soon as the loop runs."""
        self._passed += seconds
        due = [alarm for alarm in self._alarms if alarm[0] <= self._passed]
        for alarm in due:
            self._alarms.remove(alarm)
            alarm[1]()
