# SPDX-License-Identifier: Apache-2.0
"""Letting a guest execute its first instruction."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from runphi_async.container.hooks import run_hooks_of
from runphi_async.errors import HookError

if TYPE_CHECKING:
    from runphi_async.container.container import Container

log = logging.getLogger(__name__)


async def start(container: Container) -> None:
    """Start the guest, then run the poststart hooks; a hook that fails there is logged, as the OCI spec says.

    :raises StateError: the container is not created.
    :raises BackendError: it cannot be started; then it has ended.
    """
    async with container.verb():
        await container.start()
        try:
            await run_hooks_of(container.record, (await container.hooks()).poststart, "poststart")
        except HookError as exc:
            log.warning("%s: %s", container.record.name, exc)
