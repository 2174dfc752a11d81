# SPDX-License-Identifier: Apache-2.0
"""Asking a guest to end, and ending one that has no ear for it: no signal that stops leaves a container running deaf.

A process of a Linux guest may handle SIGTERM and live on, as under runc. A guest that never comes to take the signal
may not.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from runphi_async.errors import BackendError
from runphi_async.oci.signals import Meaning

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

    from backends.base import Driver, Signals
    from runphi_async.aio.tasks import Tasks
    from runphi_async.host.clock import Timekeeper

log = logging.getLogger(__name__)

#: Least seconds between two looks at whether a signal was taken; a guest that is paused takes none.
LOOK_PERIOD: Final = 0.25


class Stopping:
    """The deadlines of one guest.

    :param name: of the guest, for the log.
    :param seconds: how long a guest may take.
    :param destroy: ends it on a signal.
    """

    def __init__(
        self, name: str, seconds: float, destroy: Callable[[int], None], ended: anyio.Event, clock: Timekeeper
    ) -> None:
        self._name = name
        self._seconds = seconds
        self._destroy = destroy
        self._ended = ended
        self._clock = clock
        self._listening = False
        self._asked = False

    async def deliver(self, driver: Driver, tasks: Tasks, number: int, what: Meaning) -> None:
        """Pass a signal on, or do what it means."""
        signals, asked = driver.abilities.signals, driver.abilities.stops
        try:
            if signals is not None and await signals.deliver(number):
                if what is Meaning.STOP and not self._listening:
                    self._listening = True
                    tasks.start_soon(self._until_taken, signals, number, name="signal deadline")
                return
            if what is Meaning.PASS:
                return
            stops = asked is not None and await asked.stop()
        except BackendError as exc:
            if what is Meaning.PASS:
                raise
            log.warning("%s: cannot be asked to end: %s", self._name, exc)
            stops = False
        if not stops:
            self._destroy(number)
        elif not self._asked:
            self._asked = True
            tasks.start_soon(self._until_ended, number, name="stop deadline")

    async def _until_ended(self, number: int) -> None:
        await self._clock.sleep(self._seconds)
        if not self._ended.is_set():
            log.warning("%s: did not end when asked to: destroying it", self._name)
            self._destroy(number)

    async def _until_taken(self, signals: Signals, number: int) -> None:
        while not self._ended.is_set():
            waited = signals.unheard()
            if waited is None:
                self._listening = False
                return
            if waited >= self._seconds:
                log.warning("%s: has not taken signal %d: destroying it", self._name, number)
                self._destroy(number)
                return
            await self._clock.sleep(max(self._seconds - waited, LOOK_PERIOD))
