# SPDX-License-Identifier: Apache-2.0
"""Letting a guest stand still, its memory intact, and go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.record.lifecycle import Event

if TYPE_CHECKING:
    from runphi_async.container.container import Container


async def pause(container: Container) -> None:
    """Pause the guest.

    :raises StateError: it does not run.
    """
    async with container.verb():
        await container.request(Event.PAUSE)


async def resume(container: Container) -> None:
    """Let a paused guest go on.

    :raises StateError: it is not paused.
    """
    async with container.verb():
        await container.request(Event.RESUME)
