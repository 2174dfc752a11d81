# SPDX-License-Identifier: Apache-2.0
"""Giving a living container other limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from runphi_async.errors import StateError, UnsupportedError
from runphi_async.events import Update
from runphi_async.record.lifecycle import Status

if TYPE_CHECKING:
    from runphi_async.container.container import Container
    from runphi_async.host.cgroup import Limits


async def update(container: Container, limits: Limits, memory: int | None) -> None:
    """Apply CPU limits to the container's processes.

    :param memory: bytes that are asked for, None or 0 for "as it is".
    :raises StateError: it has stopped.
    :raises CgroupError: they cannot be applied.
    :raises UnsupportedError: the memory cannot change while a guest lives; the other limits were applied.
    """
    async with container.verb():
        if container.record.status is Status.STOPPED:
            raise StateError("container not running")
        await anyio.to_thread.run_sync(container.cgroup.apply, limits)
        container.note(Update())
        if memory is not None and memory > 0 and memory != await container.memory_limit():
            raise UnsupportedError(
                "cannot change the memory of a living guest: not supported by this guest",
                "the other limits were applied; create the container anew with another memory limit",
            )
