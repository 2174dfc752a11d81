# SPDX-License-Identifier: Apache-2.0
"""What somebody needs who only starts tasks: a task group, or whatever stands before one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Tasks(Protocol):
    """Where tasks are started; who made it owns them and waits for their end."""

    def start_soon(self, func: Callable[..., Coroutine[Any, Any, Any]], *args: Any, name: object = None) -> object:
        """Start a task."""
        ...
