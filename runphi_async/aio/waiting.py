# SPDX-License-Identifier: Apache-2.0
"""Waiting for one of several things, or for all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def is_cancelled() -> bool:
    """Whether the running task itself is being cancelled: a CancelledError may also come of what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def either(*events: anyio.Event) -> None:
    """Return when one of the events is set."""
    async with anyio.create_task_group() as tasks:

        async def wait(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        for event in events:
            tasks.start_soon(wait, event)


async def together(*functions: Callable[[], Awaitable[object]]) -> None:
    """Run all functions side by side; the first failure stops the others and is raised as it is."""
    failures: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def run(function: Callable[[], Awaitable[object]]) -> None:
            try:
                await function()
            except Exception as exc:
                failures.append(exc)
                tasks.cancel_scope.cancel()

        for function in functions:
            tasks.start_soon(run, function)
    if failures:
        raise failures[0]
