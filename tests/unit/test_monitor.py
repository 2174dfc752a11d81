# SPDX-License-Identifier: Apache-2.0
"""QEMU's command socket when nobody answers on it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from backends.qemu.monitor import Monitor
from runphi_async.aio.owned import OwnedTasks
from runphi_async.errors import BackendError

if TYPE_CHECKING:
    from pathlib import Path


def unexpected(task: str, exc: BaseException) -> None:
    raise AssertionError(f"{task} failed") from exc


async def test_a_command_ends_when_the_monitor_is_closed(tmp_path: Path) -> None:
    """Its end is an error of the guest's: as a cancellation it would end whatever waits, up to the supervisor."""
    directory = os.open(tmp_path, os.O_RDONLY)
    monitor = Monitor(directory, OwnedTasks(unexpected))
    listener = monitor.listen()
    command = asyncio.create_task(monitor.execute("cont"))
    accepted, _ = await asyncio.to_thread(listener.accept)
    await monitor.close()
    with pytest.raises(BackendError, match="QEMU has ended"):
        await command
    accepted.close()
    listener.close()
    os.close(directory)


async def test_a_command_that_is_cancelled_is_cancelled(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    monitor = Monitor(directory, OwnedTasks(unexpected))
    listener = monitor.listen()
    command = asyncio.create_task(monitor.execute("cont"))
    accepted, _ = await asyncio.to_thread(listener.accept)
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    await monitor.close()
    accepted.close()
    listener.close()
    os.close(directory)


async def test_a_connection_that_is_refused_is_said_to_whoever_wants_to_use_it(tmp_path: Path) -> None:
    """That QEMU is gone is news for the one who asks it something, and no mistake of ours."""
    directory = os.open(tmp_path, os.O_RDONLY)
    tasks = OwnedTasks(unexpected)
    monitor = Monitor(directory, tasks)
    monitor.connect_soon()
    for _ in range(2):
        with pytest.raises(BackendError, match="QEMU has ended"):
            await monitor.execute("cont")
    await monitor.close()
    await tasks.close()
    os.close(directory)
