# SPDX-License-Identifier: Apache-2.0
"""Reading sysfs without being pulled down by a board that hangs.

A read that asks the hypervisor never returns when the board hangs, and nothing can end the thread it blocks. So such
reads are counted: when a few of them are lost, later ones fail at once and start no more threads, until one of the lost
comes back. Everything else in the supervisor has its threads still.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import anyio

from backends.jailhouse.errortext import Hung
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Seconds for a look at sysfs, which asks the hypervisor.
PATIENCE: Final = 5.0
#: Threads that may be in sysfs at a time, and that may be lost there. A look takes a millisecond for each cell, so a
#: few serve everybody.
THREADS: Final = 4
#: What helps when the hypervisor does not answer.
HANGS: Final = "the board must be reset; its console may say which CPU was parked"


class Reading:
    """Calls blocking functions that read ``place``; one for a hypervisor.

    :param patience: seconds that a call may take, waiting for a thread included.
    """

    def __init__(self, place: str, patience: float = PATIENCE) -> None:
        self._place = place
        self._patience = patience
        self._limiter = anyio.CapacityLimiter(THREADS)
        self._late: set[object] = set()

    @property
    def lost(self) -> int:
        """How many reads are still out although nobody waits for them any more."""
        return len(self._late)

    async def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns.

        :raises Hung: it did not within the time.
        :raises BackendError: it could not read.
        """
        if self.lost >= THREADS:
            raise Hung(f"cannot read {self._place}: {self.lost} earlier reads never came back", HANGS)
        read = _Read(function, self._late)
        try:
            with anyio.fail_after(self._patience):
                return await anyio.to_thread.run_sync(read.run, abandon_on_cancel=True, limiter=self._limiter)
        except TimeoutError:
            read.give_up()
            raise Hung(f"cannot read {self._place}: no answer within {self._patience:g} s", HANGS) from None
        except OSError as exc:
            raise BackendError(f"cannot read {self._place}: {exc.strerror}") from exc


class _Read(Generic[T]):
    """One call; ``late`` holds it from when it was given up until it returns after all."""

    def __init__(self, function: Callable[[], T], late: set[object]) -> None:
        self._function = function
        self._late = late
        self._out = self._given_up = False
        self._lock = threading.Lock()

    def run(self) -> T:
        """Call the function; in a thread."""
        with self._lock:
            if self._given_up:
                raise TimeoutError
            self._out = True
        try:
            return self._function()
        finally:
            with self._lock:
                self._out = False
                self._late.discard(self)

    def give_up(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self._given_up = True
            if self._out:
                self._late.add(self)
