# SPDX-License-Identifier: Apache-2.0
"""What all drivers of domains share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.xen.hypervisor import Hypervisor
    from backends.xen.xenstore import XenStore


class Tools(NamedTuple):
    """The hypervisor and its daemons.

    :ivar connect: makes a connection to xenstored.
    :ivar quiet: seconds of silence after which a console of an ended domain counts as drained.
    :ivar patience: seconds that a domain may take to end when it is asked to.
    """

    hypervisor: Hypervisor
    connect: Callable[[], Awaitable[XenStore]]
    quiet: float
    patience: float
