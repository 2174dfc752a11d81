# SPDX-License-Identifier: Apache-2.0
"""Freeing all that a container had. Always ends, also when the hypervisor is gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from runphi_async.container.forgetting import forget
from runphi_async.container.hooks import run_hooks_of
from runphi_async.errors import HookError, NotFoundError, SpecError
from runphi_async.record.lifecycle import Event

if TYPE_CHECKING:
    from runphi_async.container.container import Container

log = logging.getLogger(__name__)


class Known(Protocol):
    """All containers, as far as the deletion of one goes."""

    def holds(self, container: Container) -> bool:
        """Whether it is there still."""
        ...

    def drop(self, container: Container) -> None:
        """Forget it."""
        ...


async def delete(known: Known, container: Container, *, force: bool) -> None:
    """Delete a container, then run its poststop hooks; one that fails there is logged, as the OCI spec says.

    :param force: destroy the guest first if it lives, and do not mind if there is nothing to delete.
    :raises StateError: it has not stopped.
    :raises NotFoundError: somebody else has deleted it meanwhile.
    """
    event = Event.FORCE_DELETE if force else Event.DELETE
    container.lifecycle.check(event)
    if force:
        await container.request(event)  # before the turn: a verb that hangs on this guest must not hold this up
    async with container.verb():
        if not known.holds(container):  # somebody else's delete was faster
            if force:
                return
            raise NotFoundError("container does not exist")
        await container.request(event)
        try:
            await run_hooks_of(container.record, (await container.hooks()).poststop, "poststop")
        except (HookError, SpecError) as exc:
            log.warning("%s: %s", container.record.name, exc)
        await forget(container)
        known.drop(container)
