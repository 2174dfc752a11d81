# SPDX-License-Identifier: Apache-2.0
"""A signal for a container; what it means is in ``runphi_async.oci.signals``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runphi_async.record.lifecycle import Status

if TYPE_CHECKING:
    from runphi_async.container.container import Container


async def kill(container: Container, number: int, *, whole: bool = False) -> None:
    """Deliver a signal.

    :param whole: for all there is in the container: of one that has ended that is nothing.
    :raises StateError: there is no guest that could take it.
    """
    async with container.verb():
        if whole and container.record.status is Status.STOPPED:
            return
        await container.signal(number)
