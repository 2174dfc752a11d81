# SPDX-License-Identifier: Apache-2.0
"""Making a container, if it is to be a partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from runphi_async.container.bundle import is_wanted, read_bundle
from runphi_async.container.creation import Creation

if TYPE_CHECKING:
    from runphi_async.container.container import Container
    from runphi_async.container.order import Order, Register, Spawner


async def create(register: Register, spawner: Spawner, order: Order) -> Container | None:
    """Return the container, up to its guest's first instruction; None: it is to be the ordinary runtime's.

    :raises RunphiError: it cannot be made, and nothing of it is left.
    """
    config = register.shared.config
    asked = await anyio.to_thread.run_sync(read_bundle, order.bundle, config.annotations.of_images)
    if not is_wanted(asked, config):
        return None
    return await Creation(register, spawner, order, asked).run()
