# SPDX-License-Identifier: Apache-2.0
"""The end of a guest: its steps in their order, each of which is taken whatever became of those before it.

What a step raises is logged, and a step that hangs is left behind when its time is over: the engine, which waits for
the exit code, waits for none of them for ever.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from backends.base import Evidence, Verdict
from runphi_async.aio.waiting import is_cancelled
from runphi_async.errors import CgroupError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from runphi_async.aio.tasks import Tasks
    from runphi_async.container.recorded import Recorded
    from runphi_async.container.running import Running

log = logging.getLogger(__name__)

#: Exit code of a guest that we ended for a fault of ours. Source: docs/reference/exit-codes.md.
INTERNAL: Final = 125
#: Seconds that the last bytes may take beyond what a reader that does not read is waited for
#: (``console.drain_seconds``): a source is asked for its rest first.
DRAIN_PATIENCE: Final = 5.0
#: Seconds that the last lines may take to be looked at: rules are matched in no time, and recorded in a file.
WATCH_PATIENCE: Final = 5.0
#: Seconds that a driver may take to let go of its machine: a tool of its hypervisor that hangs is given 30 s, and then
#: another one is asked whether the machine is gone (backends/jailhouse).
RELEASE_PATIENCE: Final = 90.0
#: Seconds that logs may take to be completed, and sources to be closed; longer than a log waits for its disk.
CLOSE_PATIENCE: Final = 15.0


class EndStep(NamedTuple):
    """One step that waits.

    :ivar what: as it is logged, behind "cannot".
    :ivar seconds: how long it may take.
    """

    what: str
    seconds: float
    take: Callable[[], Awaitable[object]]


class Settlement:
    """The end of one guest, which is gone.

    :param tasks: where the steps run, and where those that hang are left behind.
    """

    def __init__(self, container: Recorded, running: Running, tasks: Tasks) -> None:
        self._container = container
        self._running = running
        self._tasks = tasks
        self._delivered = False

    async def settle(self) -> None:
        """Take every step, and tell the init process. Cancelled it leaves the rest to the next supervisor."""
        await self._take_all(self.last_bytes)
        # First the record, then the engine: whoever sees the exit finds the state that belongs to it.
        verdict = self._verdict()
        try:
            self._container.stopped(verdict, delivered=self._delivered)
        except Exception:
            log.exception("%s: cannot write its end down", self._container.record.name)
        if not self._delivered:
            log.warning("%s: the engine did not take the last bytes of the console", self._container.record.name)
        await self._take_all(self.letting_go)
        self._running.init.tell(verdict.code)

    def last_bytes(self) -> Sequence[EndStep]:
        """Return the steps before the end is written down."""
        drain = DRAIN_PATIENCE + self._container.shared.config.console.drain_seconds
        streams = self._running.streams
        return (
            EndStep("bring the last bytes of the console to its readers", drain, self._drain),
            EndStep("look at the end of the console", WATCH_PATIENCE, self._running.watching.finish),
            EndStep("bring the last bytes of the channels to their readers", drain, streams.drain_channels),
        )

    def letting_go(self) -> Sequence[EndStep]:
        """Return the steps behind that."""
        running = self._running
        return (
            EndStep("close its bell", CLOSE_PATIENCE, self._close_bell),
            EndStep("let go of its machine", RELEASE_PATIENCE, running.driver.release),
            *(
                EndStep(f"close its channel {name}", CLOSE_PATIENCE, stream.close)
                for name, stream in running.streams.channels.items()
            ),
            EndStep("close its console", CLOSE_PATIENCE, running.streams.console.close),
        )

    async def _close_bell(self) -> None:
        self._running.bell.close()

    async def _drain(self) -> None:
        self._delivered = await self._running.streams.console.drain()

    def _verdict(self) -> Verdict:
        fault, record = self._running.fault, self._container.record
        try:
            evidence = Evidence(record.killed_by, self._oom_kills(), record.booted)
            said = self._running.driver.settle(evidence)
        except Exception:
            log.exception("%s: cannot find out how it ended", record.name)
            return Verdict(INTERNAL, fault or "internal error: nobody can say how it ended")
        return Verdict(said.code or INTERNAL, fault) if fault else said

    def _oom_kills(self) -> int:
        try:
            return self._container.cgroup.oom_kills() if self._container.record.cgroup else 0
        except (CgroupError, OSError):
            return 0

    async def _take_all(self, steps: Callable[[], Sequence[EndStep]]) -> None:
        """Take steps in their order; not even a mistake in saying which there are gets out."""
        try:
            for step in steps():
                await self._take(step)
        except Exception:
            log.exception("%s: cannot take a step of its end", self._container.record.name)

    async def _take(self, step: EndStep) -> None:
        """Take a step in a task of its own, and wait for it as long as it may take."""
        done, scope = anyio.Event(), anyio.CancelScope()
        name = self._container.record.name

        async def run() -> None:
            try:
                with scope:
                    await step.take()
            except Exception:
                log.exception("%s: cannot %s", name, step.what)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                log.exception("%s: cannot %s: what it waited for was cancelled", name, step.what)
            finally:
                done.set()

        self._tasks.start_soon(run, name=step.what)
        with self._container.shared.clock.move_on_after(step.seconds):
            await done.wait()
        if done.is_set():
            return
        log.error("%s: cannot %s within %.0f s: going on without it", name, step.what, step.seconds)
        scope.cancel()
