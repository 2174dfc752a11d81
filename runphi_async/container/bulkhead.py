# SPDX-License-Identifier: Apache-2.0
"""What keeps one container's fault from everybody else: a task that crashes ends it, and its end has all its steps.

Without it an exception that nobody thought of would leave the container's task group, then the supervisor's, and end
the process; and an end that stopped half way would leave the engine waiting for an exit code for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from runphi_async.aio.waiting import is_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from runphi_async.aio.tasks import Tasks

log = logging.getLogger(__name__)


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


class Steps:
    """The steps of an end: each is taken whatever became of those before it.

    :param name: of the container, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Take a step; what it raises is logged with its traceback. Only our own cancellation gets out."""
        try:
            yield
        except Exception:
            log.exception("%s: cannot %s", self._name, what)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            log.exception("%s: cannot %s: what it waited for was cancelled", self._name, what)
