# SPDX-License-Identifier: Apache-2.0
"""Signals for the process of a Linux guest, and whether our init has taken them: one that hangs never does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runphi_async.oci.signals import Meaning, meaning

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.guest.initchannel import InitChannel, InitWords


class Signals:
    """Delivers by the init's channel, and asks behind each signal for an echo.

    :param said: returns what the init of the VMM that runs now has said.
    :param run: returns for how many seconds the guest has run.
    """

    def __init__(self, init: InitChannel, said: Callable[[], InitWords], run: Callable[[], float]) -> None:
        self._init = init
        self._said = said
        self._run = run
        self._asked = ("", 0.0)

    async def deliver(self, signal: int) -> bool:
        """Have our init pass a signal to the container's process.

        :returns: False: there is no process yet that could want to end in its own way.
        :raises BackendError: init does not listen.
        """
        if not self._said().reached and meaning(signal) is Meaning.STOP:
            return False
        self._asked = (str(time.monotonic_ns()), self._run())
        await self._init.deliver(signal)
        if self._said().answers:
            self._init.ask(self._asked[0])
        return True

    def unheard(self) -> float | None:
        """Return for how long our init has not taken what it was told, None where it has, or does not answer."""
        word, since = self._asked
        if not self._said().answers or self._said().echo == word:
            return None
        return self._run() - since
