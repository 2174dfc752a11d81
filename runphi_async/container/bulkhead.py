# SPDX-License-Identifier: Apache-2.0
"""What keeps one container's fault from everybody else: a task that crashes ends it, and it alone.

Without it an exception that nobody thought of would leave the container's task group, then the supervisor's, and end
the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from runphi_async.aio.tasks import Tasks


class Bulkhead:
    """Tasks of which no one's failure stops the others, or gets out.

    :param tasks: runs them; it is entered and left by whoever made it.
    :param crashed: told of a task that raised.
    """

    def __init__(self, tasks: Tasks, crashed: Callable[[Exception], None]) -> None:
        self._tasks = tasks
        self._crashed = crashed

    def start_soon(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any, name: object = None) -> None:
        """Start a task; what it raises is told to ``crashed``."""
        self._tasks.start_soon(self._run, func, args, name=name or func)

    async def _run(self, func: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        try:
            await func(*args)
        except Exception as exc:
            self._crashed(exc)
