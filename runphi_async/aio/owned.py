# SPDX-License-Identifier: Apache-2.0
"""Tasks with an owner: none fails unheard, and none outlives what it was started for.

For objects whose life is no block of code and therefore no task group: a driver lives from a verb of one connection to
the end of its guest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class OwnedTasks:
    """The tasks of one owner.

    :param failed: called with a task's name and the exception that nobody in it has expected.
    """

    def __init__(self, failed: Callable[[str, BaseException], None]) -> None:
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
        """Begin a task; return it, for whoever wants its result or is to stop it early."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        exc = task.exception()
        if exc is not None:
            log.error("task '%s' has failed", task.get_name(), exc_info=exc)
            self._failed(task.get_name(), exc)

    async def close(self) -> None:
        """Cancel all that still run, but the one that calls, and wait for their ends."""
        running = self._tasks - {asyncio.current_task()}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
